"""Unequal arrays that share a product: against every division, and the bound below all of them."""

from __future__ import annotations

from functools import cache
from itertools import product
from operator import mul

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npusim.arrays import Array, product_steps, shared_steps
from npusim.scheduler.cover import cheapest_cover, dearest_cover, least_steps

stable = settings(derandomize=True, deadline=None, max_examples=150)
sizes = st.integers(1, 12)
arrays = st.builds(Array, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 2))


def all_rectangles(lead: Array, helper: Array, batch: int, m: int, n: int, k: int) -> int:
    """The best division in which the helper has a rectangle of each product."""
    best = product_steps(lead, batch, m, n, k)
    for rows, cols in product(range(1, m + 1), range(1, n + 1)):
        rest = product_steps(lead, batch, m - rows, n, k) + product_steps(lead, batch, rows, n - cols, k)
        best = min(best, max(rest, product_steps(helper, batch, rows, cols, k)))
    return int(best)


@cache
def covers(length: int, widths: tuple[int, ...], prices: tuple[float, ...]) -> float:
    """The cheapest cover of a length, interval by interval."""
    if length <= 0:
        return 0.0
    return min(p + covers(length - w, widths, prices) for w, p in zip(widths, prices, strict=True))


@stable
@given(arrays, arrays, st.integers(1, 3), sizes, sizes, sizes)
def test_shared_steps_lie_between_the_best_rectangle_and_the_lead_alone(
    lead: Array, helper: Array, batch: int, m: int, n: int, k: int
) -> None:
    found = shared_steps(lead, helper, batch, m, n, k)
    assert all_rectangles(lead, helper, batch, m, n, k) <= found <= product_steps(lead, batch, m, n, k)


@stable
@given(arrays, arrays, st.integers(1, 3), sizes, sizes, sizes)
def test_the_bound_is_below_every_division(
    lead: Array, helper: Array, batch: int, m: int, n: int, k: int
) -> None:
    bound = least_steps([lead, helper], batch, m, n, k)
    least = min(
        all_rectangles(lead, helper, batch, m, n, k), all_rectangles(helper, lead, batch, m, n, k),
        product_steps(helper, batch, m, n, k),
    )  # fmt: skip
    assert bound <= least * (1 + 1e-9)
    assert bound <= least_steps([lead], batch, m, n, k) * (1 + 1e-9)


@stable
@given(arrays, arrays, sizes, sizes, sizes)
def test_the_bound_is_below_every_division_block_by_block(
    lead: Array, helper: Array, m: int, n: int, k: int
) -> None:
    """Any number of equal strips, each with a width of its own for the helper: what no rectangle can do."""
    m, n = min(m, 6), min(n, 6)
    strip = max(1, m // 2)
    strips = [strip, m - strip] if m > strip else [m]
    least = float("inf")
    for widths in product(range(n + 1), repeat=len(strips)):
        mine = sum(
            product_steps(lead._replace(engines=1), 1, r, n - w, k)
            for r, w in zip(strips, widths, strict=True)
        )
        theirs = sum(
            product_steps(helper._replace(engines=1), 1, r, w, k) for r, w in zip(strips, widths, strict=True)
        )
        least = min(least, max(mine, theirs))
    assert least_steps([lead._replace(engines=1), helper._replace(engines=1)], 1, m, n, k) <= least * (
        1 + 1e-9
    )


@stable
@given(st.integers(0, 40), st.lists(st.tuples(st.integers(1, 8), st.integers(1, 20)), min_size=1, max_size=3))
def test_a_cover_is_the_cheapest(length: int, kinds: list[tuple[int, int]]) -> None:
    widths, prices = tuple(w for w, _ in kinds), tuple(float(p) for _, p in kinds)
    counts = cheapest_cover(length, widths, prices)
    assert sum(map(mul, counts, widths)) >= length
    assert sum(map(mul, counts, prices)) == pytest.approx(covers(length, widths, prices))


@stable
@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=3),
)
def test_the_dearest_cover_between_two_price_lists_is_found(
    length: int, kinds: list[tuple[int, int, int]]
) -> None:
    widths = tuple(w for w, _, _ in kinds)

    def cheapest(share: float) -> float:
        return covers(length, widths, tuple((1 - share) * a + share * b for _, a, b in kinds))

    found = dearest_cover(length, widths, [a for _, a, _ in kinds], [b for _, _, b in kinds])
    sampled = max(map(cheapest, np.linspace(0, 1, 41).tolist()))
    assert found >= sampled * (1 - 1e-9)
    assert found <= sampled + max(20 * length * abs(a - b) / 40 for _, a, b in kinds) + 1e-9


@stable
@given(arrays, sizes, sizes, sizes)
def test_one_kind_alone_is_bounded_by_its_blocks(array: Array, m: int, n: int, k: int) -> None:
    """Of one kind the bound is what its engines need if they share blocks evenly, but for blocks ragged in both directions."""
    blocks = -(-m // array.rows) * -(-n // array.cols) * -(-k // array.depth) / array.engines
    bound = least_steps([array], 1, m, n, k)
    assert bound <= blocks * (1 + 1e-9)
    if m % array.rows == 0 or n % array.cols == 0:
        assert bound == pytest.approx(blocks)


def test_an_attention_of_40_columns_gives_the_ragged_ones_away() -> None:
    """P V of a 64x64 attention: 40 columns are 3 blocks of 16; the small arrays take 8 columns of a third of the rows."""
    lead, helper = Array(8, 16, 64, 2), Array(4, 8, 16, 2)
    alone = product_steps(lead, 1, 4096, 40, 4096)
    assert shared_steps(lead, helper, 1, 4096, 40, 4096) == pytest.approx(alone * 8 / 9, rel=0.01)
    assert least_steps([lead, helper], 1, 4096, 40, 4096) == pytest.approx(alone * 8 / 9, rel=0.001)
