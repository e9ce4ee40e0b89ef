"""Online softmax over blocks of keys: what its commands compute, in FP32 on stored values.

A row's running state is the maximum m of its scores so far and the sum l of exp(score - m). A block raises m to m', leaves
exp(score - m') as probabilities in their format, and hands on the factor exp(m - m') for what was summed before. l adds up the
probabilities as they are stored, so that they weigh the rows of V with exactly one in all, whatever their format.

Source: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018; T. Dao et al., "FlashAttention", 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from npusim.execute.blocks import Array, merge_heads, split_heads
from npusim.execute.compute import Compute
from npusim.execute.stages import MAIN, stage_after
from npusim.execute.vector_layers import FACTOR, OUT, STATISTICS, Reads, X
from npusim.execute.workers import ELEMENT_OPERATIONS
from npusim.graph import Layer
from npusim.lower.geometry import TensorBox
from npusim.quantize import decode, encode


def _softmax(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> list[Array]:
    """Probabilities of a block, the running state [b, heads, rows, 2], and the factor [b, heads, rows, 1] if anything came before."""
    x = run.value(reads[X])
    before = reads[STATISTICS][0].data if STATISTICS in reads else None
    rows = x.reshape(-1, x.shape[3])
    largest, shifted = np.empty((len(rows), 1), np.float32), np.empty_like(rows)
    known = None if before is None else before.reshape(-1, 2)

    def part(at: slice) -> None:
        top = rows[at].max(axis=1, keepdims=True)
        if known is not None:
            top = np.maximum(top, known[at, :1])
        largest[at] = top
        with np.errstate(invalid="ignore"):
            np.exp(np.subtract(rows[at], _finite(top), out=shifted[at]), out=shifted[at])

    run.workers.share(len(rows), ELEMENT_OPERATIONS * x.size, part)
    form = run.formats[stage_after(layer, MAIN).key]
    stored = encode(shifted.reshape(x.shape), form)
    total = decode(stored, form).sum(axis=3, keepdims=True)
    state = np.empty((*x.shape[:3], 2), np.float32)
    state[..., :1] = largest.reshape(total.shape)
    state[..., 1:] = total
    if before is None:
        return [stored, state]
    with np.errstate(invalid="ignore"):
        factor = np.exp(before[..., :1] - _finite(state[..., :1]))
    state[..., 1:] += before[..., 1:] * factor
    return [stored, state, factor]


def _finite(top: Array) -> Array:
    """Maxima to subtract: 0 for rows of which every score so far is minus infinity, so that they sum up nothing."""
    return np.where(np.isneginf(top), np.float32(0), top)


def _scale(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> list[Array]:
    """The running output times the factor of each row."""
    return [_by_rows(reads, np.multiply, reads[FACTOR][0].data)]


def _add(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> list[Array]:
    """The running output and the product with one more block."""
    return [reads[OUT][0].data + reads[X][0].data]


def _divide(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> list[Array]:
    """The finished output in its format. A row that is masked everywhere has 0 / 0, or zeros where the softmax is guarded."""
    with np.errstate(invalid="ignore"):
        result = _by_rows(reads, np.divide, reads[STATISTICS][0].data[..., 1:])
    softmax = next(x for x in run.graph.layers if x.output == layer.operands[0].parts[0].tensor)
    if softmax.attributes.get("zero_if_masked"):
        np.nan_to_num(result, copy=False, nan=0.0)
    return [encode(result, run.formats[stage_after(layer, MAIN).key])]


def _by_rows(reads: Reads, function: Callable[[Array, Array], Array], other: Array) -> Array:
    """Each row of each head of the running output with one number."""
    total = reads[OUT][0].data
    return np.ascontiguousarray(merge_heads(function(split_heads(total, other.shape[1]), other), total.shape))


#: What a vector command of online softmax computes, by its attribute `online`.
ONLINE: Mapping[str, Callable[[Compute, Layer, Reads, TensorBox], list[Array]]] = {
    "softmax": _softmax,
    "scale": _scale,
    "add": _add,
    "divide": _divide,
}
