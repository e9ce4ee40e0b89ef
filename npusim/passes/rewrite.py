"""Spell a composite node out in standard operators, with every shape known: what folding and fusing then see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npusim.onnx_model import Array, Node, OnnxModel, Value

#: Subtracted from scores that must not be attended to: exp(-1e4) is 0 in any format, and unlike infinity it can be quantized.
NEVER = 1e4


@dataclass(slots=True)
class Rewriter:
    """Collects the nodes that stand for one node; the values it makes are known to the caller at once.

    Attributes:
        node: what is spelled out.
        values, constants: everything known so far; extended in place.
        initializers: names of weights.
        nodes: the spelling, in order.
    """

    node: Node
    values: dict[str, Value]
    constants: dict[str, Array]
    initializers: frozenset[str] = frozenset()
    nodes: list[Node] = field(default_factory=list)

    def shape(self, value: str) -> tuple[int, ...]:
        """Shape of a value, which callers have checked to be known."""
        known = self.values[value].shape
        assert known is not None
        return known

    def is_constant(self, value: str) -> bool:
        """Whether the value is known before run time."""
        return value in self.initializers or value in self.constants

    def attribute(self, name: str, missing: Any) -> Any:
        """An attribute of the node, or what the operator's definition says it is."""
        return self.node.attributes.get(name, missing)

    def input(self, index: int) -> str:
        """Name of an input, '' if it is omitted."""
        return self.node.inputs[index] if index < len(self.node.inputs) else ""

    def output(self, index: int) -> str:
        """Name of an output, '' if it is omitted."""
        return self.node.outputs[index] if index < len(self.node.outputs) else ""

    def constant(self, data: Any, dtype: str = "float32") -> str:
        """A new constant."""
        array = np.asarray(data, dtype=dtype)
        name = f"{self.node.outputs[0]}:constant{len(self.constants)}"
        self.constants[name] = array
        self.values[name] = Value(shape=array.shape, dtype="int64" if dtype == "int64" else "float")
        return name

    def filled(self, shape: Sequence[int], value: float) -> str:
        """A new constant of one number, which takes no memory."""
        return self.constant(np.broadcast_to(np.float32(value), tuple(shape)))

    def add(
        self, op: str, inputs: Sequence[str], shape: Sequence[int], output: str = "", **attributes: Any
    ) -> str:
        """Append a node with one output of a known shape, and return the output's name."""
        number = len(self.nodes)
        name = output or f"{self.node.outputs[0]}:{number}"
        node = Node(
            op=op, name=f"{self.node.name}:{number}", inputs=tuple(inputs), outputs=(name,), attributes=attributes,
            scope=self.node.scope, sources=self.node.sources,
        )  # fmt: skip
        self.nodes.append(node)
        self.values[name] = Value(shape=tuple(shape), dtype="float")
        return name

    def reshape(self, value: str, shape: Sequence[int], output: str = "") -> str:
        """The value in another shape of as many elements."""
        return self.add("Reshape", (value, self.constant(shape, "int64")), shape, output, allowzero=1)

    def transpose(self, value: str, permutation: Sequence[int], output: str = "") -> str:
        """The value with its dimensions permuted."""
        shape = self.shape(value)
        return self.add(
            "Transpose", (value,), [shape[p] for p in permutation], output, perm=tuple(permutation)
        )

    def binary(self, op: str, a: str, b: str, output: str = "") -> str:
        """Addition or another elementwise operator, broadcast."""
        return self.add(op, (a, b), np.broadcast_shapes(self.shape(a), self.shape(b)), output)

    def unary(self, op: str, value: str, output: str = "", **attributes: Any) -> str:
        """An elementwise function of one value."""
        return self.add(op, (value,), self.shape(value), output, **attributes)

    def matmul(self, a: str, b: str, output: str = "") -> str:
        """Matrix product of the last two dimensions."""
        x, y = self.shape(a), self.shape(b)
        lead = np.broadcast_shapes(x[:-2], y[:-2])
        return self.add("MatMul", (a, b), (*lead, x[-2], y[-1]), output)

    def slice(self, value: str, axis: int, start: int, stop: int, output: str = "") -> str:
        """Elements `[start, stop)` of one dimension."""
        shape = list(self.shape(value))
        shape[axis] = stop - start
        limits = [self.constant([n], "int64") for n in (start, stop, axis)]
        return self.add("Slice", (value, *limits), shape, output)


#: A rule spells its node out and returns True, or returns False (the node stays as it is).
Rule = Callable[[Rewriter], bool]


def rewrite(
    rules: Mapping[str, Rule],
    node: Node,
    values: dict[str, Value],
    constants: dict[str, Array],
    initializers: frozenset[str],
) -> Sequence[Node]:
    """The nodes that stand for `node`: itself where no rule applies or a shape that the rule needs is unknown."""
    rule = rules.get(node.op)
    if rule is None or any(i and (i not in values or values[i].shape is None) for i in node.inputs):
        return (node,)
    writer = Rewriter(node=node, values=values, constants=constants, initializers=initializers)
    return tuple(writer.nodes) if rule(writer) else (node,)


def spell_out(model: OnnxModel, rules: Mapping[str, Rule]) -> OnnxModel:
    """The model with every node that a rule applies to replaced by its spelling."""
    if not any(node.op in rules for node in model.nodes):
        return model
    values, constants = dict(model.values), dict(model.constants)
    nodes = [n for node in model.nodes for n in rewrite(rules, node, values, constants, model.initializers)]
    initializers = model.initializers | constants.keys()
    return model.evolve(nodes=tuple(nodes), values=values, constants=constants, initializers=initializers)
