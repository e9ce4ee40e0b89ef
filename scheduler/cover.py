"""The least that a product can cost when multiplier arrays of several kinds share it, in array steps: a bound, not a plan."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as combinations_of
from math import gcd
from operator import mul

from npusim.arrays import Array, ceil_div

#: Most lines that are compared; of two kinds three to five are enough.
LINES = 64


def least_steps(arrays: Sequence[Array], batch: int, m: int, n: int, k: int) -> float:
    """Steps that no division of `batch` products [m, k] x [k, n] among these arrays can beat.

    Each kind's array covers a block of results at `ceil(k / depth)` steps; sums are not divided between kinds. Give each kind a price, the
    prices adding up to one: the time of the slowest is at least the priced sum of all, hence at least the cheapest cover of the results by
    priced blocks. Every row must be covered, a block covers `rows` of them: `m` times the cheapest cover of one row; columns likewise. Any
    prices give a bound (weak duality); the best are looked for between those at which all kinds cost the same per result, and those at
    which only one kind counts. Of one or two kinds these are all prices.
    """
    each = [ceil_div(k, a.depth) / a.engines for a in arrays]
    rates = [a.rows * a.cols / s for a, s in zip(arrays, each, strict=True)]
    even = [r / sum(rates) for r in rates]
    best = 0.0
    for chosen in range(len(arrays)):
        only = [float(i == chosen) for i in range(len(arrays))]
        for length, widths, times, lines in ((n, "cols", m, "rows"), (m, "rows", n, "cols")):
            prices = [
                [p * s / getattr(a, lines) for p, s, a in zip(kinds, each, arrays, strict=True)]
                for kinds in (even, only)
            ]
            best = max(best, times * dearest_cover(length, [getattr(a, widths) for a in arrays], *prices))
    return batch * best


def dearest_cover(length: int, widths: Sequence[int], start: Sequence[float], end: Sequence[float]) -> float:
    """The price of the cheapest cover at the prices between `start` and `end` where it is highest.

    The cheapest cover's price is the least of linear functions, one for each set of counts: concave. From both ends: where the lines of
    their covers meet, either no cover is cheaper, or its line replaces one of them.
    """

    def line(share: float) -> tuple[float, float]:
        """Price at both ends of the cover that is cheapest at a share of the way."""
        counts = cheapest_cover(
            length, widths, [(1 - share) * a + share * b for a, b in zip(start, end, strict=True)]
        )
        return sum(map(mul, counts, start)), sum(map(mul, counts, end))

    low, high = line(0.0), line(1.0)
    if low[1] <= low[0]:
        return low[0]
    if high[1] >= high[0]:
        return high[1]
    found = 0.0
    for _ in range(LINES):
        rise, fall = low[1] - low[0], high[0] - high[1]
        share = (high[0] - low[0]) / (rise + fall)
        between = line(share)
        at = (1 - share) * between[0] + share * between[1]
        found = max(found, at)
        if at >= (low[0] + share * rise) * (1 - 1e-12):
            break
        low, high = (between, high) if between[1] > between[0] else (low, between)
    return found


def cheapest_cover(length: int, widths: Sequence[int], prices: Sequence[float]) -> list[int]:
    """How many intervals of each width cover a length at the least price.

    Of every other width fewer are used than would, together, be as wide as a whole number of the cheapest per unit: those could be
    exchanged at no higher price.
    """
    best = min(range(len(widths)), key=lambda i: prices[i] / widths[i])
    ranges = [
        range(1) if i == best else range(widths[best] // gcd(widths[best], w)) for i, w in enumerate(widths)
    ]
    least, found = float("inf"), [0] * len(widths)
    for tried in combinations_of(*ranges):
        counts = list(tried)
        counts[best] = max(0, ceil_div(length - sum(map(mul, counts, widths)), widths[best]))
        price = sum(map(mul, counts, prices))
        if price < least:
            least, found = price, counts
    return found
