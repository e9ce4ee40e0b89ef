"""A view addresses the same elements as the ONNX value it stands for, whatever chain of operators made it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npusim.passes.view import (
    Groups,
    View,
    concat_cols,
    congruent,
    default_groups,
    is_arranged,
    reshape,
    slice_cols,
    stored,
    transpose,
)

Array = npt.NDArray[Any]
stable = settings(derandomize=True, deadline=None, max_examples=150)


def store(value: Array, groups: Groups) -> Array:
    """A value's data as its tensor stores it: [batch, heads, rows, cols]."""
    order = [d for group in groups for d in group]
    return value.transpose(order).reshape([prod(value.shape[d] for d in group) for group in groups])


def seen(view: View, tensors: Mapping[str, Array]) -> Array:
    """What a view shows of real tensors, by numpy: join the columns, split axes into atoms, put the atoms in order."""
    joined = np.concatenate([tensors[p.tensor][..., p.start : p.start + p.size] for p in view.parts], axis=3)
    atoms = joined.reshape([a.size for a in view.atoms])
    return atoms.transpose([i for dim in view.dims for i in dim]).reshape(view.shape)


@st.composite
def values(draw: st.DrawFn, low: int = 1, high: int = 4) -> tuple[tuple[int, ...], Groups]:
    """A shape and any way to store it."""
    shape = draw(st.lists(st.sampled_from((1, 2, 3, 4, 6)), min_size=low, max_size=high))
    order = draw(st.permutations(range(len(shape))))
    cuts = sorted(draw(st.lists(st.integers(0, len(shape)), min_size=3, max_size=3)))
    groups = tuple(tuple(order[a:b]) for a, b in pairwise((0, *cuts, len(shape))))
    return tuple(shape), (groups[0], groups[1], groups[2], groups[3])


def regrouped(draw: Any, shape: tuple[int, ...]) -> list[int]:
    """Another shape with as many elements: neighbours multiplied together, or a size split in two."""
    sizes = list(shape) or [1]
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(sizes) - 1))
        if draw(st.booleans()) and at + 1 < len(sizes):
            sizes[at : at + 2] = [sizes[at] * sizes[at + 1]]
        else:
            factor = draw(st.sampled_from([f for f in (1, 2, 3, 4) if sizes[at] % f == 0]))
            sizes[at : at + 1] = [factor, sizes[at] // factor]
    return sizes


def step(draw: Any, view: View, value: Array) -> tuple[View | None, Array]:
    """One operator, on the view and on the real data."""
    kind = draw(st.sampled_from(("reshape", "transpose", "slice")))
    if kind == "reshape":
        shape = regrouped(draw, value.shape)
        return reshape(view, shape), value.reshape(shape)
    if kind == "transpose":
        order = draw(st.permutations(range(value.ndim)))
        return transpose(view, order), value.transpose(order)
    axis = draw(st.integers(0, value.ndim - 1))
    start = draw(st.integers(0, value.shape[axis] - 1))
    size = draw(st.integers(1, value.shape[axis] - start))
    return slice_cols(view, axis, start, size), value.take(range(start, start + size), axis)


@stable
@given(st.data(), values())
def test_any_chain_of_reshapes_transposes_and_splits_shows_the_same_elements(
    data: st.DataObject, case: tuple[tuple[int, ...], Groups]
) -> None:
    shape, groups = case
    value = np.arange(prod(shape)).reshape(shape)
    tensors = {"t": store(value, groups)}
    view = stored("t", shape, groups)
    assert np.array_equal(seen(view, tensors), value)
    for _ in range(5):
        found, result = step(data.draw, view, value)
        if found is None:
            continue
        view, value = found, result
        assert view.shape == value.shape
        assert np.array_equal(seen(view, tensors), value)


@stable
@given(st.data(), values(low=2))
def test_a_concatenation_of_views_shows_the_joined_elements(
    data: st.DataObject, case: tuple[tuple[int, ...], Groups]
) -> None:
    """Along the last stored dimension it often is a view; then two slices of it are the two values again."""
    shape, groups = case
    axis = data.draw(st.integers(0, len(shape) - 1))
    other = tuple(data.draw(st.integers(1, 3)) if d == axis else s for d, s in enumerate(shape))
    a = np.arange(prod(shape)).reshape(shape)
    b = 1000 + np.arange(prod(other)).reshape(other)
    tensors = {"a": store(a, groups), "b": store(b, groups)}
    joined = concat_cols([stored("a", shape, groups), stored("b", other, groups)], axis)
    if groups[3] == (axis,) and shape[axis] > 1 and other[axis] > 1:
        assert joined is not None
    if joined is None:
        return
    assert np.array_equal(seen(joined, tensors), np.concatenate([a, b], axis))
    for start, size, expected in ((0, shape[axis], a), (shape[axis], other[axis], b)):
        half = slice_cols(joined, axis, start, size)
        assert half is not None
        assert np.array_equal(seen(half, tensors), expected)


@stable
@given(st.data(), values())
def test_congruent_values_meet_element_by_element_in_storage(
    data: st.DataObject, case: tuple[tuple[int, ...], Groups]
) -> None:
    """Where `congruent` says yes, equal ONNX indices lie at equal storage places (or the axis is broadcast)."""
    shape, groups = case
    small = tuple(data.draw(st.sampled_from((1, s))) for s in shape)
    view, other = stored("x", shape, groups), stored("y", small, groups)
    order = data.draw(st.permutations(range(len(shape))))
    view, other = transpose(view, order), transpose(other, order)
    if not congruent(view, other):
        return
    for axis in range(4):
        place = np.broadcast_to(
            np.arange(view.storage_shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)]),
            view.storage_shape,
        )
        small_place = np.broadcast_to(
            np.arange(other.storage_shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)]),
            other.storage_shape,
        )
        mine, its = seen(view, {"x": place}), seen(other, {"y": small_place})
        if other.storage_shape[axis] > 1:
            assert np.array_equal(mine, np.broadcast_to(its, mine.shape))


