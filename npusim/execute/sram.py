"""The scratchpad as one byte buffer, with a shadow that knows which access wrote each granule."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npusim.execute.blocks import Array, aligned_copy
from npusim.layout import Layout

#: Unwritten SRAM holds this byte: NaN in floating point.
POISON = 0xFF


class Place(NamedTuple):
    """A buffer seen as elements and as shadow cells, both [b, h, column blocks, rows, padded block].

    Attributes:
        data: stored elements.
        shadow: 1 + the access that wrote each granule, 0 where nothing did; the last axis has `cells` per element.
        block: columns per block.
        start, end: first and past the last byte.
    """

    data: Array
    shadow: npt.NDArray[np.int32]
    block: int
    cells: int
    start: int
    end: int


class Sram:
    """SRAM of the hardware's size.

    Attributes:
        granule: bytes per shadow cell: the smallest element that lives in SRAM.
    """

    def __init__(self, size_bytes: int, granule: int) -> None:
        self.granule = granule
        raw = np.full(size_bytes + 64, POISON, dtype=np.uint8)
        start = -raw.ctypes.data % 64
        self._bytes = raw[start : start + size_bytes]
        self._shadow = np.zeros(-(-size_bytes // granule), dtype=np.int32)

    def place(self, address: int, shape: tuple[int, ...], layout: Layout, dtype: np.dtype[Any]) -> Place:
        """A buffer at `address` that holds a box of this shape.

        Raises:
            IndexError: it reaches beyond the SRAM.
        """
        batch, heads, rows, cols = shape
        block = layout.block or max(cols, 1)
        padded = layout.padded or block
        stored = (batch, heads, -(-cols // block), rows, padded)
        size = int(np.prod(stored, dtype=np.int64)) * dtype.itemsize
        if address < 0 or address + size > len(self._bytes) or address % dtype.itemsize:
            raise IndexError(
                f"bytes {address} to {address + size} do not lie in the SRAM of {len(self._bytes)} bytes"
            )
        cells = dtype.itemsize // self.granule
        data = self._bytes[address : address + size].view(dtype).reshape(stored)
        shadow = self._shadow[address // self.granule : (address + size) // self.granule]
        return Place(data, shadow.reshape(*stored[:4], padded * cells), block, cells, address, address + size)


def box_index(place: Place, low: tuple[int, ...], shape: tuple[int, ...], cells: int) -> tuple[slice, ...]:
    """Index of a box (in buffer coordinates) into a place; `cells` per element (1 for data).

    Raises:
        IndexError: a box that cuts through several column blocks, or lies outside the buffer.
    """
    first, last = low[3] // place.block, (low[3] + shape[3] - 1) // place.block
    start = low[3] - first * place.block
    stop = start + shape[3] if first == last else place.block
    whole = start == 0 and (low[3] + shape[3]) % place.block == 0
    held = place.data.shape
    inside = (
        all(low[a] >= 0 and low[a] + shape[a] <= held[b] for a, b in ((0, 0), (1, 1), (2, 3)))
        and 0 <= first <= last < held[2]
    )
    if not inside or (first != last and not whole):
        raise IndexError(f"box {low} + {shape} does not lie in its buffer of {held} in whole column blocks")
    b, h, r = (slice(low[a], low[a] + shape[a]) for a in (0, 1, 2))
    return b, h, slice(first, last + 1), r, slice(start * cells, stop * cells)


def read_elements(place: Place, index: tuple[slice, ...], shape: tuple[int, ...]) -> Array:
    """An aligned copy of a box, [b, h, r, c]."""
    seen = place.data[index]
    if seen.shape[2] == 1:
        return aligned_copy(seen[:, :, 0])
    return aligned_copy(np.moveaxis(seen, 2, 3)).reshape(shape)


def write_elements(place: Place, index: tuple[slice, ...], values: Array) -> None:
    """Put [b, h, r, c] elements into a box."""
    target = place.data[index]
    if target.shape[2] == 1:
        target[:, :, 0] = values
        return
    batch, heads, blocks, rows, width = target.shape
    target[...] = np.moveaxis(values.reshape(batch, heads, rows, blocks, width), 3, 2)
