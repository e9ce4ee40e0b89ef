"""Norms, softmax, pooling, resizing and moving of data on FP32 blocks [batch, heads, rows, cols]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from npusim.execute.blocks import Array
from npusim.execute.kernels_product import Spatial, windows
from npusim.execute.workers import ELEMENT_OPERATIONS, INLINE, Workers
from npusim.graph import Shape4
from npusim.lower.geometry import resize_taps


def softmax(x: Array, *, zero_if_masked: bool = False, workers: Workers = INLINE) -> Array:
    """Each row's exponentials over their sum; a row that is all minus infinity (masked) gives NaN, or zeros on request."""
    rows = x.reshape(-1, x.shape[3])
    result = np.empty_like(rows)

    def part(at: slice) -> None:
        shifted = result[at]
        with np.errstate(invalid="ignore"):
            np.subtract(rows[at], rows[at].max(axis=1, keepdims=True), out=shifted)
            np.exp(shifted, out=shifted)
            shifted /= shifted.sum(axis=1, keepdims=True)
        if zero_if_masked:
            np.nan_to_num(shifted, copy=False, nan=0.0)

    workers.share(len(rows), ELEMENT_OPERATIONS * x.size, part)
    return result.reshape(x.shape)


def layer_norm(x: Array, scale: Array | None, bias: Array | None, epsilon: float) -> Array:
    """Each row to mean 0 and variance 1, then scale and shift per column."""
    centred = x - x.mean(axis=3, keepdims=True)
    variance = np.square(centred).mean(axis=3, keepdims=True)
    return _affine(centred / np.sqrt(variance + np.float32(epsilon)), scale, bias)


def group_statistics(x: Array, width: int, first: int, before: Array | None) -> Array:
    """Sums and sums of squares per group, [b, 1, groups, 2] FP64, added to those of the pieces before.

    Integers up to 16 bits are summed exactly, so that the pieces' order and size do not matter.

    Args:
        x: [b, 1, rows, cols], columns from number `first` on of what is normalized.
        width: columns of a group; the first and the last group may have less than that in `x`.
        before: sums of these groups so far.
    """
    batch, _, rows, cols = x.shape
    lead, groups = first % width, -(-(first % width + cols) // width)
    wide = np.zeros((batch, rows, groups * width))
    wide[..., lead : lead + cols] = x[:, 0]
    wide = wide.reshape(batch, rows, groups, width)
    found = np.stack([wide.sum(axis=(1, 3)), np.einsum("brgc,brgc->bg", wide, wide)], axis=2)[:, None]
    return found if before is None else before + found


def group_norm(
    x: Array, statistics: Array, count: int, scale: Array | None, bias: Array | None, epsilon: float
) -> Array:
    """Normalization with finished statistics; `count` elements went into each group's sums.

    Args:
        x: [b, 1, rows, cols] FP32.
        statistics: [b, 1, groups, 2], of the same values as `x`.
    """
    mean = statistics[..., 0] / count
    variance = np.maximum(statistics[..., 1] / count - mean * mean, 0)
    width = x.shape[3] // statistics.shape[2]
    factor = np.repeat(1 / np.sqrt(variance + epsilon), width, axis=2)[:, :, None, :].astype(np.float32)
    shift = np.repeat(mean, width, axis=2)[:, :, None, :].astype(np.float32)
    return _affine((x - shift) * factor, scale, bias)


def _affine(x: Array, scale: Array | None, bias: Array | None) -> Array:
    if scale is not None:
        x *= scale
    if bias is not None:
        x += bias
    return x


def pool(
    x: Array, first_row: int, attributes: Mapping[str, Any], geometry: Spatial, out_rows: tuple[int, int]
) -> Array:
    """A band of max or average pooling, channels last (see `kernels_product.conv`)."""
    largest = attributes["function"] == "max"
    found = []
    for image in range(x.shape[0]):
        seen = windows(x[image, 0], first_row, geometry, out_rows, -np.inf if largest else 0.0)
        if largest:
            found.append(seen.max(axis=(2, 3)))
        else:
            counts = _pool_counts(geometry, out_rows, padded=bool(attributes.get("count_include_pad", 0)))
            found.append(seen.sum(axis=(2, 3)) / counts[:, :, None])
    return np.stack(found).reshape(x.shape[0], 1, -1, x.shape[3]).astype(np.float32)


def _pool_counts(geometry: Spatial, out_rows: tuple[int, int], *, padded: bool) -> Array:
    """[out rows, out_w] elements that an average divides by: those inside the image, or inside the padded image."""
    axes = []
    for axis, outputs in ((0, np.arange(*out_rows)), (1, np.arange(geometry.out_hw[1]))):
        low, high = (geometry.pads[axis], geometry.pads[axis + 2]) if padded else (0, 0)
        start = outputs * geometry.stride[axis] - geometry.pads[axis]
        taps = start[:, None] + np.arange(geometry.kernel[axis]) * geometry.dilation[axis]
        axes.append(((taps >= -low) & (taps < geometry.in_hw[axis] + high)).sum(axis=1))
    return np.maximum(np.outer(axes[0], axes[1]), 1).astype(np.float32)


def resize(x: Array, first_row: int, attributes: Mapping[str, Any], out_rows: tuple[int, int]) -> Array:
    """A band of a resized image, channels last: [b, 1, (out rows) * out_w, c]."""
    in_w = int(attributes["in_hw"][1])
    start = first_row // in_w
    image = x.reshape(x.shape[0], -1, in_w, x.shape[3])
    rows, row_weights = (t[out_rows[0] : out_rows[1]] for t in resize_taps(attributes, 0))
    cols, col_weights = resize_taps(attributes, 1)
    if rows.shape[1] == cols.shape[1] == 1:
        return image[:, rows[:, 0] - start][:, :, cols[:, 0]].reshape(x.shape[0], 1, -1, x.shape[3])
    tall = np.einsum("brtwc,rt->brwc", image[:, rows - start], row_weights)
    wide = np.einsum("brwtc,wt->brwc", tall[:, :, cols], col_weights)
    return np.asarray(wide, dtype=np.float32).reshape(x.shape[0], 1, -1, x.shape[3])


def rearrange(x: Array, attributes: Mapping[str, Any], out: Shape4) -> Array:
    """A whole tensor with its atoms in another order."""
    atoms, order = attributes["atoms"], attributes["order"]
    return x.reshape([size for _, size in atoms]).transpose(order).reshape(out)


def expand(x: Array, attributes: Mapping[str, Any], out: Shape4) -> Array:
    """A whole tensor broadcast to more elements."""
    return np.broadcast_to(x.reshape(attributes["shape"]), attributes["expand"]).reshape(out)


def take(x: Array, attributes: Mapping[str, Any], out: Shape4) -> Array:
    """A range of one dimension of a whole tensor."""
    axis, start = attributes["axis"], attributes["start"]
    shape = attributes["shape"]
    others = prod(s for i, s in enumerate(shape) if i != axis)
    size = prod(out) // max(1, others)
    return np.take(x.reshape(shape), range(start, start + size), axis=axis).reshape(out)


def concat(arrays: Sequence[Array], attributes: Mapping[str, Any], out: Shape4) -> Array:
    """Whole tensors joined along one dimension."""
    shapes = attributes["shapes"]
    return np.concatenate(
        [a.reshape(s) for a, s in zip(arrays, shapes, strict=True)], axis=attributes["axis"]
    ).reshape(out)
