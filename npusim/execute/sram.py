"""The scratchpad as one byte buffer, with a shadow that knows which access wrote each granule."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npusim.execute.blocks import ALIGNMENT_BYTES, Array
from npusim.layout import Layout

#: Unwritten SRAM holds this byte: NaN in floating point.
POISON = 0xFF

#: A box within a place: batch, heads, column blocks, rows, columns of a block.
Index = tuple[slice, slice, slice, slice, slice]


class Place:
    """A buffer seen as elements and as shadow cells, both [b, h, column blocks, rows, padded block].

    Attributes:
        data: stored elements.
        block: columns per block.
        cells: shadow cells per element.
        start, end: first and past the last byte.
    """

    __slots__ = ("_shadow", "block", "cells", "cols", "data", "end", "seen", "start")

    def __init__(
        self, data: Array, shadow: npt.NDArray[np.int32], block: int, cols: int, start: int, end: int
    ) -> None:
        self.data, self._shadow, self.block, self.cols = data, shadow, block, cols
        self.cells = len(shadow) // max(1, data.size)
        self.start, self.end = start, end
        self.seen = data.view()
        self.seen.flags.writeable = False

    @property
    def shadow(self) -> npt.NDArray[np.int32]:
        """1 + the access that wrote each granule, 0 where nothing did; the last axis has `cells` per element."""
        return self._shadow.reshape(*self.data.shape[:4], -1)

    def read(self, low: tuple[int, ...], shape: tuple[int, ...]) -> Array:
        """A box, [b, h, r, c]: a read-only view where the columns lie in one block, else a copy."""
        index = box_index(self, low, shape, 1)
        found = self.seen[index]
        if found.shape[2] == 1:
            return found[:, :, 0]
        return np.moveaxis(found, 2, 3).reshape(shape)

    def whole(self, shape: tuple[int, ...]) -> Array:
        """Everything that the place holds, as `read`."""
        if self.data.shape[2] == 1:
            return self.seen[:, :, 0, :, : shape[3]]
        return self.read((0, 0, 0, 0), shape)

    def write(self, low: tuple[int, ...], shape: tuple[int, ...], values: Array) -> None:
        """Put [b, h, r, c] elements into a box."""
        target = self.data[box_index(self, low, shape, 1)]
        if target.shape[2] == 1:
            target[:, :, 0] = values
            return
        batch, heads, blocks, rows, width = target.shape
        target[...] = np.moveaxis(values.reshape(batch, heads, rows, blocks, width), 3, 2)

    def mark(self, low: tuple[int, ...], shape: tuple[int, ...], number: int) -> None:
        """Write a number into the shadow of a box."""
        self.shadow[box_index(self, low, shape, self.cells)] = number

    def marks(self, low: tuple[int, ...], shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
        """Shadow of a box."""
        return self.shadow[box_index(self, low, shape, self.cells)]


class Sram:
    """SRAM of the hardware's size.

    Attributes:
        granule: bytes per shadow cell: the smallest element that lives in SRAM.
    """

    def __init__(self, size_bytes: int, granule: int) -> None:
        self.granule = granule
        raw = np.full(size_bytes + ALIGNMENT_BYTES, POISON, dtype=np.uint8)
        start = -raw.ctypes.data % ALIGNMENT_BYTES
        self._bytes = raw[start : start + size_bytes]
        self._shadow = np.zeros(-(-size_bytes // granule), dtype=np.int32)

    def place(self, address: int, shape: tuple[int, ...], layout: Layout, dtype: np.dtype[Any]) -> Place:
        """A buffer at `address` that holds a box of this shape.

        Raises:
            IndexError: it reaches beyond the SRAM.
        """
        batch, heads, rows, cols = shape
        block = layout.block or max(cols, 1)
        stored = (batch, heads, -(-cols // block), rows, layout.padded or block)
        size = stored[0] * stored[1] * stored[2] * stored[3] * stored[4] * dtype.itemsize
        if address < 0 or address + size > len(self._bytes) or address % dtype.itemsize:
            raise IndexError(
                f"bytes {address} to {address + size} do not lie in the SRAM of {len(self._bytes)} bytes"
            )
        data: Array = np.ndarray(stored, dtype, self._bytes, address)
        shadow = self._shadow[address // self.granule : (address + size) // self.granule]
        return Place(data, shadow, block, cols, address, address + size)


def box_index(place: Place, low: tuple[int, ...], shape: tuple[int, ...], cells: int) -> Index:
    """Index of a box (in buffer coordinates) into a place; `cells` per element (1 for data).

    Raises:
        IndexError: a box that cuts through several column blocks, or lies outside the buffer.
    """
    block = place.block
    first, last = low[3] // block, (low[3] + shape[3] - 1) // block
    start = low[3] - first * block
    stop = start + shape[3] if first == last else block
    batch, heads, blocks, rows, _ = place.data.shape
    b, h, r = low[0] + shape[0], low[1] + shape[1], low[2] + shape[2]
    inside = min(low) >= 0 and b <= batch and h <= heads and r <= rows and 0 <= first <= last < blocks
    if not inside or (first != last and (start or (low[3] + shape[3]) % block)):
        raise IndexError(
            f"box {low} + {shape} does not lie in its buffer of {place.data.shape} in whole column blocks"
        )
    return (
        slice(low[0], b), slice(low[1], h), slice(first, last + 1), slice(low[2], r), slice(start * cells, stop * cells),
    )  # fmt: skip