@stable
@given(values())
def test_a_value_is_arranged_as_it_was_stored(case: tuple[tuple[int, ...], Groups]) -> None:
    shape, groups = case
    assert is_arranged(stored("t", shape, groups), groups)


@pytest.mark.parametrize(
    ("rank", "image"), [(0, False), (1, False), (2, False), (3, False), (4, False), (3, True), (4, True)]
)
def test_default_storage_places_every_dimension_once(rank: int, image: bool) -> None:
    groups = default_groups(rank, image=image)
    assert sorted(d for group in groups for d in group) == list(range(rank))


def test_the_heads_of_attention_cost_no_copy() -> None:
    """[2, 6, 12] -> [2, 6, 3, 4] -> [2, 3, 6, 4] -> [6, 6, 4], the 3-D spelling, all views of one tensor."""
    value = np.arange(144).reshape(2, 6, 12)
    tensors = {"q": store(value, ((0,), (), (1,), (2,)))}
    view = reshape(stored("q", (2, 6, 12), ((0,), (), (1,), (2,))), (2, 6, 3, 4))
    assert view is not None
    folded = reshape(transpose(view, (0, 2, 1, 3)), (6, 6, 4))
    assert folded is not None
    expected = value.reshape(2, 6, 3, 4).transpose(0, 2, 1, 3).reshape(6, 6, 4)
    assert np.array_equal(seen(folded, tensors), expected)


def test_an_image_becomes_a_sequence_without_a_copy() -> None:
    """Channels last: [1, 8, 4, 6] -> [1, 4, 6, 8] -> [1, 24, 8]."""
    groups: Groups = ((0,), (), (2, 3), (1,))
    value = np.arange(192).reshape(1, 8, 4, 6)
    view = reshape(transpose(stored("x", value.shape, groups), (0, 2, 3, 1)), (1, 24, 8))
    assert view is not None
    assert np.array_equal(
        seen(view, {"x": store(value, groups)}), value.transpose(0, 2, 3, 1).reshape(1, 24, 8)
    )


def test_a_reshape_that_would_mix_storage_axes_up_is_refused() -> None:
    turned = transpose(stored("x", (2, 3), ((), (), (0,), (1,))), (1, 0))
    assert reshape(turned, (6,)) is not None
    assert reshape(turned, (2, 3)) is None
