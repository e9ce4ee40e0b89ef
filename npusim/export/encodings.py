"""`encodings`: scales for AIMET, by the names of values and initializers of the FP32 model.

Source: AIMET's encoding schemas 2.0.0 (quantization in ONNX's terms) and 1.0.0 (scale and offset, where offset is the smallest integer).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from npusim.errors import BadInputError
from npusim.execute.formats import Numbers
from npusim.execute.stages import stage_before
from npusim.export.registry import Exporter
from npusim.export.source import ExportSource
from npusim.graph import Graph, Tensor
from npusim.onnx_model import OnnxModel
from npusim.quantize import Format

VERSIONS = ("2.0.0", "1.0.0")
BITS = {"int8": 8, "int16": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How one value or initializer of the model is quantized: symmetric, without zero point.

    Attributes:
        scales: one, or one per position of `axis`.
        dtype: `int8`, `int16`, or `fp16` (then there are no scales).
    """

    name: str
    dtype: str
    scales: tuple[float, ...]
    axis: int = 0


def write(source: ExportSource, path: Path, options: Mapping[str, str]) -> tuple[str, ...]:
    """Write the scales of a deployment.

    Raises:
        BadInputError: an unknown schema version; scales are missing; nothing is quantized.
    """
    version = options.get("version", VERSIONS[0])
    if version not in VERSIONS:
        raise BadInputError(f"--option version is '{version}'; allowed are {', '.join(VERSIONS)}")
    if not source.needs_scales:
        raise BadInputError(
            f"{source.directory}: its plan computes in {source.plan.options.precision}, which has no scales; "
            "profile with --precision w8a16 (or w8a8, w16a16)"
        )
    named = _quantizable(source.onnx)
    activations, lost = _chosen(activation_encodings(source.graph, source.numbers), named)
    activations += joined_encodings(activations, source.onnx)
    parameters, lost_parameters = _chosen(parameter_encodings(source.graph, source.numbers), named)
    content = _SCHEMAS[version](activations, parameters)
    path.write_text(json.dumps({"version": version, **content}, indent=1) + "\n", "utf-8")
    return _notes([*lost, *lost_parameters])


def _quantizable(model: OnnxModel) -> set[str]:
    """Names that AIMET has quantizers for: values and constants in floating point, but no tables and rows picked from them."""
    named = {v for node in model.nodes for v in (*node.inputs, *node.outputs)} | set(model.inputs)
    picked = {v for node in model.nodes if node.op == "Gather" for v in (node.inputs[0], *node.outputs)}
    integers = {
        n for n, v in model.values.items() if v.dtype and "float" not in v.dtype and v.dtype != "double"
    }
    return named - picked - integers


def _chosen(
    found: Sequence[tuple[str, Encoding | None]], named: set[str]
) -> tuple[list[Encoding], list[str]]:
    """One encoding per name that the model has, by name; and what it has no name for."""
    kept: dict[str, Encoding] = {}
    lost = []
    for key, encoding in found:
        if encoding is None or encoding.name not in named:
            lost.append(key)
        else:
            kept.setdefault(encoding.name, encoding)
    return [kept[name] for name in sorted(kept)], lost


def _notes(lost: Sequence[str]) -> tuple[str, ...]:
    if not lost:
        return ()
    few = f"{', '.join(lost[:3])}{' ...' if len(lost) > 3 else ''}"
    return (
        f"left out, without a quantizer in AIMET or a name in the model: {len(lost)} of the scales ({few})",
    )


# ---- from stages and weights to names ---------------------------------------------------------------------------------


def stage_values(graph: Graph) -> dict[str, str]:
    """Stage key -> the ONNX value that it stores, '' where the model has none."""
    found = {w.parts[0].tensor: w.name for w in graph.inputs}
    for layer in graph.layers:
        for position, entry in enumerate(layer.epilogue):
            if entry.function != "scale":
                found[stage_before(layer, position)] = entry.source
        found[layer.output] = graph.tensors[layer.output].source
    return found


def activation_encodings(graph: Graph, numbers: Numbers) -> list[tuple[str, Encoding | None]]:
    """Every stage that is not stored in FP32, with its encoding, or None where the model has no such value."""
    found: list[tuple[str, Encoding | None]] = []
    for key, name in stage_values(graph).items():
        form = numbers.formats[key]
        if form.dtype == "fp16":
            found.append((key, Encoding(name=name, dtype="fp16", scales=()) if name else None))
        elif isinstance(form.scale, float):
            found.append((key, Encoding(name=name, dtype=form.dtype, scales=(form.scale,)) if name else None))
    return found


