"""How a tensor lies in memory, and what a box of it costs to move: bytes and contiguous runs.

A plain layout stores `[batch, heads, rows, cols]` with cols contiguous. A blocked one cuts the columns into blocks (the heads
of attention), pads each to a multiple that the tensor engine reads whole, and puts the block outside the rows:
`[batch, heads, col block, rows, padded block]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npusim.graph import Shape4

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """Column blocking of a tensor.

    Attributes:
        block: columns per block, or 0 for a plain layout.
        padded: columns that a stored block occupies (>= block), or 0.
    """

    block: int = 0
    padded: int = 0


PLAIN = Layout()


def stored_bytes(shape: Shape4, layout: Layout, element_bytes: int) -> int:
    """Bytes of a whole tensor (or of a box that starts on a block) in this layout."""
    batch, heads, rows, cols = shape
    if layout.block:
        blocks = -(-cols // layout.block)
        return batch * heads * blocks * rows * layout.padded * element_bytes
    return batch * heads * rows * cols * element_bytes


def box_bytes_and_runs(tensor: Ints, box: Ints, layout: Ints, element_bytes: Ints) -> tuple[Ints, Ints]:
    """Bytes moved and contiguous runs of boxes.

    Args:
        tensor: [n, 4] shapes of the whole tensors.
        box: [n, 4] shapes of the boxes.
        layout: [n, 2] (block, padded), zeros for plain.
        element_bytes: [n].

    Returns:
        (bytes, runs), each [n]. A run is a stretch of consecutive addresses; padding inside a run is moved with it.

    Source: our own definition; the paper's Table 6 shows Q and K (padded rows) at the rate of S, V and A (80-byte runs) slower.
    """
    box = box.astype(np.int64)  # kept in 32 bits where that is enough; bytes are not
    return _where_blocked(
        _plain(tensor, box, element_bytes), _blocked(tensor, box, layout, element_bytes), layout[:, 0] > 0
    )


def _where_blocked(
    plain: tuple[Ints, Ints], blocked: tuple[Ints, Ints], mask: npt.NDArray[np.bool_]
) -> tuple[Ints, Ints]:
    return np.where(mask, blocked[0], plain[0]), np.where(mask, blocked[1], plain[1])


def _plain(tensor: Ints, box: Ints, element_bytes: Ints) -> tuple[Ints, Ints]:
    size = box.prod(axis=1) * element_bytes
    whole_cols = box[:, 3] == tensor[:, 3]
    whole_rows = whole_cols & (box[:, 2] == tensor[:, 2])
    whole_heads = whole_rows & (box[:, 1] == tensor[:, 1])
    runs = (
        np.where(whole_cols, 1, box[:, 2])
        * np.where(whole_rows, 1, box[:, 1])
        * np.where(whole_heads, 1, box[:, 0])
    )
    return size, runs


def _blocked(tensor: Ints, box: Ints, layout: Ints, element_bytes: Ints) -> tuple[Ints, Ints]:
    block, padded = np.maximum(layout[:, 0], 1), layout[:, 1]
    blocks = -(-box[:, 3] // block)
    whole_block = (box[:, 3] % block == 0) | (box[:, 3] == tensor[:, 3])
    width = np.where(whole_block, padded * blocks, box[:, 3])
    size = box[:, 0] * box[:, 1] * box[:, 2] * width * element_bytes
    per_block = np.where(whole_block, 1, box[:, 2])
    whole_rows = whole_block & (box[:, 2] == tensor[:, 2])
    whole_matrix = whole_rows & (box[:, 3] == tensor[:, 3])  # then the heads lie one after the other
    whole_heads = whole_matrix & (box[:, 1] == tensor[:, 1])
    outer = (
        np.where(whole_rows, 1, blocks)
        * np.where(whole_matrix, 1, box[:, 1])
        * np.where(whole_heads, 1, box[:, 0])
    )
    return size, per_block * outer
