"""Nodes that work on rows: softmax, norms, and rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from npusim.errors import ModelError
from npusim.graph import Operand
from npusim.onnx_model import Node
from npusim.passes.builder import Builder, operand, weight_operand
from npusim.passes.view import (
    Groups,
    default_groups,
    stored,
)


def _softmax(builder: Builder, node: Node) -> bool:
    """Before operator set 13 the rows are all dimensions from `axis` on."""
    old = builder.model.opset < 13
    attributes = {"zero_if_masked": True} if node.attributes.get("zero_if_masked", 0) else {}
    axis = node.attributes.get("axis", 1 if old else -1)
    return _over_cols(builder, node, "softmax", axis, [], attributes, to_end=old)


def _layer_norm(builder: Builder, node: Node) -> bool:
    axis = node.attributes.get("axis", -1)
    scale = [o for i in (1, 2) for o in _affine(builder, node, i)]
    return _over_cols(
        builder, node, "layer_norm", axis, scale, {"epsilon": float(node.attributes.get("epsilon", 1e-5))},
        to_end=True,
    )  # fmt: skip


def _affine(builder: Builder, node: Node, index: int) -> list[Operand]:
    if len(node.inputs) <= index or not node.inputs[index]:
        return []
    size = prod(builder.shape(node.inputs[index]))
    tensor = builder.tensors[builder.weight(node.inputs[index], (size,), ((), (), (), (0,)))]
    return [weight_operand("scale" if index == 1 else "bias", tensor)]


def _over_cols(
    builder: Builder, node: Node, op: str, axis: int, more: list[Operand], attributes: Mapping[str, Any], *, to_end: bool
) -> bool:  # fmt: skip
    """A layer that normalises each row over its columns: dimension `axis`, and all later ones if `to_end`."""
    view = builder.view(node.inputs[0])
    rank = len(view.dims)
    if not -rank <= axis < max(rank, 1):
        raise ModelError(
            f"{builder.model.name}: node '{node.name}' ({node.op}) has axis {axis}, its input has {rank} dimensions; "
            "export the model again"
        )
    first = axis % rank if rank else 0
    dims = tuple(range(first, rank)) if to_end else (first,)[:rank]
    if tuple(i for d in dims for i in view.dims[d]) != view.axis_atoms(3):
        rest = tuple(d for d in range(rank) if d not in dims)
        view = builder.arranged(node, view, ((), (), rest, dims))
    suffix = "softmax" if op == "softmax" else ""
    builder.emit(node, op, [operand("x", view), *more], view, suffix=suffix, attributes=attributes)
    return True


def _group_norm(builder: Builder, node: Node) -> bool:
    """GroupNormalization, or InstanceNormalization: one group per channel."""
    shape = builder.shape(node.inputs[0])
    image: Groups = ((0,), (), tuple(range(2, len(shape))), (1,))
    affine = [o for i in (1, 2) for o in _affine(builder, node, i)]
    groups = int(node.attributes.get("num_groups", shape[1]))
    if groups < 1 or shape[1] % groups:
        raise ModelError(
            f"{builder.model.name}: node '{node.name}' ({node.op}) cuts {shape[1]} channels into {groups} groups; "
            "the number of groups must divide the channels; export the model again"
        )
    if any(o.cols != shape[1] for o in affine):
        return False
    view = builder.arranged(node, builder.view(node.inputs[0]), image)
    attributes = {"groups": groups, "epsilon": float(node.attributes.get("epsilon", 1e-5))}
    builder.emit(node, "group_norm", [operand("x", view), *affine], view, attributes=attributes)
    return True


def _gather(builder: Builder, node: Node) -> bool:
    """Rows of a constant table (an embedding)."""
    if (
        not builder.is_constant(node.inputs[0])
        or builder.is_constant(node.inputs[1])
        or node.attributes.get("axis", 0) != 0
    ):
        return False
    table = builder.shape(node.inputs[0])
    if len(table) != 2:
        return False
    weight = builder.weight(node.inputs[0], table, ((), (), (0,), (1,)))
    out = builder.shape(node.outputs[0])
    groups = default_groups(len(out), image=False)
    index = builder.view(node.inputs[1])
    operands = [operand("x", index), weight_operand("table", builder.tensors[weight])]
    builder.emit(node, "gather", operands, stored("", out, groups), suffix="gather")
    return True


#: Handlers by operator type: True if the node became layers or views.
NORMS: Mapping[str, Callable[[Builder, Node], bool]] = {
    "Softmax": _softmax, "LayerNormalization": _layer_norm, "GroupNormalization": _group_norm,
    "InstanceNormalization": _group_norm, "Gather": _gather,
}  # fmt: skip