def joined_encodings(activations: Sequence[Encoding], model: OnnxModel) -> list[Encoding]:
    """Concatenations of encoded values: the deployment brings their parts to the largest scale; AIMET ties their quantizers."""
    known = {e.name: e for e in activations}
    found = []
    for node in model.nodes:
        parts = [known[i] for i in node.inputs if i in known and known[i].scales]
        if node.op == "Concat" and len(parts) == len(node.inputs) and node.outputs[0] not in known:
            largest = max(parts, key=lambda e: e.scales[0])
            known[node.outputs[0]] = replace(largest, name=node.outputs[0])
            found.append(known[node.outputs[0]])
    return found


def parameter_encodings(graph: Graph, numbers: Numbers) -> list[tuple[str, Encoding | None]]:
    """Every weight that is stored in integers; biases keep FP32, since AIMET derives their scales."""
    found: list[tuple[str, Encoding | None]] = []
    for tensor in graph.of_kind("weight"):
        form = numbers.formats[tensor.name]
        if form.is_integer and form.dtype in BITS:
            found.append((tensor.name, _parameter(tensor, form)))
    return found


def _parameter(tensor: Tensor, form: Format) -> Encoding | None:
    if tensor.normalization is not None or (
        tensor.packing is not None and tensor.packing.dequantize is not None
    ):
        return None
    if isinstance(form.scale, float):
        return Encoding(name=tensor.source, dtype=form.dtype, scales=(form.scale,))
    axis = _channel_axis(tensor)
    if axis is None or form.scale is None:
        return None
    return Encoding(
        name=tensor.source, dtype=form.dtype, scales=tuple(np.ravel(form.scale).tolist()), axis=axis
    )


def _channel_axis(tensor: Tensor) -> int | None:
    """Dimension of the initializer that the rows of its stored matrix are, or None where steps in between hide it."""
    packing = tensor.packing
    if packing is None:
        return None
    axis = packing.permutation[0]
    shape = tensor.source_shape
    for step, numbers in reversed(packing.steps):
        if step != "transpose":
            return None
        axis = numbers[axis]
    if shape[axis] != tensor.shape[2] or len(packing.reshape) != len(shape):
        return None
    return int(axis)


# ---- schemas --------------------------------------------------------------------------------------------------------


def _schema_2(activations: Sequence[Encoding], parameters: Sequence[Encoding]) -> dict[str, Any]:
    """One list; FP16 is what is not listed."""

    def entries() -> Iterator[dict[str, Any]]:
        for e in (*activations, *parameters):
            if e.dtype in BITS:
                whole = {"name": e.name, "output_dtype": e.dtype}
                yield whole | (
                    {"y_scale": e.scales[0]}
                    if len(e.scales) == 1
                    else {"y_scale": list(e.scales), "axis": e.axis}
                )

    return {"encodings": list(entries())}


def _schema_1(activations: Sequence[Encoding], parameters: Sequence[Encoding]) -> dict[str, Any]:
    def entry(e: Encoding) -> dict[str, Any]:
        if e.dtype not in BITS:
            return {"name": e.name, "enc_type": "PER_TENSOR", "dtype": "FLOAT", "bw": 16}
        bits = BITS[e.dtype]
        return {
            "name": e.name, "enc_type": "PER_TENSOR" if len(e.scales) == 1 else "PER_CHANNEL", "dtype": "INT", "bw": bits,
            "is_sym": True, "scale": list(e.scales), "offset": [-(2 ** (bits - 1))] * len(e.scales),
        }  # fmt: skip

    return {
        "activation_encodings": [entry(e) for e in activations], "param_encodings": [entry(e) for e in parameters],
        "excluded_layers": [], "quantizer_args": {},
    }  # fmt: skip


_SCHEMAS = {"2.0.0": _schema_2, "1.0.0": _schema_1}

EXPORTER = Exporter(
    title="AIMET's encodings JSON, by names of the FP32 model (schema 2.0.0 or 1.0.0)",
    suffix=".encodings",
    carries="bits and scales of every stored value that the model has a name for, and of weights per output channel",
    loses="scales of stages without a name in the model, tables and integers, biases (FP32 there), tiles, engines, times",
    write=write,
    options={"version": "2.0.0 (default) or 1.0.0"},
)
