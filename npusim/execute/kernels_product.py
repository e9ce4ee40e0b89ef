"""Convolutions, linear maps and attention products on blocks. One code for FP32 and for integers carried exactly in float64."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np

from npusim.execute.blocks import Array, aligned_copy, aligned_empty, scratch, split_heads
from npusim.execute.workers import COPY_OPERATIONS, INLINE, MAC_OPERATIONS, Workers

#: Elements of one matrix of patches; convolutions of larger bands go through several.
PATCH_ELEMENTS_MAX = 1 << 23
#: Products are cut at multiples of this many rows or columns: BLAS is slow on less.
VECTOR = 32


class Spatial(NamedTuple):
    """Geometry of a convolution or pooling: (height, width) pairs, pads (top, left, bottom, right)."""

    in_hw: tuple[int, int]
    out_hw: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel is made of the input pixel at its place."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.pads == (0, 0, 0, 0)


def spatial_of(attributes: Mapping[str, Any]) -> Spatial:
    """The geometry in a layer's attributes."""
    return Spatial(
        in_hw=tuple(attributes["in_hw"]), out_hw=tuple(attributes["out_hw"]), kernel=tuple(attributes["kernel"]),
        stride=tuple(attributes["stride"]), dilation=tuple(attributes.get("dilation", (1, 1))), pads=tuple(attributes["pads"]),
    )  # fmt: skip


def linear(x: Array, weight: Array, workers: Workers = INLINE) -> Array:
    """x [b, h, r, k] times weight [1, 1, n, k], transposed: [b, h, r, n], in the weight's type."""
    batch, heads, rows, depth = x.shape
    outputs = weight.shape[2]
    result = aligned_empty((batch * heads * rows, outputs), weight.dtype)
    _product(x.reshape(batch * heads * rows, depth), weight[0, 0], result, workers)
    return result.reshape(batch, heads, rows, outputs)


def _product(left: Array, weight: Array, out: Array, workers: Workers) -> None:
    """left [rows, k] times weight [n, k], transposed, into [rows, n]; shared along the longer side of `out`."""
    operations = MAC_OPERATIONS * out.size * left.shape[1]
    if len(left) >= len(weight):

        def rows(at: slice) -> None:
            np.matmul(np.asarray(left[at], dtype=weight.dtype), weight.T, out=out[at])

        workers.share(len(left), operations, rows, step=VECTOR)
        return
    wide = np.asarray(left, dtype=weight.dtype)

    def columns(at: slice) -> None:
        np.matmul(wide, weight[at].T, out=out[:, at])

    workers.share(len(weight), operations, columns, step=VECTOR)


def matmul(x: Array, y: Array, heads: int, *, y_rows_are_outputs: bool, workers: Workers = INLINE) -> Array:
    """Attention products, one per head: [b, heads, rows, outputs].

    Args:
        x: [b, heads, r, k] or [b, 1, r, heads x k].
        y: keys [.., outputs, k] if `y_rows_are_outputs`, else values [.., k, outputs], heads stored in either way.
    """
    left, right = split_heads(x, heads), split_heads(y, heads)
    right = right if y_rows_are_outputs else right.transpose(0, 1, 3, 2)
    batch, _, rows, depth = left.shape
    result = aligned_empty((batch, heads, rows, right.shape[2]), x.dtype)
    if heads == 1:
        for image in range(batch):
            _product(left[image, 0], right[image, 0], result[image, 0], workers)
        return result

    def part(at: slice) -> None:
        np.matmul(left[:, at], right[:, at].transpose(0, 1, 3, 2), out=result[:, at])

    workers.share(heads, MAC_OPERATIONS * result.size * depth, part)
    return result


class Patches:
    """The windows of each thread's last convolution as a matrix, kept for its next one that reads the same pixels."""

    def __init__(self) -> None:
        self._own = threading.local()

    def matrix(
        self, key: Hashable, shape: tuple[int, ...], dtype: Any, fill: Callable[[Array], None]
    ) -> Array:
        """The matrix that `fill` makes, or made last time under the same key in this thread (None: of nothing known)."""
        own = self._own
        size = prod(shape) * np.dtype(dtype).itemsize
        if len(getattr(own, "bytes", ())) < size:
            own.bytes, own.key = aligned_empty((size,), np.uint8), None
        found: Array = np.ndarray(shape, dtype, own.bytes)
        if key is None or key != own.key:
            own.key = None
            fill(found)
            own.key = key
        return found


