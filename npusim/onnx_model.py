"""An ONNX graph as plain data: what the reader makes and the passes work on. Imports nothing of onnx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

#: Constants up to this many elements are kept as data; larger ones are weights and stay on disk.
SMALL_ELEMENTS = 2048

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor of the ONNX graph: its shape (None where unknown) and numpy type name."""

    shape: tuple[int, ...] | None
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One ONNX node.

    Attributes:
        op: operator type; other domains are prefixed (`com.microsoft.Gelu`).
        name: as in the file, or `<op>_<index>`.
        inputs, outputs: value names, '' where omitted.
        attributes: python values; tensors as numpy arrays.
        scope: module path from the exporter, or ''.
        sources: names of the original nodes it stands for (more than one once patterns are fused).
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    scope: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An ONNX graph as data.

    Attributes:
        nodes: in topological order.
        values: shape and type of every value that is known.
        constants: data of small constants, by name.
        initializers: names of values that hold weights or constants.
        inputs, outputs: names of the graph's run-time inputs and outputs.
    """

    name: str
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, Array]
    initializers: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    producer: str
    sha256: str

    def evolve(self, **changes: Any) -> OnnxModel:
        """A copy with some fields replaced."""
        return replace(self, **changes)
