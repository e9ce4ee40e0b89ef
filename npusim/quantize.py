"""Number formats of stored tensors, and the arithmetic of symmetric quantization. Pure: arrays in, arrays out.

A stored integer `q` stands for `q * scale`. Weights have one scale per output channel (row of the stored matrix), activations
one per tensor. There are no zero points, so padding and zero products stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from npusim.errors import BadInputError, NpusimError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

#: Largest magnitude of each integer type in symmetric use (-128 and -32768 are left out, so that negation is exact).
LIMITS = {"int8": 127, "int16": 32767, "int32": 2**31 - 1}
#: Conversions go through arrays of this many elements, which stay in the cache.
CHUNK_ELEMENTS = 1 << 15
#: float64 adds integers exactly below this.
EXACT_BITS = 53
#: A bias uses at most this many bits beside the sign, so that it never fills a 32-bit accumulator.
BIAS_BITS = 30


class AccumulatorOverflowError(NpusimError):
    """A sum does not fit the accumulator of the tensor engine."""


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """How the elements of a tensor are stored.

    Attributes:
        dtype: `fp32`, `fp16`, `int8`, `int16`, `int32`.
        scale: value of one integer step: one number, [rows, 1] (one per output channel of a weight) or [1, cols] (a bias);
            None for floating point and for integers that stand for themselves (indices).
    """

    dtype: str
    scale: float | Doubles | None = None

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type of the stored elements."""
        return np.dtype(_NUMPY[self.dtype])

    @property
    def is_integer(self) -> bool:
        """Whether elements are quantized."""
        return self.scale is not None


_NUMPY = {"fp32": "float32", "fp16": "float16", "int8": "int8", "int16": "int16", "int32": "int32"}
FP32 = Format("fp32")


def encode(values: Array, form: Format) -> Array:
    """Real values as stored elements: rounded half to even, saturated.

    Args:
        values: [b, h, r, c] floating point; with several scales, r or c matches them.
    """
    if form.scale is None:
        if form.dtype == "fp32" and values.dtype == np.float32:
            return np.ascontiguousarray(values)
        if form.dtype.startswith("fp"):
            with np.errstate(over="ignore"):
                return np.ascontiguousarray(values, dtype=form.numpy)
        return np.rint(values).astype(form.numpy)
    result = np.empty(values.shape, dtype=form.numpy)
    step = max(1, CHUNK_ELEMENTS // max(1, values.shape[3]))
    per_row = isinstance(form.scale, np.ndarray) and len(form.scale) > 1
    for batch, head in np.ndindex(*values.shape[:2]):
        for row in range(0, values.shape[2], step):
            rows = slice(row, row + step)
            scale = form.scale[rows] if per_row and isinstance(form.scale, np.ndarray) else form.scale
            result[batch, head, rows] = saturate(values[batch, head, rows] / np.float64(scale), form.dtype)
    return result


def decode(stored: Array, form: Format, rows: slice | None = None) -> Floats:
    """Stored elements as FP32 values; `rows` says which rows of a tensor with one scale per row these are."""
    if form.scale is None:
        return np.asarray(stored, dtype=np.float32)
    scale = form.scale
    if isinstance(scale, np.ndarray) and rows is not None and len(scale) > 1:
        scale = scale[rows]
    return np.asarray(stored * np.asarray(scale, dtype=np.float64), dtype=np.float32)


def saturate(values: Doubles, dtype: str) -> Array:
    """Rounded half to even and clipped to the symmetric range of an integer type; overwrites `values`."""
    limit = LIMITS[dtype]
    np.rint(values, out=values)
    np.clip(values, -limit, limit, out=values)
    return values.astype(_NUMPY[dtype])


def requantize(accumulator: Doubles, factor: float | Doubles, dtype: str) -> Array:
    """Accumulators [b, h, r, c] times a factor (of the tensor, or [c] one per output channel) as stored integers."""
    result = np.empty(accumulator.shape, dtype=_NUMPY[dtype])
    step = max(1, CHUNK_ELEMENTS // max(1, accumulator.shape[-1]))
    flat, target = accumulator.reshape(-1, accumulator.shape[-1]), result.reshape(-1, accumulator.shape[-1])
    for row in range(0, len(flat), step):
        target[row : row + step] = saturate(flat[row : row + step] * factor, dtype)
    return result


def scale_for(largest: float, dtype: str) -> float:
    """Scale under which the magnitude `largest` is the largest integer; 1 for a tensor that is all zero."""
    return largest / LIMITS[dtype] if largest > 0 else 1.0


def row_scales(values: Array, dtype: str, floor: Doubles | None = None) -> Doubles:
    """One symmetric scale per row (output channel) of a weight.

    Args:
        values: [1, 1, rows, depth].
        floor: [rows] smallest allowed scales (so that biases fit 32 bits), or None.

    Returns:
        [rows, 1]. An all-zero row has its floor as scale, or 1.

    Raises:
        BadInputError: a value is not finite.
    """
    largest = np.maximum(values.max(axis=(0, 1, 3)), -values.min(axis=(0, 1, 3))).astype(np.float64)
    require_finite(largest, "the weights")
    scales = largest / LIMITS[dtype]
    if floor is not None:
        scales = np.maximum(scales, floor)
    return np.where(scales > 0, scales, 1.0)[:, None]


def bias_floor(bias: Array, x_scale: float) -> Doubles:
    """[rows] smallest weight scales under which the bias fits `BIAS_BITS` bits at accumulator scale."""
    return np.abs(bias.ravel()).astype(np.float64) / (x_scale * 2.0**BIAS_BITS)


def require_finite(values: Any, what: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        BadInputError: with the number of offending values.
    """
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise BadInputError(
            f"{what}: {bad} of {np.size(values)} values are NaN or infinite; finite numbers are needed; check the export"
        )


def require_exact(depth: int, left: Array, right: Array, where: str) -> None:
    """Refuse products whose sums float64 could round: depth x max|left| x max|right| must stay below 2^53.

    Raises:
        AccumulatorOverflowError: the bound is broken.
    """
    if depth * _most(left) * _most(right) < 2**EXACT_BITS:
        return
    bound = depth * _largest(left) * _largest(right)
    if bound >= 2**EXACT_BITS:
        raise AccumulatorOverflowError(
            f"{where}: {depth} products may need {bound.bit_length()} bits, {EXACT_BITS} are summed exactly; use narrower operands"
        )


def check_accumulator(accumulator: Doubles, bits: int, where: str) -> None:
    """Refuse sums that do not fit a signed accumulator of `bits` bits.

    Wrapped intermediate sums are harmless in two's complement, so only final sums count.

    Raises:
        AccumulatorOverflowError: overflow is an error here, never a wrap.
    """
    largest = _largest(accumulator)
    if largest >= 2 ** (bits - 1):
        raise AccumulatorOverflowError(
            f"{where}: a sum of {largest} needs {largest.bit_length() + 1} bits, the accumulator has {bits}; "
            "use a narrower precision for this layer or an NPU with wider accumulators"
        )


def _most(values: Array) -> int:
    """Largest magnitude that the type of an array can hold, or the array's own where it is no narrow integer."""
    return (
        1 << 8 * values.itemsize - 1
        if values.dtype.kind == "i" and values.itemsize <= 2
        else _largest(values)
    )


def _largest(values: Array) -> int:
    return max(int(values.max()), -int(values.min())) if values.size else 0
