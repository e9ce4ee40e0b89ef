"""Blocks of tensors as arrays: what commands read and write, and how they are joined, split into heads and aligned."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npusim.graph import Shape4

Array = npt.NDArray[Any]

#: Operands are copied to buffers of this alignment, so that vector units see the same bytes in the same lanes every time.
ALIGNMENT_BYTES = 64


class Block(NamedTuple):
    """A box of a tensor with its stored values.

    Attributes:
        data: [batch, heads, rows, cols].
        origin: where the values come from; blocks of equal origins hold equal values. None if unknown.
    """

    tensor: str
    offset: Shape4
    data: Array
    origin: Hashable = None


def aligned_empty(shape: Sequence[int], dtype: Any) -> Array:
    """An uninitialised contiguous array that starts at a multiple of `ALIGNMENT_BYTES`."""
    kind = np.dtype(dtype)
    size = prod(shape) * kind.itemsize
    raw = np.empty(size + ALIGNMENT_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    result: Array = raw[start : start + size].view(kind).reshape(shape)
    return result


_scratch = threading.local()


def scratch(shape: Sequence[int], dtype: Any, purpose: str) -> Array:
    """Like `aligned_empty`, but the same memory for the same purpose in the same thread each time: gone with the next call."""
    size = prod(shape) * np.dtype(dtype).itemsize
    held: Array | None = getattr(_scratch, purpose, None)
    if held is None or held.size < size:
        held = aligned_empty((size,), np.uint8)
        setattr(_scratch, purpose, held)
    return np.ndarray(tuple(shape), dtype, held)


def aligned_copy(values: Array, dtype: Any = None) -> Array:
    """A contiguous aligned copy."""
    result = aligned_empty(values.shape, dtype or values.dtype)
    result[...] = values
    return result


def joined(arrays: Sequence[Array]) -> Array:
    """Parts of an operand side by side along the columns."""
    if len(arrays) == 1:
        return arrays[0]
    rows = max(a.shape[2] for a in arrays)
    return np.concatenate([np.broadcast_to(a, (*a.shape[:2], rows, a.shape[3])) for a in arrays], axis=3)


def stacked(blocks: Sequence[Block]) -> list[Block]:
    """The same blocks, those joined that hold consecutive rows of the same columns of one tensor (a halo kept from the tile before)."""
    found: list[Block] = []
    for block in blocks:
        last = found[-1] if found else None
        if last is not None and _continues(last, block):
            rows = np.concatenate([last.data, block.data], axis=2)
            origins = (last.origin, block.origin)
            found[-1] = Block(last.tensor, last.offset, rows, None if None in origins else origins)
        else:
            found.append(block)
    return found


def _continues(one: Block, other: Block) -> bool:
    """Whether `other` holds the rows after `one`."""
    b, h, r, c = one.offset
    same = one.data.shape[:2] == other.data.shape[:2] and one.data.shape[3] == other.data.shape[3]
    return one.tensor == other.tensor and same and other.offset == (b, h, r + one.data.shape[2], c)


def split_heads(values: Array, heads: int) -> Array:
    """[b, 1, r, heads x w] or [b, heads, r, w] as [b, heads, r, w]."""
    batch, own, rows, cols = values.shape
    if own == heads:
        return values
    return values.reshape(batch, rows, heads, cols // heads).transpose(0, 2, 1, 3)


def merge_heads(values: Array, shape: Shape4) -> Array:
    """[b, heads, r, w] as the output stores it: as it is, or with the heads side by side in the columns."""
    if values.shape == tuple(shape):
        return values
    return values.transpose(0, 2, 1, 3).reshape(shape)
