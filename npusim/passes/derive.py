"""Constants made of large initializers whose data is not read: which steps lead from one to the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from npusim.onnx_model import Node
from npusim.passes.builder import Builder, Derived

Step = tuple[str, tuple[int, ...]]


def derive(builder: Builder, node: Node) -> bool:
    """Note the outputs of a node that only moves elements of a constant; True if that is all it does."""
    if node.op == "DequantizeLinear":
        return _dequantize(builder, node)
    rule = _RULES.get(node.op)
    if rule is None or not node.inputs or not builder.is_constant(node.inputs[0]):
        return False
    steps = rule(builder, node)
    if steps is None:
        return False
    origin = builder.derived.get(node.inputs[0], Derived(node.inputs[0]))
    for output, step in zip(node.outputs, steps, strict=False):
        builder.derived[output] = replace(origin, steps=(*origin.steps, *step))
    return True


def _dequantize(builder: Builder, node: Node) -> bool:
    """A constant of integers with its scale: one per tensor or per position of one axis."""
    source, scale, zero = (*node.inputs, "")[:3]
    plain = all(not i or i in builder.model.initializers for i in (source, scale, zero))
    if not plain or node.attributes.get("block_size", 0) or len(builder.shape(scale)) > 1:
        return False
    axis = int(node.attributes.get("axis", 1)) if builder.shape(scale) not in ((), (1,)) else 0
    builder.derived[node.outputs[0]] = Derived(source, dequantize=(scale, zero, axis))
    return True


def _reshape(builder: Builder, node: Node) -> list[list[Step]] | None:
    return [[("reshape", builder.shape(node.outputs[0]))]]


def _transpose(builder: Builder, node: Node) -> list[list[Step]] | None:
    rank = len(builder.shape(node.inputs[0]))
    return [[("transpose", tuple(node.attributes.get("perm") or reversed(range(rank))))]]


def _gather(builder: Builder, node: Node) -> list[list[Step]] | None:
    shape, positions = builder.shape(node.inputs[0]), builder.data(node.inputs[1])
    if positions is None or not shape:
        return None
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    taken = ("take", (axis, *(int(p) for p in positions.ravel())))
    return [[taken, ("reshape", builder.shape(node.outputs[0]))]]


def _slice(builder: Builder, node: Node) -> list[list[Step]] | None:
    shape, out = builder.shape(node.inputs[0]), builder.shape(node.outputs[0])
    given = [builder.data(i) if i else None for i in node.inputs[1:]]
    if (
        len(given) < 2
        or given[0] is None
        or (len(given) > 3 and given[3] is not None and (given[3] != 1).any())
    ):
        return None
    starts = [int(s) for s in given[0].ravel()]
    axes = (
        [int(a) for a in given[2].ravel()] if len(given) > 2 and given[2] is not None else range(len(starts))
    )
    steps: list[Step] = []
    for start, named in zip(starts, axes, strict=True):
        axis = named % len(shape)
        first = min(max(start + shape[axis] if start < 0 else start, 0), shape[axis])
        steps.append(("slice", (axis, first, first + out[axis], 1)))
    return [steps]


def _split(builder: Builder, node: Node) -> list[list[Step]] | None:
    axis = int(node.attributes.get("axis", 0)) % len(builder.shape(node.inputs[0]))
    start = 0
    found: list[list[Step]] = []
    for output in node.outputs:
        size = builder.shape(output)[axis]
        found.append([("slice", (axis, start, start + size, 1))])
        start += size
    return found


_RULES: Mapping[str, Callable[[Builder, Node], list[list[Step]] | None]] = {
    "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape,
    "Transpose": _transpose, "Gather": _gather, "Slice": _slice, "Split": _split,
}  # fmt: skip
