"""Nodes that move data without computing: views of stored tensors where they can be, copies where they must."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from npusim.errors import ModelError
from npusim.onnx_model import Node
from npusim.passes.builder import Builder, operand
from npusim.passes.elementwise import broadcast
from npusim.passes.view import (
    View,
    concat_cols,
    default_groups,
    reshape,
    slice_cols,
    stored,
    transpose,
)


def _reshape(builder: Builder, node: Node) -> bool:
    view, shape = builder.view(node.inputs[0]), builder.shape(node.outputs[0])
    if prod(shape) != prod(view.shape):
        raise ModelError(
            f"{builder.model.name}: node '{node.name}' ({node.op}) makes shape {list(shape)} of {list(view.shape)}; "
            "the number of elements must stay; export the model again"
        )
    seen = reshape(view, shape)
    if seen is None:
        rank = len(view.dims)
        moved = builder.arranged(node, view, default_groups(rank, image=False))
        seen = reshape(moved, shape)
    if seen is None:
        return False
    builder.views[node.outputs[0]] = seen
    return True


def _transpose(builder: Builder, node: Node) -> bool:
    view = builder.view(node.inputs[0])
    permutation = node.attributes.get("perm") or tuple(reversed(range(len(view.dims))))
    builder.views[node.outputs[0]] = transpose(view, permutation)
    return True


def _concat(builder: Builder, node: Node) -> bool:
    axis = node.attributes["axis"] % len(builder.shape(node.outputs[0]))
    values = [i for i in node.inputs if prod(builder.shape(i))]
    rank = len(builder.shape(node.outputs[0]))
    joined = None
    if not any(builder.is_constant(i) for i in values):
        joined = concat_cols([builder.view(i) for i in values], axis)
    if joined is None and rank >= 4 and axis == 1:  # channels of images join as columns
        images = default_groups(rank, image=True)
        joined = concat_cols([builder.placed(node, i, images) for i in values], axis)
    groups = default_groups(rank, image=False)
    if joined is None:
        moved = [builder.placed(node, i, groups) for i in values]
        joined = concat_cols(moved, axis)
    if joined is not None:
        builder.views[node.outputs[0]] = joined
        return True
    builder.emit(
        node, "copy", [operand("x" if i == 0 else "residual", v) for i, v in enumerate(moved)],
        stored("", builder.shape(node.outputs[0]), groups), suffix="concat",
        attributes={"axis": axis, "shapes": tuple(v.shape for v in moved)},
    )  # fmt: skip
    return True


def _split(builder: Builder, node: Node) -> bool:
    view = builder.view(node.inputs[0])
    axis = node.attributes.get("axis", 0) % len(view.dims)
    start = 0
    for output in node.outputs:
        size = builder.shape(output)[axis]
        _take(builder, node, view, axis, start, size, output)
        start += size
    return True


def _slice(builder: Builder, node: Node) -> bool:
    view, shape = builder.view(node.inputs[0]), builder.shape(node.inputs[0])
    given = [builder.data(i) if i else None for i in node.inputs[1:]]
    if not given:
        starts, axes, steps = node.attributes["starts"], node.attributes.get("axes"), None
    elif given[0] is None:
        return False
    else:
        starts = given[0].ravel()
        axes = given[2].ravel() if len(given) > 2 and given[2] is not None else None
        steps = given[3].ravel() if len(given) > 3 and given[3] is not None else None
    if steps is not None and any(s != 1 for s in steps):
        return False
    out, value = builder.shape(node.outputs[0]), node.inputs[0]
    changed = [(int(axes[i]) % len(shape) if axes is not None else i, int(s)) for i, s in enumerate(starts)]
    changed = [(a, s + shape[a] if s < 0 else s) for a, s in changed if out[a] != shape[a]]
    if not changed:
        builder.views[node.outputs[0]] = view
        return True
    for n, (axis, start) in enumerate(changed):
        target = node.outputs[0] if n == len(changed) - 1 else f"{value}:{node.name}:{n}"
        _take(builder, node, view, axis, start, out[axis], target)
        view = builder.views[target]
    return True


def _take(builder: Builder, node: Node, view: View, axis: int, start: int, size: int, output: str) -> None:
    """Elements `[start, start + size)` of one dimension: a view of columns where it can be, else a copy."""
    seen = slice_cols(view, axis, start, size)
    if seen is None:
        groups = default_groups(len(view.dims), image=False)
        moved = builder.arranged(node, view, groups)
        shape = tuple(size if d == axis else s for d, s in enumerate(view.shape))
        builder.emit(
            node, "copy", [operand("x", moved)], stored("", shape, groups), suffix="slice",
            attributes={"axis": axis, "start": start, "shape": moved.shape}, value=output,
        )  # fmt: skip
    else:
        builder.views[output] = seen


def _expand(builder: Builder, node: Node) -> bool:
    builder.views[node.outputs[0]] = broadcast(builder, node, node.inputs[0])
    return True


def _same(builder: Builder, node: Node) -> bool:
    """Identity, and Dropout outside training: another name for the value."""
    if len([o for o in node.outputs if o]) != 1 or (
        len(node.inputs) > 2 and builder.scalar(node.inputs[2]) != 0.0
    ):
        return False
    builder.views[node.outputs[0]] = builder.view(node.inputs[0])
    return True


#: Handlers by operator type: True if the node became layers or views.
MOVES: Mapping[str, Callable[[Builder, Node], bool]] = {
    "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape,
    "Transpose": _transpose, "Concat": _concat, "Split": _split, "Slice": _slice, "Expand": _expand,
    "Identity": _same, "Dropout": _same,
}  # fmt: skip
