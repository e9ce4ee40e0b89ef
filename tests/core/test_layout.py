"""Bytes and contiguous runs of boxes, against the addresses of their elements written out one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npusim.graph import Shape4
from npusim.layout import PLAIN, Layout, box_bytes_and_runs, stored_bytes

stable = settings(derandomize=True, deadline=None, max_examples=200)


def moved(tensor: Shape4, offset: Shape4, box: Shape4, layout: Layout) -> set[int]:
    """Element addresses that moving a box touches; a block of columns that is moved whole brings its padding along."""
    _, heads, rows, cols = tensor
    found = set()
    for b, h, r, c in product(*(range(o, o + s) for o, s in zip(offset, box, strict=True))):
        if not layout.block:
            found.add(((b * heads + h) * rows + r) * cols + c)
            continue
        blocks = -(-cols // layout.block)
        start = (((b * heads + h) * blocks + c // layout.block) * rows + r) * layout.padded
        found.add(start + c % layout.block)
        if box[3] % layout.block == 0 or box[3] == cols:
            found.update(range(start, start + layout.padded))
    return found


def runs(addresses: set[int]) -> int:
    """Maximal stretches of consecutive addresses."""
    return sum(1 for a in addresses if a - 1 not in addresses)


def counted(tensor: Shape4, box: Shape4, layout: Layout, element_bytes: int = 2) -> tuple[int, int]:
    size, stretches = box_bytes_and_runs(
        np.asarray([tensor]),
        np.asarray([box]),
        np.asarray([(layout.block, layout.padded)]),
        np.asarray([element_bytes]),
    )
    return int(size[0]), int(stretches[0])


@st.composite
def boxes(draw: st.DrawFn, *, deep: bool = True) -> tuple[Shape4, Shape4, Shape4]:
    """A tensor, and offset and shape of a box in it."""
    tensor = tuple(draw(st.integers(1, 4 if deep or a > 1 else 1)) for a in range(4))
    offset = tuple(draw(st.integers(0, s - 1)) for s in tensor)
    box = tuple(draw(st.integers(1, s - o)) for s, o in zip(tensor, offset, strict=True))
    return tensor, offset, box  # type: ignore[return-value]


@stable
@given(boxes())
def test_plain_boxes_have_the_bytes_and_runs_of_their_addresses(case: tuple[Shape4, Shape4, Shape4]) -> None:
    tensor, offset, box = case
    addresses = moved(tensor, offset, box, PLAIN)
    assert counted(tensor, box, PLAIN) == (2 * len(addresses), runs(addresses))


@st.composite
def blocked(draw: st.DrawFn, *, deep: bool) -> tuple[Shape4, Shape4, Shape4, Layout]:
    """A blocked tensor (heads in columns) and a box of whole blocks, or of some columns of one block."""
    block, count = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    layout = Layout(block, block + draw(st.integers(0, 2)))
    shape, offset, box = draw(boxes(deep=deep))
    if draw(st.booleans()):
        first = draw(st.integers(0, count - 1))
        start, width = first * block, draw(st.integers(1, count - first)) * block
    else:
        start, width = draw(st.integers(0, count - 1)) * block, draw(st.integers(1, block))
    return (*shape[:3], count * block), (*offset[:3], start), (*box[:3], width), layout


@stable
@given(blocked(deep=False))
def test_blocked_boxes_have_the_bytes_and_runs_of_their_addresses(
    case: tuple[Shape4, Shape4, Shape4, Layout],
) -> None:
    tensor, offset, box, layout = case
    addresses = moved(tensor, offset, box, layout)
    assert counted(tensor, box, layout) == (2 * len(addresses), runs(addresses))


def test_whole_blocked_heads_that_lie_one_after_the_other_are_one_run() -> None:
    """Scores of a cross-attention, 77 keys padded to 80, two heads of a tile, all queries."""
    tensor: Shape4 = (1, 8, 4, 77)
    box: Shape4 = (1, 2, 4, 77)
    addresses = moved(tensor, (0, 2, 0, 0), box, Layout(77, 80))
    assert counted(tensor, box, Layout(77, 80)) == (2 * len(addresses), runs(addresses))


@stable
@given(blocked(deep=True))
def test_blocked_runs_are_never_fewer_than_there_are(case: tuple[Shape4, Shape4, Shape4, Layout]) -> None:
    tensor, offset, box, layout = case
    addresses = moved(tensor, offset, box, layout)
    size, stretches = counted(tensor, box, layout)
    assert size == 2 * len(addresses)
    assert stretches >= runs(addresses)


@stable
@given(boxes(), st.integers(1, 4), st.integers(0, 3))
def test_stored_bytes_reach_past_the_last_element(
    case: tuple[Shape4, Shape4, Shape4], block: int, padding: int
) -> None:
    tensor, _, _ = case
    for layout in (PLAIN, Layout(block, block + padding)):
        last = max(moved(tensor, (0, 0, 0, 0), tensor, layout))
        assert stored_bytes(tensor, layout, 2) == 2 * (last + 1)


@pytest.mark.parametrize(
    ("tensor", "box", "layout", "expected"),
    [
        ((1, 1, 4096, 320), (1, 1, 4096, 40), PLAIN, (4096 * 80, 4096)),  # V of one head: 80-byte runs
        ((1, 1, 4096, 320), (1, 1, 4096, 40), Layout(40, 64), (4096 * 128, 1)),  # K of one head, padded to 64
        ((1, 1, 4096, 320), (1, 1, 256, 40), Layout(40, 64), (256 * 128, 1)),  # Q of one tile
        ((1, 8, 4096, 4096), (1, 1, 256, 4096), PLAIN, (2 * 2**20, 1)),  # rows of scores
        ((1, 1, 4096, 320), (1, 1, 4096, 320), PLAIN, (4096 * 640, 1)),
    ],
)
def test_boxes_of_the_64x64_attention(
    tensor: Shape4, box: Shape4, layout: Layout, expected: tuple[int, int]
) -> None:
    assert counted(tensor, box, layout) == expected
