"""Matrix products: linear maps by a constant, and products of two activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from npusim.errors import ModelError
from npusim.graph import Operand
from npusim.onnx_model import Node
from npusim.passes.builder import Builder, operand, weight_operand
from npusim.passes.view import (
    Atom,
    Groups,
    View,
    default_groups,
    reshape,
    stored,
)


def bias_operands(builder: Builder, node: Node, index: int) -> list[Operand]:
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
    return _linear(builder, node, outputs_first=outputs_first, bias=bias_operands(builder, node, 2))


def _linear(builder: Builder, node: Node, *, outputs_first: bool, bias: list[Operand]) -> bool:
    """x [..., K] times a constant [K, N] (or [N, K])."""
    shape = builder.shape(node.inputs[1])
    if len(shape) != 2:
        return False
    groups: Groups = ((), (), (0,), (1,)) if outputs_first else ((), (), (1,), (0,))
    weight = builder.weight(node.inputs[1], shape, groups)
    outputs, depth = (shape[0], shape[1]) if outputs_first else (shape[1], shape[0])
    if builder.shape(node.inputs[0])[-1] != depth:
        raise ModelError(
            f"{builder.model.name}: node '{node.name}' ({node.op}) multiplies {list(builder.shape(node.inputs[0]))} by a weight "
            f"of shape {list(shape)}; their depths must agree; export the model again"
        )
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


#: Handlers by operator type: True if the node became layers or views.
PRODUCTS: Mapping[str, Callable[[Builder, Node], bool]] = {"Gemm": _gemm, "MatMul": _matmul}
