"""How multiplier arrays divide products: equal arrays over one axis, unequal ones so that they end together.

Everything is counted in array steps: one step of any array takes the same time for a given pair of operand types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np


class Array(NamedTuple):
    """`engines` equal arrays that reduce `depth` terms of `rows` x `cols` results in a step."""

    rows: int
    cols: int
    depth: int
    engines: int


def ceil_div(a: Any, b: Any) -> Any:
    """Quotient rounded up, of integers or integer arrays."""
    return -(-a // b)


def product_steps(array: Array, batch: Any, m: Any, n: Any, k: Any) -> Any:
    """Steps that the busiest of some equal arrays needs for `batch` products [m, k] x [k, n] (integers or integer arrays).

    The work is split over one axis, whichever leaves the least: batch, rows or columns. Each extent is padded to the array.

    Source: our assumption of an output-stationary `rows x cols` array that reduces `depth` terms per step.
    """
    rows, cols, depth = ceil_div(m, array.rows), ceil_div(n, array.cols), ceil_div(k, array.depth)
    by_batch = ceil_div(batch, array.engines) * rows * cols
    by_rows = batch * ceil_div(rows, array.engines) * cols
    by_cols = batch * rows * ceil_div(cols, array.engines)
    if isinstance(by_batch, int):
        return min(by_batch, by_rows, by_cols) * depth
    return np.minimum(np.minimum(by_batch, by_rows), by_cols) * depth


@lru_cache(maxsize=1 << 16)
def shared_steps(lead: Array, helper: Array, batch: int, m: int, n: int, k: int) -> int:
    """Steps until two kinds of array have divided `batch` products [m, k] x [k, n] between them.

    The helper takes a rectangle of each product's results, the lead what remains above and beside it. No element is computed twice, no sum
    is divided. Never more than the lead alone.
    """
    best = product_steps(lead, batch, m, n, k)
    for rows, cols in _rectangles(lead, helper, batch, m, n, k):
        rest = product_steps(lead, batch, m - rows, n, k) + product_steps(lead, batch, rows, n - cols, k)
        best = min(best, max(rest, product_steps(helper, batch, rows, cols, k)))
    return int(best)


def _rectangles(lead: Array, helper: Array, batch: int, m: int, n: int, k: int) -> Iterator[tuple[int, int]]:
    """(rows, columns) that the helper may take: all columns of some rows, some columns of all rows, or the ragged last columns of some."""
    alone = product_steps(lead, batch, m, n, k)
    for cols in {n, n % lead.cols or n}:
        saved = alone - product_steps(lead, batch, m, n - cols, k)
        for rows in _balanced(
            m, alone, saved, product_steps(helper, batch, m, cols, k), lead.rows * lead.engines
        ):
            yield rows, cols
    for cols in _balanced(n, alone, alone, product_steps(helper, batch, m, n, k), lead.cols):
        yield m, cols


def _balanced(total: int, alone: int, saved: int, helper: int, granule: int) -> Sequence[int]:
    """Parts of an axis with which both end at about the same time, in whole arrays of the lead.

    Args:
        alone: steps of the lead alone.
        saved: steps that it saves when the helper takes the whole axis.
        helper: steps of the helper for the whole axis.
    """
    low = total * alone // (saved + helper) // granule * granule
    return [part for part in (low, low + granule) if 0 < part <= total]
