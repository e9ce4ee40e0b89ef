"""Stages of a layer: what its output piece holds before and after each epilogue function, and how that is stored.

A piece is written by the layer's main command and rewritten in place by each epilogue function. Constant factors (`scale`) cost
nothing: they belong to the stage before them. The last stage is the output tensor itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from npusim.graph import Graph, Layer
from npusim.ops import index_tensors
from npusim.quantize import FP32, Format

#: Position of the main command; epilogue functions have the index of their entry in `Layer.epilogue`.
MAIN = -1


class Stage(NamedTuple):
    """What a command leaves: the stage's key, and the constant factor applied on the way."""

    key: str
    factor: float


def stage_after(layer: Layer, position: int) -> Stage:
    """The stage that the main command (`MAIN`) or the epilogue function at `position` writes."""
    factor = 1.0
    for index in range(position + 1, len(layer.epilogue)):
        if layer.epilogue[index].function != "scale":
            return Stage(f"{layer.output}@{index}", factor)
        factor *= layer.epilogue[index].value
    return Stage(layer.output, factor)


def stage_before(layer: Layer, position: int) -> str:
    """Key of the stage that the epilogue function at `position` reads."""
    return f"{layer.output}@{position}"


def stage_keys(layer: Layer) -> list[str]:
    """Keys of all stages of a layer, the output last."""
    inner = [stage_before(layer, i) for i, e in enumerate(layer.epilogue) if e.function != "scale"]
    return [*inner, layer.output]


def gate_position(layer: Layer) -> int:
    """Index of the gate in the epilogue of a gated product."""
    return next(i for i, e in enumerate(layer.epilogue) if e.function == "geglu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Number formats of a deployment: of tensors and of stages, by key."""

    by_key: Mapping[str, Format]

    def __getitem__(self, key: str) -> Format:
        return self.by_key.get(key, FP32)


def float_formats(graph: Graph, dtype: str = "fp32") -> Formats:
    """Every tensor and stage in one floating-point type; indices as integers."""
    found = {name: Format(dtype) for name in graph.tensors}
    for layer in graph.layers:
        found.update({key: Format(dtype) for key in stage_keys(layer)})
    found.update({name: Format("int32") for name in index_tensors(graph)})
    return Formats(by_key=found)
