"""Choosing: the solver and the front against trying everything."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npusim.precision_search.choices import OBJECTIVES, Choices, Edge, Picks
from npusim.precision_search.solve import best_picks, exact_front, pareto

OPTIONS = ("w8a8", "w8a16", "fp16")
KINDS = ("int8", "int16", "fp16")


@st.composite
def drawn(draw: Callable[[Any], Any], most: int = 5) -> Choices:
    """A network of a few choices, its tensors read by one or more later ones."""
    count = draw(st.integers(1, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    own = random.integers(0, 20, (count, len(OPTIONS), len(OBJECTIVES))).astype(float)
    edges, cast = [], {}
    for writer in range(count - 1):
        tensor = f"t{writer}"
        cast[tensor] = np.concatenate([[0.0], random.integers(0, 6, 3).astype(float)])
        for reader in range(writer + 1, count):
            if reader == writer + 1 or random.random() < 0.3:
                error = {k: float(random.integers(0, 6)) for k in KINDS}
                edges.append(Edge(writer=writer, reader=reader, tensor=tensor, error=error))
    groups = tuple((f"layer{i}",) for i in range(count))
    return Choices(groups=groups, options=OPTIONS, own=own, edges=tuple(edges), cast=cast)


def everything(choices: Choices) -> list[Picks]:
    return list(product(range(len(choices.options)), repeat=len(choices.groups)))


def values(choices: Choices, picks: list[Picks]) -> set[tuple[float, ...]]:
    return {tuple(choices.total(p)) for p in picks}


@given(drawn())
@settings(max_examples=40, deadline=None)
def test_the_front_of_a_small_network_is_that_of_trying_everything(choices: Choices) -> None:
    tried = everything(choices)
    best = pareto(np.asarray([choices.total(p) for p in tried]))
    assert values(choices, exact_front(choices)) == values(choices, [tried[i] for i in best])


def test_the_front_of_eight_layers_is_that_of_trying_everything() -> None:
    random = np.random.default_rng(3)
    own = random.random((8, 3, 4)) * [[[8, 5, 5, 5]], [[4, 7, 7, 7]], [[1, 9, 9, 9]]][0]
    edges = [Edge(writer=i, reader=i + 1, tensor=f"t{i}", error={"int8": 0.2}) for i in range(7)]
    edges.append(Edge(writer=1, reader=6, tensor="t1", error={"int8": 0.3}))
    cast = {f"t{i}": np.asarray([0, 0.1, 0.05, 0.1]) for i in range(7)}
    groups = tuple((f"layer{i}",) for i in range(8))
    choices = Choices(groups=groups, options=OPTIONS, own=own, edges=tuple(edges), cast=cast)
    tried = everything(choices)
    totals = np.asarray([choices.total(p) for p in tried])
    order = np.argsort(
        totals.sum(axis=1), kind="stable"
    )  # what comes first is beaten by nothing that comes after
    kept: list[int] = []
    for i in order:
        if not kept or not (totals[kept] <= totals[i]).all(axis=1).any():
            kept.append(int(i))
    assert values(choices, exact_front(choices)) == {tuple(totals[i]) for i in kept}


@given(drawn(), st.integers(0, 3), st.integers(1, 3), st.floats(0.0, 1.0))
@settings(max_examples=40, deadline=None)
def test_the_solver_finds_the_least_under_a_limit_or_says_that_there_is_none(
    choices: Choices, wanted: int, other: int, share: float
) -> None:
    limited = (wanted + other) % len(OBJECTIVES)
    totals = np.asarray([choices.total(p) for p in everything(choices)])
    most = float(totals[:, limited].min() + share * np.ptp(totals[:, limited]) - (share < 0.1)) + 1e-6
    picks = best_picks(choices, OBJECTIVES[wanted], {OBJECTIVES[limited]: most})
    allowed = totals[totals[:, limited] <= most]
    if not len(allowed):
        assert picks is None
        return
    assert picks is not None
    found = choices.total(picks)
    assert found[limited] <= most + 1e-6
    assert found[wanted] == pytest.approx(
        allowed[:, wanted].min(), abs=0.1
    )  # ties are broken by a trace of the others


def test_what_cannot_be_computed_is_never_chosen() -> None:
    own = np.ones((2, 3, 4))
    own[0, :2, 0] = np.inf
    choices = Choices(groups=(("a",), ("b",)), options=OPTIONS, own=own, edges=(), cast={})
    assert best_picks(choices, "latency_ps", {}) is not None
    assert all(p[0] == 2 for p in exact_front(choices))
    picks = best_picks(choices, "latency_ps", {})
    assert picks is not None
    assert picks[0] == 2