def conv(
    x: Array,
    first_row: int,
    weight: Array,
    geometry: Spatial,
    groups: int,
    out_rows: tuple[int, int],
    *,
    workers: Workers = INLINE,
    patches: Patches | None = None,
    origin: Hashable = None,
) -> Array:
    """A band of a convolution, channels last, in the weight's type.

    Args:
        x: [b, 1, rows, c]: whole image rows from storage row `first_row` on.
        weight: [1, 1, n, kernel_h * kernel_w * c / groups].
        out_rows: (first, past the last) output image row of the band.
        patches: keeps the windows of `x`; `origin` says what they were made of.

    Returns:
        [b, 1, (out rows) * out_w, n].
    """
    out_w = geometry.out_hw[1]
    if geometry.is_pointwise and groups == 1:
        return linear(
            x[:, :, out_rows[0] * out_w - first_row : out_rows[1] * out_w - first_row], weight, workers
        )
    rows, (outputs, depth) = out_rows[1] - out_rows[0], weight.shape[2:]
    result = aligned_empty((x.shape[0], 1, rows * out_w, outputs), weight.dtype)
    elements = rows * out_w * prod(geometry.kernel) * x.shape[3]

    def band(image: int, at: slice) -> Array:
        wanted = (out_rows[0] + at.start, out_rows[0] + at.stop)
        return windows(x[image, 0], first_row, geometry, wanted, 0, weight.dtype)

    if groups > 1 or x.shape[0] * elements > PATCH_ELEMENTS_MAX:
        for image in range(x.shape[0]):

            def strip(at: slice, image: int = image) -> None:
                target = result[image, 0, at.start * out_w : at.stop * out_w]
                _grouped(band(image, at), weight[0, 0], groups, target)

            operations = MAC_OPERATIONS * rows * out_w * outputs * depth
            workers.share(rows, operations, strip, least_parts=-(-elements // PATCH_ELEMENTS_MAX))
        return result

    def fill(found: Array) -> None:
        for image in range(x.shape[0]):

            def copy(at: slice, image: int = image) -> None:
                found[image, at] = band(image, at)

            workers.share(rows, COPY_OPERATIONS * elements, copy)

    shape = (x.shape[0], rows, out_w, *geometry.kernel, x.shape[3])
    matrix = (patches or Patches()).matrix(origin, shape, weight.dtype, fill)
    _product(matrix.reshape(-1, depth), weight[0, 0], result.reshape(-1, outputs), workers)
    return result


def windows(
    x: Array, first_row: int, geometry: Spatial, out_rows: tuple[int, int], fill: float, dtype: Any = None
) -> Array:
    """Input windows of a band of output rows: [out rows, out_w, kernel_h, kernel_w, c], a view of a padded copy in scratch memory.

    Args:
        x: [rows, c] storage rows, whole image rows from storage row `first_row` on.
        fill: what stands outside the image.
        dtype: of the copy (default: of `x`).
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
    padded = scratch((high - low, width, channels), dtype or x.dtype, "padded")
    top, bottom = max(low, start, 0), max(min(high, start + image.shape[0], in_h), max(low, start, 0))
    padded[: top - low] = fill
    padded[bottom - low :] = fill
    inside = padded[top - low : bottom - low]
    inside[:, :left] = fill
    inside[:, left + in_w :] = fill
    inside[:, left : left + in_w] = image[top - start : bottom - start]
    rows, cols, step = padded.strides
    across, down = cols * geometry.stride[1], rows * geometry.stride[0]
    taps = rows * geometry.dilation[0], cols * geometry.dilation[1]
    shape = (out_rows[1] - out_rows[0], geometry.out_hw[1], *geometry.kernel, channels)
    return np.ndarray(shape, padded.dtype, padded, strides=(down, across, *taps, step))


def _grouped(patches: Array, weight: Array, groups: int, out: Array) -> None:
    """[rows, cols, kh, kw, c] windows times [n, kh * kw * c / groups], into [rows * cols, n]."""
    rows, cols, height, width, channels = patches.shape
    if groups == 1:
        matrix = scratch(patches.shape, patches.dtype, "patches")
        matrix[...] = patches
        np.matmul(matrix.reshape(rows * cols, height * width * channels), weight.T, out=out)
        return
    split = patches.reshape(rows * cols, height * width, groups, channels // groups).transpose(2, 0, 1, 3)
    left = aligned_copy(split).reshape(groups, rows * cols, -1)
    right = aligned_copy(weight.reshape(groups, weight.shape[0] // groups, -1)).transpose(0, 2, 1)
    out[...] = np.matmul(left, right).transpose(1, 0, 2).reshape(rows * cols, weight.shape[0])
