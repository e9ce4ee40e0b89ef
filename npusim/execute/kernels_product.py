"""Convolutions, linear maps and attention products on blocks. One code for FP32 and for integers carried exactly in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from npusim.execute.blocks import Array, aligned_copy, aligned_empty, split_heads

#: Elements of one patch matrix; convolutions of larger bands go through it in several strips.
PATCH_ELEMENTS_MAX = 1 << 24


class Spatial(NamedTuple):
    """Geometry of a convolution or pooling: (height, width) pairs, pads (top, left, bottom, right)."""

    in_hw: tuple[int, int]
    out_hw: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]


def spatial_of(attributes: Mapping[str, Any]) -> Spatial:
    """The geometry in a layer's attributes."""
    return Spatial(
        in_hw=tuple(attributes["in_hw"]), out_hw=tuple(attributes["out_hw"]), kernel=tuple(attributes["kernel"]),
        stride=tuple(attributes["stride"]), dilation=tuple(attributes.get("dilation", (1, 1))), pads=tuple(attributes["pads"]),
    )  # fmt: skip


def linear(x: Array, weight: Array) -> Array:
    """x [b, h, r, k] times weight [1, 1, n, k], transposed: [b, h, r, n]."""
    batch, heads, rows, depth = x.shape
    product = _matmul(x.reshape(batch * heads * rows, depth), weight[0, 0].T)
    return product.reshape(batch, heads, rows, weight.shape[2])


def matmul(x: Array, y: Array, heads: int, *, y_rows_are_outputs: bool) -> Array:
    """Attention products, one per head: [b, heads, rows, outputs].

    Args:
        x: [b, heads, r, k] or [b, 1, r, heads x k].
        y: keys [.., outputs, k] if `y_rows_are_outputs`, else values [.., k, outputs], heads stored in either way.
    """
    left, right = aligned_copy(split_heads(x, heads)), split_heads(y, heads)
    right = aligned_copy(right).transpose(0, 1, 3, 2) if y_rows_are_outputs else aligned_copy(right)
    return np.asarray(np.matmul(left, right))


def conv(
    x: Array, first_row: int, weight: Array, geometry: Spatial, groups: int, out_rows: tuple[int, int]
) -> Array:
    """A band of a convolution, channels last.

    Args:
        x: [b, 1, rows, c]: whole image rows from storage row `first_row` on.
        weight: [1, 1, n, kernel_h * kernel_w * c / groups].
        out_rows: (first, past the last) output image row of the band.

    Returns:
        [b, 1, (out rows) * out_w, n].
    """
    out_w = geometry.out_hw[1]
    outputs = weight.shape[2]
    result = aligned_empty((x.shape[0], 1, (out_rows[1] - out_rows[0]) * out_w, outputs), x.dtype)
    patch_row = max(1, out_w * geometry.kernel[0] * geometry.kernel[1] * x.shape[3])
    strip = max(1, PATCH_ELEMENTS_MAX // patch_row)
    for image in range(x.shape[0]):
        for row in range(out_rows[0], out_rows[1], strip):
            stop = min(row + strip, out_rows[1])
            patches = windows(x[image, 0], first_row, geometry, (row, stop), 0)
            at = slice((row - out_rows[0]) * out_w, (stop - out_rows[0]) * out_w)
            result[image, 0, at] = _grouped(patches, weight[0, 0], groups)
    return result


def windows(x: Array, first_row: int, geometry: Spatial, out_rows: tuple[int, int], fill: float) -> Array:
    """Input windows of a band of output rows: [out rows, out_w, kernel_h, kernel_w, c], a strided view of a padded copy.

    Args:
        x: [rows, c] storage rows, whole image rows from storage row `first_row` on.
        fill: what stands outside the image.
    """
    in_h, in_w = geometry.in_hw
    channels = x.shape[1]
    low = out_rows[0] * geometry.stride[0] - geometry.pads[0]
    reach = (geometry.kernel[0] - 1) * geometry.dilation[0] + 1
    high = (out_rows[1] - 1) * geometry.stride[0] - geometry.pads[0] + reach
    left = geometry.pads[1]
    width = max(
        (geometry.out_hw[1] - 1) * geometry.stride[1] + (geometry.kernel[1] - 1) * geometry.dilation[1] + 1,
        left + in_w,
    )
    image = x.reshape(-1, in_w, channels)
    start = first_row // in_w
    padded = aligned_empty((high - low, width, channels), x.dtype)
    padded[...] = fill
    top, bottom = max(low, start, 0), min(high, start + image.shape[0], in_h)
    if top < bottom:
        padded[top - low : bottom - low, left : left + in_w] = image[top - start : bottom - start]
    rows, cols, step = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded,
        (out_rows[1] - out_rows[0], geometry.out_hw[1], *geometry.kernel, channels),
        (
            rows * geometry.stride[0],
            cols * geometry.stride[1],
            rows * geometry.dilation[0],
            cols * geometry.dilation[1],
            step,
        ),
        writeable=False,
    )


def _grouped(patches: Array, weight: Array, groups: int) -> Array:
    """[rows, cols, kh, kw, c] windows times [n, kh * kw * c / groups]: [rows * cols, n]."""
    rows, cols, height, width, channels = patches.shape
    if groups == 1:
        return _matmul(patches.reshape(rows * cols, height * width * channels), weight.T)
    split = patches.reshape(rows * cols, height * width, groups, channels // groups).transpose(2, 0, 1, 3)
    left = aligned_copy(split).reshape(groups, rows * cols, -1)
    right = aligned_copy(weight.reshape(groups, weight.shape[0] // groups, -1)).transpose(0, 2, 1)
    return np.asarray(np.matmul(left, right).transpose(1, 0, 2).reshape(rows * cols, weight.shape[0]))


def _matmul(left: Array, right: Array) -> Array:
    result = aligned_empty((left.shape[0], right.shape[1]), left.dtype)
    np.matmul(left, right, out=result)
    return result
