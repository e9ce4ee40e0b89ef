"""Functions of one or two operands, element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from npusim.graph import Operand
from npusim.onnx_model import Node
from npusim.passes.builder import Builder, operand, weight_operand
from npusim.passes.view import (
    Groups,
    View,
    congruent,
    default_groups,
    reshape,
    stored,
)


def _unary(function: str) -> Callable[[Builder, Node], bool]:
    def handler(builder: Builder, node: Node) -> bool:
        view = builder.view(node.inputs[0])
        attributes = {
            "function": function,
            **{k: v for k, v in node.attributes.items() if isinstance(v, int | float | str)},
        }
        if node.op == "Clip" and not _clip_bounds(builder, node, attributes):
            return False
        builder.emit(node, "elementwise", [operand("x", view)], view, suffix=function, attributes=attributes)
        return True

    return handler


def _clip_bounds(builder: Builder, node: Node, attributes: dict[str, Any]) -> bool:
    """The constant bounds that Clip has as inputs; False if they are computed at run time."""
    for name, value in zip(("min", "max"), node.inputs[1:3], strict=False):
        if value:
            bound = builder.scalar(value)
            if bound is None:
                return False
            attributes[name] = bound
    return True


def _binary(function: str) -> Callable[[Builder, Node], bool]:
    def handler(builder: Builder, node: Node) -> bool:
        if len(node.inputs) != 2:
            return False
        swap = _primary(builder, node) == 1
        x, other = (node.inputs[1], node.inputs[0]) if swap else (node.inputs[0], node.inputs[1])
        view = broadcast(builder, node, x)
        attributes: dict[str, Any] = {"function": function, "swapped": swap}
        factor = builder.scalar(other)
        if factor is not None:
            attributes["value"] = factor
            scale = _scale(function, factor, swap=swap)
            if scale is not None:
                attributes.update(function="scale", value=scale)
            builder.emit(
                node,
                "elementwise",
                [operand("x", view)],
                view,
                suffix=attributes["function"],
                attributes=attributes,
            )
            return True
        view, second_operand = _second_operand(builder, node, view, other)
        builder.emit(
            node,
            "elementwise",
            [operand("x", view), second_operand],
            view,
            suffix=function,
            attributes=attributes,
        )
        return True

    return handler


def _primary(builder: Builder, node: Node) -> int:
    """Which operand has the output's shape: a run-time value if one does, else a constant, else the first."""
    out = builder.shape(node.outputs[0])
    whole = [i for i in (0, 1) if builder.shape(node.inputs[i]) == out]
    return next((i for i in whole if not builder.is_constant(node.inputs[i])), whole[0] if whole else 0)


def broadcast(builder: Builder, node: Node, x: str) -> View:
    """A value as a view of the output's shape; what broadcasting adds is copied."""
    view, out = builder.view(x), builder.shape(node.outputs[0])
    if view.shape == out:
        return view
    groups = default_groups(len(out), image=False)
    padded = reshape(view, (1,) * (len(out) - len(view.dims)) + view.shape)
    assert padded is not None  # adding leading ones never mixes atoms
    target = stored("", out, groups)
    return _expanded(builder, node, target, builder.arranged(node, padded, groups), groups)


def _scale(function: str, factor: float, *, swap: bool) -> float | None:
    """Multiplication by a constant as one factor, or None."""
    if function == "mul":
        return factor
    if function == "div" and not swap and factor:
        return 1.0 / factor
    return None


def _second_operand(builder: Builder, node: Node, view: View, other: str) -> tuple[View, Operand]:
    """The other operand of an elementwise layer, brought into the storage of the first."""
    if builder.is_constant(other):
        return view, _constant_operand(builder, view, other)
    second = builder.view(other)
    if not congruent(view, second):
        rank = len(view.dims)
        groups = default_groups(rank, image=False)
        view = builder.arranged(node, view, groups)
        padded = reshape(second, (1,) * (rank - len(second.dims)) + second.shape)
        assert padded is not None
        second = builder.arranged(node, padded, groups)
        if not congruent(view, second):
            second = _expanded(builder, node, view, second, groups)
    role = "residual" if second.storage_shape == view.storage_shape else "broadcast"
    return view, operand(role, second)


def _expanded(builder: Builder, node: Node, view: View, second: View, groups: Groups) -> View:
    target = f"{node.name}:expanded"
    builder.emit(
        node, "copy", [operand("x", second)], stored("", view.shape, groups), suffix="expand",
        attributes={"expand": view.shape, "shape": second.shape}, value=target,
    )  # fmt: skip
    return builder.views.pop(target)


def _constant_operand(builder: Builder, view: View, value: str) -> Operand:
    """A constant laid out (before deployment, at no cost) as the view it meets: each storage axis whole, or one."""
    shape = builder.shape(value)
    padded = (1,) * (len(view.dims) - len(shape)) + shape
    pieces: list[int] = []
    position: dict[int, int] = {}
    for dim, indices in enumerate(view.dims):
        for i in indices:
            position[i] = len(pieces)
            pieces.append(view.atoms[i].size if padded[dim] != 1 else 1)
        if not indices:
            pieces.append(1)
    order = [[position[i] for i in view.axis_atoms(axis)] for axis in range(4)]
    axis_used = [any(pieces[p] > 1 for p in axis) for axis in order]
    expand = [
        view.atoms[i].size if axis_used[axis] else 1 for axis in range(4) for i in view.axis_atoms(axis)
    ]
    rest = [p for p in range(len(pieces)) if p not in position.values()]
    order[0] = [*rest, *order[0]]
    groups: Groups = (tuple(order[0]), tuple(order[1]), tuple(order[2]), tuple(order[3]))
    name = builder.weight(value, tuple(pieces), groups, [1] * len(rest) + expand)
    tensor = builder.tensors[name]
    role = "residual" if tensor.shape == view.storage_shape else "broadcast"
    return weight_operand(role, tensor)


_UNARY = {
    "Silu": "silu", "Gelu": "gelu", "QuickGelu": "quick_gelu", "Sigmoid": "sigmoid", "Relu": "relu", "Tanh": "tanh",
    "Erf": "erf", "Exp": "exp", "Sin": "sin", "Cos": "cos", "Sqrt": "sqrt", "Reciprocal": "reciprocal", "Neg": "neg",
    "Abs": "abs", "Log": "log", "Softplus": "softplus", "HardSwish": "hard_swish", "HardSigmoid": "hard_sigmoid",
    "LeakyRelu": "leaky_relu", "Elu": "elu", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sign": "sign",
    "Cast": "cast", "IsNaN": "is_nan", "IsInf": "is_inf", "Clip": "clip", "Not": "not", "Swish": "swish",
}  # fmt: skip
_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "Min": "min", "Max": "max", "Equal": "equal",
    "Greater": "greater", "GreaterOrEqual": "greater_equal", "Less": "less", "LessOrEqual": "less_equal",
    "And": "and", "Or": "or", "Xor": "xor", "PRelu": "prelu",
}  # fmt: skip

#: Handlers by operator type: True if the node became layers or views.
ELEMENTWISE: Mapping[str, Callable[[Builder, Node], bool]] = {
    **{op: _unary(function) for op, function in _UNARY.items()},
    **{op: _binary(function) for op, function in _BINARY.items()},
}
