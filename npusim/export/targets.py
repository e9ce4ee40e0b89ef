"""The targets that are ONNX graphs: `onnx-qdq` and `onnx-tiled`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from npusim.errors import BadInputError
from npusim.export.onnx_graph import GraphWriter
from npusim.export.onnx_qdq import CONTRIB_OPSET, OPSET, OPSET_8_BITS, QuantizedNumbers, widened_note
from npusim.export.onnx_signature import Signature
from npusim.export.onnx_tiled import OPSET as TILED_OPSET
from npusim.export.onnx_tiled import write_tiled
from npusim.export.onnx_whole import write_whole
from npusim.export.registry import Exporter
from npusim.export.source import ExportSource

#: Constants of more bytes than this go into a file beside the model. A protobuf holds 2 GB; half of a GB is still handy.
EXTERNAL_BYTES = 1 << 29


def _writer(source: ExportSource, path: Path, opset: int, element_bytes: int) -> GraphWriter:
    size = sum(t.elements for t in source.graph.of_kind("weight")) * element_bytes
    return GraphWriter(
        opset=opset, data=path.with_name(f"{path.name}.data") if size > EXTERNAL_BYTES else None
    )


def _signature(source: ExportSource) -> Signature:
    return Signature({name: value.dtype for name, value in source.onnx.values.items()})


def _finish(source: ExportSource, writer: GraphWriter, path: Path, target: str) -> None:
    writer.save(path, source.graph.name, {**source.metadata, "npusim.target": target})


def write_onnx_tiled(source: ExportSource, path: Path, options: Mapping[str, str]) -> tuple[str, ...]:
    """Write the Program as an ONNX graph in FP32.

    Raises:
        ExportError: a layer that standard operators cannot express.
        BadInputError: the model has no weights.
    """
    writer = _writer(source, path, TILED_OPSET, 4)
    with writer:
        write_tiled(source.graph, source.program, source.weights, _signature(source), writer)
        _finish(source, writer, path, "onnx-tiled")
    return ()


def write_onnx_qdq(source: ExportSource, path: Path, options: Mapping[str, str]) -> tuple[str, ...]:
    """Write the layers with QuantizeLinear and DequantizeLinear in the deployment's scales.

    Raises:
        BadInputError: the plan computes in floating point only, or scales are missing.
        ExportError: a layer that standard operators cannot express.
    """
    precisions = {p.precision for p in source.plan.layers}
    if not source.needs_scales:
        raise BadInputError(
            f"{source.directory}: its plan computes in {', '.join(sorted(precisions))}, which has no scales; "
            "profile with --precision w8a16 (or w8a8, w16a16)"
        )
    contrib = "contrib" in options
    opset = CONTRIB_OPSET if contrib else (OPSET_8_BITS if precisions == {"w8a8"} else OPSET)
    numbers = source.numbers
    writer = _writer(source, path, opset, 2)
    with writer:
        quantized = QuantizedNumbers(source.graph, numbers, writer, contrib=contrib)
        write_whole(source.graph, quantized, _signature(source), writer)
        _finish(source, writer, path, "onnx-qdq")
    return widened_note(quantized.widened)


ONNX_TILED = Exporter(
    title="the network tile by tile as planned, FP32, opset 18",
    suffix=".tiled.onnx",
    carries="every computing command as nodes named after its layer and tile; loads and stores as Slice and Concat; hashes",
    loses="precisions and scales (all is FP32), engines, addresses, times; layers that only move data are written whole",
    write=write_onnx_tiled,
)
ONNX_QDQ = Exporter(
    title="the network with QuantizeLinear and DequantizeLinear in our scales, opset 21 (w8a8: 19)",
    suffix=".qdq.onnx",
    carries="every stored stage's integers, weights per output channel, 32-bit biases",
    loses="tiles, engines, times; between stages runtimes compute in FP32, not in our integers; -32768 is not cut off",
    write=write_onnx_qdq,
    flags={"contrib": "operators of com.microsoft, opset 17, for older runtimes (also: --contrib)"},
)
