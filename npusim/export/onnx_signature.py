"""The inputs and outputs of an exported graph: names, shapes and types of the model that was profiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnx import TensorProto

from npusim.export.onnx_values import Layouts, Value
from npusim.graph import Graph
from npusim.ops import index_tensors


@dataclass(frozen=True)
class Signature:
    """Element types of inputs and outputs, by name (`float`, `float16`, `int64` ..., as ONNX calls them)."""

    dtypes: Mapping[str, str]

    def _type(self, name: str) -> int:
        known: int = TensorProto.DataType.Value(self.dtypes.get(name, "float").upper())
        return known

    def inputs(self, graph: Graph, layouts: Layouts) -> dict[str, Value]:
        """Write the inputs; returns each as a stored tensor in FP32 (indices of tables: INT32)."""
        indices = index_tensors(graph)
        found = {}
        for window in graph.inputs:
            tensor, kind = window.parts[0].tensor, self._type(window.name)
            layouts.writer.scope = window.name
            name = layouts.writer.input(window.name, kind, window.shape)
            wanted = TensorProto.INT32 if tensor in indices else TensorProto.FLOAT
            if wanted == TensorProto.INT32 and kind in _FLOATS:
                name = layouts.writer.node("Round", [name])
            name = name if kind == wanted else layouts.writer.node("Cast", [name], to=wanted)
            found[tensor] = layouts.pack(name, window, graph.tensors[tensor].shape)
        return found

    def outputs(self, graph: Graph, layouts: Layouts, whole: Callable[[str], Value]) -> None:
        """Write the outputs from whole tensors."""
        for window in graph.outputs:
            layouts.writer.scope = f"{window.name}:output"
            parts = []
            for part in window.parts:
                value = whole(part.tensor)
                parts.append(layouts.slice(value, (0, 0, 0, part.start), (*value.shape[:3], part.size)))
            name, kind = layouts.unpack(layouts.columns(parts), window), self._type(window.name)
            if kind != TensorProto.FLOAT:
                name = layouts.writer.node("Cast", [name], to=kind)
            layouts.writer.output(name, window.name, kind, window.shape)


_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
