"""ONNX nodes become canonical layers: one handler per operator, views instead of data movement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from npusim.errors import ModelError
from npusim.graph import Coverage, Graph, Operand, Tensor, Window
from npusim.onnx_reader import Node, OnnxModel
from npusim.passes.builder import Builder, operand, weight_operand
from npusim.passes.view import (
    Atom,
    Groups,
    View,
    concat_cols,
    congruent,
    default_groups,
    reshape,
    slice_cols,
    stored,
    transpose,
)

_IMAGE: Groups = ((0,), (), (2, 3), (1,))


def canonicalize(model: OnnxModel) -> Graph:
    """Layers of a folded, pattern-fused model; what no handler knows becomes an `unknown` layer and is named."""
    builder = Builder(model=model)
    for name in model.inputs:
        shape = builder.shape(name)
        groups = default_groups(len(shape), image=len(shape) >= 4)
        view = stored(name, shape, groups)
        builder.add_tensor(name, view.storage_shape, "input", source=name, source_shape=shape)
        builder.views[name] = view
    for node in model.nodes:
        handler = _HANDLERS.get(node.op)
        if handler is None or not handler(builder, node):
            _unknown(builder, node)
    return _finish(builder)


def _finish(builder: Builder) -> Graph:
    outputs = [builder.view(value) for value in builder.model.outputs]
    tensors = dict(builder.tensors)
    for view in outputs:
        for part in view.parts:
            if tensors[part.tensor].kind == "intermediate":
                tensors[part.tensor] = replace(tensors[part.tensor], kind="output")
    total = sum(len(n.sources) for n in builder.model.nodes)
    missed = sum(len(v) for v in builder.unmodelled.values())
    coverage = Coverage(
        nodes=total,
        modelled_nodes=total - missed,
        unmodelled={k: tuple(v) for k, v in sorted(builder.unmodelled.items())},
    )
    model = builder.model
    return Graph(
        name=model.name,
        tensors=tensors,
        layers=tuple(builder.layers),
        coverage=coverage,
        inputs=tuple(_window(name, builder.views[name]) for name in model.inputs),
        outputs=tuple(_window(name, view) for name, view in zip(model.outputs, outputs, strict=True)),
        constants=_folded(builder, tensors),
        model_sha256=model.sha256,
        opset=model.opset,
        producer=model.producer,
    )


def _window(name: str, view: View) -> Window:
    atoms = tuple((a.axis, a.size) for a in view.atoms)
    return Window(name=name, shape=view.shape, parts=view.parts, atoms=atoms, dims=view.dims)


def _folded(builder: Builder, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Data of the small constants that weights hold; large ones are in the file only."""
    sources = {t.source for t in tensors.values() if t.kind == "weight"}
    return {name: data for name, data in builder.model.constants.items() if name in sources}


# ---- views only: nothing is computed -------------------------------------------------------------------------------


