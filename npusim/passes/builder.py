"""The half-built graph that the canonical pass writes into: values as views, layers in order, unique names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from npusim.errors import ModelError
from npusim.graph import Layer, Operand, Packing, Part, Shape4, Tensor, TensorKind
from npusim.onnx_model import Array, Node, OnnxModel
from npusim.passes.view import Groups, View, default_groups, is_arranged, stored


@dataclass(frozen=True, slots=True)
class Derived:
    """A constant that the model makes of one initializer by moving its elements."""

    source: str
    steps: tuple[tuple[str, tuple[int, ...]], ...] = ()
    dequantize: tuple[str, str, int] | None = None


@dataclass(slots=True)
class Builder:
    """Collects tensors and layers while ONNX nodes are visited in order.

    Attributes:
        model: what is being read.
        views: how each run-time value looks into a stored tensor.
        derived: constants that are made of initializers without data, by name.
        unmodelled: operator type -> names of nodes costed only by their bytes.
    """

    model: OnnxModel
    views: dict[str, View] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    derived: dict[str, Derived] = field(default_factory=dict)
    unmodelled: dict[str, list[str]] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)
    _readers: dict[str, int] = field(default_factory=dict)

    def shape(self, value: str) -> tuple[int, ...]:
        """Shape of an ONNX value, which folding has made known."""
        known = self.model.values.get(value)
        if known is None or known.shape is None:
            raise ModelError(f"the shape of '{value}' is unknown; fix the input sizes with --shape or --dim")
        return known.shape

    def is_constant(self, value: str) -> bool:
        """Whether the value is an initializer or a folded constant."""
        return value in self.model.initializers or value in self.model.constants or value in self.derived

    def data(self, value: str) -> Array | None:
        """Data of a small constant, or None."""
        return self.model.constants.get(value)

    def scalar(self, value: str) -> float | None:
        """The one number that a constant holds, or None."""
        data = self.data(value)
        return float(data.ravel()[0]) if data is not None and data.size == 1 else None

    def reader_count(self, value: str) -> int:
        """How many nodes (and the model's outputs) read a value."""
        if not self._readers:
            read = [i for n in self.model.nodes for i in n.inputs]
            self._readers.update(Counter([*read, *self.model.outputs]))
        return self._readers.get(value, 0)

    def unique(self, name: str) -> str:
        """`name`, or `name#2`, `name#3` ... where it is taken."""
        count = self._names.get(name, 0) + 1
        self._names[name] = count
        return name if count == 1 else self.unique(f"{name}#{count}")

    def add_tensor(self, name: str, shape: Shape4, kind: TensorKind, **more: Any) -> str:
        """Register a tensor and return its name."""
        self.tensors[name] = Tensor(name=name, shape=shape, kind=kind, **more)
        return name

    def view(self, value: str) -> View:
        """The view of a run-time value; a constant read as data becomes a weight stored as it is."""
        if value not in self.views:
            shape = self.shape(value)
            if not self.is_constant(value):
                raise ModelError(f"'{value}' is read but was made by no node before; export the model again")
            groups = default_groups(len(shape), image=False)
            self.views[value] = stored(self.weight(value, shape, groups), shape, groups)
        return self.views[value]

    def weight(
        self, value: str, shape: Sequence[int], groups: Groups, expand: Sequence[int] | None = None
    ) -> str:
        """A weight tensor holding constant `value`, reshaped to `shape`, its dimensions laid out by `groups`.

        `expand` broadcasts the dimensions (after the transpose) to these sizes.
        """
        order = tuple(d for group in groups for d in group)
        sizes = tuple(shape[d] for d in order) if expand is None else tuple(expand)
        origin = self.derived.get(value, Derived(value))
        packing = Packing(
            reshape=tuple(shape),
            permutation=order,
            expand=sizes,
            steps=origin.steps,
            dequantize=origin.dequantize,
        )
        lengths = [len(g) for g in groups]
        bounds = [sum(lengths[:i]) for i in range(5)]
        axes = [prod(sizes[bounds[a] : bounds[a + 1]]) for a in range(4)]
        stored_shape: Shape4 = (axes[0], axes[1], axes[2], axes[3])
        known = self.tensors.get(value)
        if known is not None and known.packing == packing and known.shape == stored_shape:
            return value
        name = value if known is None else self.unique(f"{value}@packed")
        return self.add_tensor(
            name,
            stored_shape,
            "weight",
            source=origin.source,
            source_shape=self.shape(origin.source),
            packing=packing,
        )

    def emit(
        self,
        node: Node,
        op: str,
        operands: Sequence[Operand],
        output: View,
        *,
        suffix: str = "",
        attributes: Mapping[str, Any] | None = None,
        value: str | None = None,
    ) -> None:
        """Append a layer that writes the ONNX value `value` (default: the node's first output), seen as `output`.

        `output` names no tensor yet: only its atoms and dims are used.
        """
        scope = node.scope
        base = scope or node.name
        name = self.unique(f"{base}.{suffix}" if suffix else base)
        target = value if value is not None else node.outputs[0]
        self.add_tensor(name, output.storage_shape, "intermediate", source=target, source_shape=output.shape)
        self.layers.append(
            Layer(
                name=name,
                op=op,
                operands=tuple(operands),
                output=name,
                attributes=dict(attributes or {}),
                scope=scope,
                sources=node.sources,
            )
        )
        self.views[target] = output.on(name)

    def arranged(self, node: Node, view: View, groups: Groups) -> View:
        """The view with its dimensions stored as `groups` says; moves the data in a `rearrange` layer if need be."""
        if is_arranged(view, groups):
            return view
        target = stored("", view.shape, groups)
        moved = f"{node.name}:moved"
        self.emit(
            node,
            "rearrange",
            [Operand(role="x", parts=view.parts)],
            target,
            suffix="rearrange",
            attributes={
                "atoms": tuple((a.axis, a.size) for a in view.atoms),
                "order": tuple(i for group in groups for d in group for i in view.dims[d]),
            },
            value=moved,
        )
        return self.views.pop(moved)

    def placed(self, node: Node, value: str, groups: Groups) -> View:
        """The value stored as `groups` says: a constant is laid out so before deployment, other data is moved if need be."""
        if not self.is_constant(value):
            return self.arranged(node, self.view(value), groups)
        shape = self.shape(value)
        return stored(self.weight(value, shape, groups), shape, groups)


def operand(role: str, view: View) -> Operand:
    """The operand that reads all columns of a view."""
    return Operand(role=role, parts=view.parts)


def weight_operand(role: str, tensor: Tensor) -> Operand:
    """The operand that reads all of a weight."""
    return Operand(role=role, parts=(Part(tensor.name, 0, tensor.shape[3]),))
