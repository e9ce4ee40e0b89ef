"""What constants and stored pieces look like in an exported graph: plain FP32 here; `onnx_qdq` has integers with their scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy.typing as npt

from npusim.export.onnx_graph import GraphWriter
from npusim.export.onnx_values import Value
from npusim.graph import Graph, Layer, Shape4
from npusim.weights import Weights

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Constant:
    """A box of a weight tensor."""

    tensor: str
    offset: Shape4
    shape: Shape4


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How an operator wants a weight laid out.

    Attributes:
        name: tells arrangements of one weight apart.
        apply: [b, h, r, c] to the operator's shape.
        axis: the dimension of the result that runs over the rows of the weight (its output channels), or over the columns of a
            vector: what has scales of its own.
    """

    name: str
    apply: Callable[[Array], Array]
    axis: int


ROWS = Arrangement("rows", lambda a: a, 2)
#: [outputs, depth], whose transpose is the right factor of MatMul.
MATRIX = Arrangement("matrix", lambda a: a[0, 0], 0)
#: [1, 1, 1, n] as a vector.
VECTOR = Arrangement("vector", lambda a: a.reshape(-1), 0)


def kernel(height: int, width: int) -> Arrangement:
    """[outputs, height * width * inputs] as the weight of Conv."""

    def apply(a: Array) -> Array:
        return a.reshape(a.shape[2], height, width, -1).transpose(0, 3, 1, 2)

    return Arrangement("kernel", apply, 0)


class Numbers(Protocol):
    """What differs between exporters that write the same layers."""

    def constant(self, box: Constant, arrangement: Arrangement) -> str:
        """ONNX value of the FP32 numbers that the box holds."""

    def stored(self, key: str, value: Value) -> Value:
        """The value after being stored as stage `key` (see `execute.stages`)."""

    def common(self, layer: Layer, number: int, value: Value) -> Value:
        """An operand whose parts are joined, brought to one format."""


class FloatNumbers:
    """Everything in FP32; storing changes nothing."""

    def __init__(self, graph: Graph, weights: Weights, writer: GraphWriter) -> None:
        self.graph, self.writer = graph, writer
        self._packed = lru_cache(maxsize=4)(weights.__getitem__)  # pieces of one layer follow each other

    def constant(self, box: Constant, arrangement: Arrangement) -> str:
        """The box as a constant of its own."""
        name = constant_name(box, arrangement, self.graph.tensors[box.tensor].shape)
        if not self.writer.has_constant(name):
            self.writer.constant(name, arrangement.apply(boxed(self._packed(box.tensor), box)))
        return name

    def stored(self, key: str, value: Value) -> Value:
        """The value itself."""
        return value

    def common(self, layer: Layer, number: int, value: Value) -> Value:
        """The value itself."""
        return value


def boxed(values: Array, box: Constant) -> Array:
    """The elements of a box of a whole tensor."""
    index = tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))
    found: Array = values[index]
    return found


def constant_name(box: Constant, arrangement: Arrangement, whole: Sequence[int]) -> str:
    """A name that means this box in this arrangement: the tensor's, with the cut where there is one."""
    cut = "".join(
        f"[{axis}{o}:{o + n}]"
        for axis, o, n, size in zip("bhrc", box.offset, box.shape, whole, strict=True)
        if n != size
    )
    return f"{box.tensor}{cut}:{arrangement.name}"
