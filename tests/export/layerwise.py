"""Each layer of an exported onnx-qdq model on its own, fed with the executor's operands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from npusim.execute.stages import stage_keys
from npusim.execute.untiled import Untiled
from npusim.export.source import ExportSource
from npusim.quantize import decode


def within_one_step(stored: Any, found: Any) -> float:
    """Share of elements that differ by at most one."""
    return float(np.mean(np.abs(stored.astype(np.int32).ravel() - found.astype(np.int32).ravel()) <= 1))


Part = tuple[str, Any, dict[str, Any], Any]


def layer_models(
    source: ExportSource, run: Untiled, model: Any, seen: dict[str, list[Any]] | None = None
) -> Iterator[Part]:
    """Each layer's name, its part of the model, the executor's operands, and the integers that the executor stores.

    A part reads dequantized values and ends in the QuantizeLinear of the layer's output. Its constants may lie in the file
    beside the model.

    Args:
        run: has not begun, and is over when every layer was taken.
        seen: what the observer of `run` fills, stage by stage. Then parts are stages, not layers, and each stage reads what the
            executor stored in the one before: a step there is not magnified by a finer scale here.
    """
    graph = _Graph(model)
    for layer in source.graph.layers:
        ends = {
            graph.stored_as[t].output[0]: run.decoded(t)
            for t in dict.fromkeys(layer.reads())
            if t in graph.stored_as
        }
        if seen is not None:
            seen.clear()
        run.layer(layer)
        stored = {key: values[0] for key, values in (seen or {}).items() if len(values) == 1}
        stored[layer.output] = run.values[layer.output]
        for key in (k for k in stage_keys(layer) if k in stored):
            values = stored[key]
            yield key, *graph.part(key, ends, values)
            ends[graph.stored_as[key].output[0]] = decode(values, source.numbers.formats[key])


class _Graph:
    """The exported model, looked up by name."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.producer = {n.output[0]: n for n in model.graph.node}
        self.stored_as = {n.input[0].rsplit(":", 1)[0]: n for n in model.graph.node if _is_activation(n)}
        self.constants = {i.name: i for i in model.graph.initializer}
        self.shapes = _shapes(model)

    def part(self, key: str, ends: dict[str, Any], values: Any) -> tuple[Any, dict[str, Any], Any]:
        """The nodes between `ends` and a stored stage as a model, its inputs, and `values` as the graph writes them."""
        target = self.stored_as[key].input[0]
        nodes, used = _backwards(self.producer, self.constants, target, set(ends))
        read = {i for n in nodes for i in n.input}
        feeds = {name: _as_written(v, self.shapes[name]) for name, v in ends.items() if name in read}
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        part = helper.make_model(
            helper.make_graph(
                [*nodes, helper.make_node("Identity", [target], ["integers"])],
                "layer",
                [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in feeds.items()],
                [helper.make_tensor_value_info("integers", kind, None)],
                [self.constants[c] for c in used],
            ),
            opset_imports=self.model.opset_import,
            ir_version=self.model.ir_version,
        )
        return part, feeds, _as_written(values, self.shapes[target])


def _is_activation(node: Any) -> bool:
    return node.op_type == "DequantizeLinear" and node.input[0].endswith((":int16", ":int8"))


def _backwards(
    producer: dict[str, Any], constants: dict[str, Any], target: str, ends: set[str]
) -> tuple[list[Any], list[str]]:
    nodes: dict[str, Any] = {}
    used: dict[str, None] = {}
    waiting = [target]
    while waiting:
        value = waiting.pop()
        if value in ends or not value:
            continue
        if value in constants:
            used[value] = None
            continue
        node = producer[value]
        if node.name not in nodes:
            nodes[node.name] = node
            waiting.extend(node.input)
    order = [n for n in producer.values() if n.name in nodes]
    return order, list(used)


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in (*graph.value_info, *graph.output, *graph.input)
    }


def _as_written(values: Any, shape: tuple[int, ...]) -> Any:
    """Stored [b, h, r, c] as the graph writes it: as it is, or as images."""
    if values.shape == shape:
        return values
    b, _, _, c = values.shape
    if len(shape) == 4 and shape[:2] == (b, c):
        return np.ascontiguousarray(values.reshape(b, *shape[2:], c).transpose(0, 3, 1, 2))
    return values.reshape(shape)
