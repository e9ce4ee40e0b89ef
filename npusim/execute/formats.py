"""The numbers of a deployment: a format for every tensor and stage, and the weights encoded in them, on demand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from npusim.errors import BadInputError
from npusim.execute.blocks import Array
from npusim.execute.stages import Formats, stage_keys
from npusim.graph import Graph, Layer
from npusim.plan import Plan
from npusim.precisions import Precisions, tensor_dtypes
from npusim.quantize import Doubles, Format, bias_floor, encode, require_finite, row_scales, scale_for
from npusim.weights import Weights


class Numbers:
    """Formats, and stored weights.

    Attributes:
        formats: by tensor and stage.
        weights: the real ones.
    """

    def __init__(self, formats: Formats, weights: Weights) -> None:
        self.formats, self.weights = formats, weights

    def weight(self, name: str) -> Array:
        """A weight tensor as it is stored in DRAM."""
        return encode(self.weights[name], self.formats[name])


class KeptNumbers(Numbers):
    """Numbers whose encoded weights are kept: for many evaluations of a network whose weights fit the memory twice."""

    def __init__(self, numbers: Numbers) -> None:
        super().__init__(numbers.formats, numbers.weights)
        self._kept: dict[str, Array] = {}

    def weight(self, name: str) -> Array:
        """See `Numbers`."""
        if name not in self._kept:
            self._kept[name] = super().weight(name)
        return self._kept[name]


def numbers_for(
    graph: Graph, plan: Plan, weights: Weights, scales: Mapping[str, float] | None = None
) -> Numbers:
    """The formats that a plan asks for; see `numbers_of`."""
    return numbers_of(graph, plan.precisions, weights, scales)


def numbers_of(
    graph: Graph, precisions: Precisions, weights: Weights, scales: Mapping[str, float] | None = None
) -> Numbers:
    """The formats that the precisions of all layers ask for. Integer precisions need the scales of activations.

    Args:
        scales: by tensor and stage key, see `npusim.calibrate`.

    Raises:
        BadInputError: scales are missing or bad, or weights are not finite.
    """
    dtypes = tensor_dtypes(graph, precisions)
    found: dict[str, Format] = {}
    for name in _activations(graph):
        found[name] = _activation_format(name, dtypes[name], scales)
    for layer in graph.layers:
        for key in stage_keys(layer):
            found[key] = _activation_format(key, dtypes[layer.output], scales)
    _add_matrices(graph, dtypes, weights, found)
    for tensor in graph.of_kind("weight"):
        if tensor.name not in found:
            found[tensor.name] = _constant_format(tensor.name, dtypes[tensor.name], weights)
    return Numbers(Formats(by_key=found), weights)


def _activations(graph: Graph) -> list[str]:
    return [name for name, tensor in graph.tensors.items() if tensor.kind != "weight"]


def _activation_format(key: str, dtype: str, scales: Mapping[str, float] | None) -> Format:
    if dtype not in ("int8", "int16"):
        return Format(dtype)
    scale = (scales or {}).get(key)
    if scale is None:
        raise BadInputError(f"scales: there is none for '{key}'; run 'npusim quantize' on this run directory")
    if not (np.isfinite(scale) and scale > 0):
        raise BadInputError(
            f"scales: '{key}' has {scale}; positive finite numbers are allowed; run 'npusim quantize' again"
        )
    return Format(dtype, float(scale))


def _add_matrices(
    graph: Graph, dtypes: Mapping[str, str], weights: Weights, found: dict[str, Format]
) -> None:
    """Formats of matrices (one scale per output channel), of tables (one per row), of biases (those of the accumulators)."""
    floors: dict[str, Doubles] = {}
    users: dict[str, Layer] = {}
    for layer in graph.layers:
        matrix, bias = layer.operand("weight") or layer.operand("table"), layer.operand("bias")
        if matrix is None or dtypes[matrix.parts[0].tensor] not in ("int8", "int16"):
            continue
        name = matrix.parts[0].tensor
        users.setdefault(name, layer)
        if bias is not None:
            floor = bias_floor(weights[bias.parts[0].tensor], _operand_scale(layer, found))
            floors[name] = np.maximum(floor, floors[name]) if name in floors else floor
    for name, layer in users.items():
        try:
            found[name] = Format(dtypes[name], row_scales(weights[name], dtypes[name], floors.get(name)))
        except BadInputError as error:
            raise BadInputError(f"weight '{name}': {error}") from error
        bias = layer.operand("bias")
        if bias is not None:
            scales = found[name].scale
            assert isinstance(scales, np.ndarray)
            found.setdefault(bias.parts[0].tensor, Format("int32", scales.T * _operand_scale(layer, found)))


def _operand_scale(layer: Layer, found: Mapping[str, Format]) -> float:
    """Scale of a layer's first operand: the largest of its parts."""
    return max(
        (s for p in layer.operands[0].parts if isinstance(s := found[p.tensor].scale, float)), default=1.0
    )


def _constant_format(name: str, dtype: str, weights: Weights) -> Format:
    """A constant that is no matrix: one scale of its own."""
    if dtype not in ("int8", "int16"):
        return Format(dtype)
    values = weights[name]
    require_finite(values, f"weight '{name}'")
    return Format(dtype, scale_for(float(np.abs(values).max(initial=0.0)), dtype))