def _reshape(builder: Builder, node: Node) -> bool:
    view, shape = builder.view(node.inputs[0]), builder.shape(node.outputs[0])
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
    views = [builder.view(i) for i in node.inputs if prod(builder.shape(i))]
    joined = concat_cols(views, axis)
    if joined is not None:
        builder.views[node.outputs[0]] = joined
        return True
    rank = len(builder.shape(node.outputs[0]))
    groups = default_groups(rank, image=False)
    moved = [builder.arranged(node, v, groups) for v in views]
    builder.emit(
        node, "copy", [operand("x" if i == 0 else "residual", v) for i, v in enumerate(moved)],
        stored("", builder.shape(node.outputs[0]), groups), suffix="concat", attributes={"axis": axis, "shapes": tuple(v.shape for v in moved)},
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


# ---- tensor engine -------------------------------------------------------------------------------------------------


def _conv(builder: Builder, node: Node) -> bool:
    shape, kernel = builder.shape(node.inputs[0]), builder.shape(node.inputs[1])
    out = builder.shape(node.outputs[0])
    if len(shape) not in (3, 4) or not builder.is_constant(node.inputs[1]):
        return False
    groups: Groups = _IMAGE if len(shape) == 4 else ((0,), (), (2,), (1,))
    x = builder.arranged(node, builder.view(node.inputs[0]), groups)
    spatial = tuple(range(2, len(kernel)))
    weight = builder.weight(node.inputs[1], kernel, ((), (), (0,), (*spatial, 1)))
    operands = [operand("x", x), weight_operand("weight", builder.tensors[weight]), *_bias(builder, node, 2)]
    builder.emit(
        node, "conv", operands, stored("", out, groups), attributes=_conv_attributes(node, shape, kernel, out)
    )
    return True


def _conv_attributes(
    node: Node, shape: Sequence[int], kernel: Sequence[int], out: Sequence[int]
) -> dict[str, Any]:
    """Spatial attributes as (height, width) pairs; one-dimensional convolutions have width 1."""
    rank = len(shape) - 2

    def pair(values: Sequence[int], missing: int) -> tuple[int, int]:
        return (int(values[0]), int(values[1]) if rank == 2 else missing)

    strides = node.attributes.get("strides", (1,) * rank)
    dilations = node.attributes.get("dilations", (1,) * rank)
    pads = _pads(node, shape[2:], kernel[2:], out[2:], strides, dilations)
    return {
        "in_hw": pair(shape[2:], 1),
        "out_hw": pair(out[2:], 1),
        "kernel": pair(kernel[2:], 1),
        "stride": pair(strides, 1),
        "dilation": pair(dilations, 1),
        "pads": pads,
        "groups": int(node.attributes.get("group", 1)),
    }


def _pads(
    node: Node,
    size: Sequence[int],
    kernel: Sequence[int],
    out: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) padding, resolving `auto_pad`."""
    rank = len(size)
    given = node.attributes.get("pads")
    mode = node.attributes.get("auto_pad", "NOTSET")
    if given is None or mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (o - 1) * s + (k - 1) * d + 1 - n)
            for n, k, o, s, d in zip(size, kernel, out, strides, dilations, strict=True)
        ]
        if mode not in ("SAME_UPPER", "SAME_LOWER"):
            total = [0] * rank
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        given = (*large, *small) if mode == "SAME_LOWER" else (*small, *large)
    if rank == 1:
        return (int(given[0]), 0, int(given[1]), 0)
    return (int(given[0]), int(given[1]), int(given[2]), int(given[3]))


def _bias(builder: Builder, node: Node, index: int) -> list[Operand]:
    if len(node.inputs) <= index or not node.inputs[index]:
        return []
    value = node.inputs[index]
    size = prod(builder.shape(value))
    return [weight_operand("bias", builder.tensors[builder.weight(value, (size,), ((), (), (), (0,)))])]


def _gemm(builder: Builder, node: Node) -> bool:
    if node.attributes.get("alpha", 1.0) != 1.0 or node.attributes.get("beta", 1.0) != 1.0:
        return False
    if node.attributes.get("transA", 0) or not builder.is_constant(node.inputs[1]):
        return False
    outputs_first = bool(node.attributes.get("transB", 0))
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if bias and (
        not builder.is_constant(bias) or prod(builder.shape(bias)) != builder.shape(node.outputs[0])[-1]
    ):
        return False
    return _linear(builder, node, outputs_first=outputs_first, bias=_bias(builder, node, 2))


def _linear(builder: Builder, node: Node, *, outputs_first: bool, bias: list[Operand]) -> bool:
    """x [..., K] times a constant [K, N] (or [N, K])."""
    shape = builder.shape(node.inputs[1])
    if len(shape) != 2:
        return False
    groups: Groups = ((), (), (0,), (1,)) if outputs_first else ((), (), (1,), (0,))
    weight = builder.weight(node.inputs[1], shape, groups)
    outputs = shape[0] if outputs_first else shape[1]
    view = builder.view(node.inputs[0])
    rows = tuple(i for axis in (0, 1, 2) for i in view.axis_atoms(axis))
    if view.dims[-1] != view.axis_atoms(3) or tuple(i for d in view.dims[:-1] for i in d) != rows:
        view = builder.arranged(node, view, default_groups(len(view.dims), image=False))
        rows = tuple(i for axis in (0, 1, 2) for i in view.axis_atoms(axis))
    operands = [operand("x", view), weight_operand("weight", builder.tensors[weight]), *bias]
    builder.emit(node, "linear", operands, _with_cols(view, outputs))
    return True


def _with_cols(view: View, cols: int) -> View:
    """The view with its last dimension, which is all of the columns, replaced by `cols` new ones."""
    keep = [i for i, a in enumerate(view.atoms) if a.axis != 3]
    atoms = (*(view.atoms[i] for i in keep), *((Atom(3, cols),) if cols > 1 else ()))
    return View(parts=(), atoms=atoms, dims=(*view.dims[:-1], (len(keep),) if cols > 1 else ()))


def _matmul(builder: Builder, node: Node) -> bool:
    if builder.is_constant(node.inputs[1]) and len(builder.shape(node.inputs[1])) == 2:
        return _linear(builder, node, outputs_first=False, bias=[])
    a, b = builder.view(node.inputs[0]), builder.view(node.inputs[1])
    if len(a.dims) < 2 or len(b.dims) < 2 or a.shape[:-2] != b.shape[:-2]:
        return False
    x = _factor(a, row_dim=-2, col_dim=-1) or _factor(_to_heads(builder, node, a), row_dim=-2, col_dim=-1)
    keys = _factor(b, row_dim=-1, col_dim=-2)
    y = (
        keys
        or _factor(b, row_dim=-2, col_dim=-1)
        or _factor(_to_heads(builder, node, b), row_dim=-2, col_dim=-1)
    )
    if x is None or y is None:
        return False
    attributes = {"heads": prod(x.heads), "y_rows": "outputs" if keys else "inputs"}
    builder.emit(
        node,
        "matmul",
        [operand("x", x.view), operand("y", y.view)],
        _product_view(x.view, y.view, scores=keys is not None),
        suffix="qk" if keys else "pv",
        attributes=attributes,
    )
    return True


class _Factor:
    """One side of a product of activations: its view, and the sizes of its head atoms."""

    def __init__(self, view: View, heads: tuple[int, ...]) -> None:
        self.view, self.heads = view, heads


def _factor(view: View, *, row_dim: int, col_dim: int) -> _Factor | None:
    """Whether a matrix per head can be read in place: rows on the row axis, heads in the columns or on their own axis."""
    rank = len(view.dims)
    rows, cols = view.dims[row_dim], view.dims[col_dim]
    lead = tuple(i for d in range(rank - 2) for i in view.dims[d])
    batch = view.axis_atoms(0)
    heads = lead[len(batch) :]
    if lead[: len(batch)] != batch or view.axis_atoms(2) != rows:
        return None
    if view.axis_atoms(1) == heads and view.axis_atoms(3) == cols:
        return _Factor(view, tuple(view.atoms[i].size for i in heads))
    if not view.axis_atoms(1) and view.axis_atoms(3) == (*heads, *cols):
        return _Factor(view, tuple(view.atoms[i].size for i in heads))
    return None


def _to_heads(builder: Builder, node: Node, view: View) -> View:
    rank = len(view.dims)
    batch = (0,) if rank > 3 else ()
    heads = tuple(range(len(batch), rank - 2))
    return builder.arranged(node, view, (batch, heads, (rank - 2,), (rank - 1,)))


def _product_view(x: View, y: View, *, scores: bool) -> View:
    """Storage of a product: `[batch, heads, rows, cols]` for scores, `[batch, 1, rows, heads x cols]` otherwise."""
    rank = len(x.dims)
    shape = (*x.shape[:-1], y.shape[-1])
    batch_atoms = set(x.axis_atoms(0))
    batch = tuple(d for d in range(rank - 2) if x.dims[d] and set(x.dims[d]) <= batch_atoms)
    heads = tuple(d for d in range(rank - 2) if d not in batch)
    if scores:
        groups: Groups = (batch, heads, (rank - 2,), (rank - 1,))
    else:
        groups = (batch, (), (rank - 2,), (*heads, rank - 1))
    split = any(set(x.dims[d]) & batch_atoms and not set(x.dims[d]) <= batch_atoms for d in range(rank - 2))
    return stored("", shape, groups) if not split else _split_batch_view(x, y, scores=scores)


def _split_batch_view(x: View, y: View, *, scores: bool) -> View:
    """The same where one ONNX dimension is batch x heads (the 3-D spelling of attention)."""
    batch = prod(x.atoms[i].size for i in x.axis_atoms(0))
    lead = prod(x.shape[:-2])
    shape = (batch, lead // batch, x.shape[-2], y.shape[-1])
    groups: Groups = ((0,), (1,), (2,), (3,)) if scores else ((0,), (), (2,), (1, 3))
    seen = reshape(stored("", shape, groups), (*x.shape[:-1], y.shape[-1]))
    assert seen is not None
    return seen


# ---- vector engine -------------------------------------------------------------------------------------------------


def _unary(function: str) -> Callable[[Builder, Node], bool]:
    def handler(builder: Builder, node: Node) -> bool:
        view = builder.view(node.inputs[0])
        attributes = {
            "function": function,
            **{k: v for k, v in node.attributes.items() if isinstance(v, int | float)},
        }
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
        view = _broadcast_first(builder, node, x)
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


def _broadcast_first(builder: Builder, node: Node, x: str) -> View:
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


def _softmax(builder: Builder, node: Node) -> bool:
    return _over_cols(builder, node, "softmax", node.attributes.get("axis", -1), [], {})


def _layer_norm(builder: Builder, node: Node) -> bool:
    axis = node.attributes.get("axis", -1)
    scale = [o for i in (1, 2) for o in _affine(builder, node, i)]
    return _over_cols(
        builder, node, "layer_norm", axis, scale, {"epsilon": float(node.attributes.get("epsilon", 1e-5))}
    )


def _affine(builder: Builder, node: Node, index: int) -> list[Operand]:
    if len(node.inputs) <= index or not node.inputs[index]:
        return []
    size = prod(builder.shape(node.inputs[index]))
    tensor = builder.tensors[builder.weight(node.inputs[index], (size,), ((), (), (), (0,)))]
    return [weight_operand("scale" if index == 1 else "bias", tensor)]


def _over_cols(
    builder: Builder, node: Node, op: str, axis: int, more: list[Operand], attributes: Mapping[str, Any]
) -> bool:
    """A layer that normalises each row over its columns; `axis` and all later dimensions must be the columns."""
    view = builder.view(node.inputs[0])
    rank = len(view.dims)
    first = axis % rank if rank else 0
    over = (
        tuple(i for d in range(first, rank) for i in view.dims[d]) if op == "layer_norm" else view.dims[first]
    )
    if over != view.axis_atoms(3):
        dims = tuple(range(first, rank)) if op == "layer_norm" else (first,)
        rest = tuple(d for d in range(rank) if d not in dims)
        view = builder.arranged(node, view, ((), (), rest, dims))
    builder.emit(
        node,
        op,
        [operand("x", view), *more],
        view,
        suffix="" if op != "softmax" else "softmax",
        attributes=attributes,
    )
    return True


def _group_norm(builder: Builder, node: Node) -> bool:
    shape = builder.shape(node.inputs[0])
    image: Groups = ((0,), (), tuple(range(2, len(shape))), (1,))
    view = builder.arranged(node, builder.view(node.inputs[0]), image)
    affine = [o for i in (1, 2) for o in _affine(builder, node, i)]
    if any(o.cols not in (shape[1],) for o in affine):
        return False
    attributes = {
        "groups": int(node.attributes["num_groups"]),
        "epsilon": float(node.attributes.get("epsilon", 1e-5)),
    }
    builder.emit(node, "group_norm", [operand("x", view), *affine], view, attributes=attributes)
    return True


def _resize(builder: Builder, node: Node) -> bool:
    shape, out = builder.shape(node.inputs[0]), builder.shape(node.outputs[0])
    if len(shape) != 4 or shape[:2] != out[:2]:
        return False
    old = node.op == "Upsample" or builder.model.opset < 11
    given = node.attributes
    coordinates = "asymmetric" if old else str(given.get("coordinate_transformation_mode", "half_pixel"))
    if coordinates == "tf_crop_and_resize" or given.get("antialias", 0) or given.get("exclude_outside", 0):
        return False
    attributes: dict[str, Any] = {
        "in_hw": shape[2:], "out_hw": out[2:], "mode": given.get("mode", "nearest"), "coordinates": coordinates,
        "nearest": "floor" if old else str(given.get("nearest_mode", "round_prefer_floor")),
        "cubic_a": float(given.get("cubic_coeff_a", -0.75)),
    }  # fmt: skip
    scales = builder.data(node.inputs[2 if not old else 1]) if len(node.inputs) > (1 if old else 2) else None
    if scales is not None and scales.size == 4:
        attributes["scales"] = (float(scales[2]), float(scales[3]))
    view = builder.arranged(node, builder.view(node.inputs[0]), _IMAGE)
    builder.emit(
        node, "resize", [operand("x", view)], stored("", out, _IMAGE), suffix="resize", attributes=attributes
    )
    return True


def _pool(function: str) -> Callable[[Builder, Node], bool]:
    def handler(builder: Builder, node: Node) -> bool:
        shape, out = builder.shape(node.inputs[0]), builder.shape(node.outputs[0])
        if len(shape) != 4 or len([o for o in node.outputs if o]) != 1:
            return False
        view = builder.arranged(node, builder.view(node.inputs[0]), _IMAGE)
        if node.op.startswith("Global"):
            attributes = {
                "in_hw": shape[2:],
                "out_hw": (1, 1),
                "kernel": shape[2:],
                "stride": (1, 1),
                "pads": (0, 0, 0, 0),
            }
        else:
            kernel = (1, 1, *node.attributes["kernel_shape"])
            attributes = _conv_attributes(node, shape, kernel, out)
        attributes["function"] = function
        attributes["count_include_pad"] = int(node.attributes.get("count_include_pad", 0))
        builder.emit(
            node, "pool", [operand("x", view)], stored("", out, _IMAGE), suffix="pool", attributes=attributes
        )
        return True

    return handler


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


def _unknown(builder: Builder, node: Node) -> None:
    """Costed by its bytes on the vector engine, and named in the coverage."""
    builder.unmodelled.setdefault(node.op, []).extend(node.sources)
    views = [builder.view(i) for i in node.inputs if i and prod(builder.shape(i))]
    if not views:
        raise ModelError(
            f"node '{node.name}' ({node.op}) has no run-time input and cannot be folded; npusim cannot place it"
        )
    for number, output in enumerate(o for o in node.outputs if o):
        shape = builder.shape(output)
        groups = default_groups(len(shape), image=len(shape) == 4)
        operands = [operand("x" if i == 0 else "whole", v) for i, v in enumerate(views)]
        builder.emit(
            node, "unknown", operands, stored("", shape, groups), suffix=node.op.lower() + (f".{number}" if number else ""),
            attributes={"onnx_op": node.op, "output": number}, value=output,
        )  # fmt: skip


_UNARY = {
    "Silu": "silu", "Gelu": "gelu", "QuickGelu": "quick_gelu", "Sigmoid": "sigmoid", "Relu": "relu", "Tanh": "tanh",
    "Erf": "erf", "Exp": "exp", "Sin": "sin", "Cos": "cos", "Sqrt": "sqrt", "Reciprocal": "reciprocal", "Neg": "neg",
    "Abs": "abs", "Log": "log", "Softplus": "softplus", "HardSwish": "hard_swish", "HardSigmoid": "hard_sigmoid",
    "LeakyRelu": "leaky_relu", "Elu": "elu", "Floor": "floor", "Ceil": "ceil", "Cast": "cast", "Clip": "clip", "Not": "not",
}  # fmt: skip
_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "Min": "min", "Max": "max", "Equal": "equal",
    "Greater": "greater", "Less": "less", "And": "and", "Or": "or", "PRelu": "prelu",
}  # fmt: skip

_HANDLERS: Mapping[str, Callable[[Builder, Node], bool]] = {
    **{op: _unary(function) for op, function in _UNARY.items()},
    **{op: _binary(function) for op, function in _BINARY.items()},
    "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape,
    "Transpose": _transpose, "Concat": _concat, "Split": _split, "Slice": _slice,
    "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul,
    "Softmax": _softmax, "LayerNormalization": _layer_norm, "GroupNormalization": _group_norm,
    "Resize": _resize, "Upsample": _resize, "Gather": _gather,
    "MaxPool": _pool("max"), "AveragePool": _pool("average"), "GlobalAveragePool": _pool("average"), "GlobalMaxPool": _pool("max"),
}  # fmt: skip
