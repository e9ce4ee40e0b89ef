"""What is measured: a network with its weights, some inputs, and the scales that its activations would have in integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from npusim.calibrate import Histogram, Method, measure_ranges, scales_of
from npusim.dtypes import PRECISIONS
from npusim.execute.formats import KeptNumbers, Numbers, numbers_of
from npusim.execute.stages import float_formats, stage_keys
from npusim.execute.untiled import execute_untiled
from npusim.graph import Graph
from npusim.precisions import Precisions, tensor_dtypes, with_casts
from npusim.weights import Weights

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]
#: Integer type -> stage -> scale.
ScaleTable = Mapping[str, Mapping[str, float]]

#: Precisions that layers choose from.
OPTIONS = ("w8a8", "w8a16", "w16a16", "fp16")
#: Weights up to this many elements are kept encoded between evaluations.
KEPT_ELEMENTS = 20_000_000


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network to be measured.

    Attributes:
        graph: its layers, without casts.
        inputs: sets of input arrays, e.g. one per timestep.
        scales: of every stage, in 8 and in 16 bits.
        options: precisions that are measured.
    """

    graph: Graph
    weights: Weights
    inputs: Sequence[Inputs]
    scales: ScaleTable
    options: tuple[str, ...] = OPTIONS

    @cached_property
    def exact(self) -> Numbers:
        """FP32."""
        return self.kept(Numbers(float_formats(self.graph), self.weights))

    @cached_property
    def uniform(self) -> Mapping[str, Numbers]:
        """Option -> numbers of the network when all layers have it."""
        return {
            o: self.kept(numbers_of(self.graph, dict.fromkeys((x.name for x in self.graph.layers), o), self.weights,
                                     self.scales.get(PRECISIONS[o].activation)))
            for o in self.options
        }  # fmt: skip

    def kept(self, numbers: Numbers) -> Numbers:
        """The same numbers; those of small networks keep their encoded weights."""
        elements = sum(t.elements for t in self.graph.of_kind("weight"))
        return KeptNumbers(numbers) if elements <= KEPT_ELEMENTS else numbers

    def mixed(self, precisions: Precisions) -> tuple[Graph, Numbers]:
        """The network with casts, and its numbers, for some precision of every layer."""
        graph, full = with_casts(self.graph, precisions)
        return graph, numbers_of(graph, full, self.weights, mixed_scales(graph, full, self.scales))

    @cached_property
    def references(self) -> list[dict[str, Array]]:
        """FP32 outputs of every set of inputs."""
        return [execute_untiled(self.graph, self.exact, inputs) for inputs in self.inputs]

    def measured_share(self, precisions: Precisions) -> float:
        """Noise at the output as a share of the signal's power, executed: the mean over inputs and outputs."""
        graph, numbers = self.mixed(precisions)
        kept = self.kept(numbers)
        found = [execute_untiled(graph, kept, inputs) for inputs in self.inputs]
        return float(np.mean([noise_share(x, r) for x, r in zip(found, self.references, strict=True)]))


def noise_share(found: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    """Power of the difference over power of the reference, the mean over outputs."""
    shares = []
    for name, exact in reference.items():
        y = np.asarray(exact, dtype=np.float64)
        signal = float(np.square(y).sum())
        noise = float(np.square(np.asarray(found[name], dtype=np.float64) - y).sum())
        shares.append(noise / signal if signal else float(noise > 0))
    return float(np.mean(shares))


def scale_table(
    graph: Graph, ranges: Mapping[str, Histogram], method: Method = "auto"
) -> dict[str, dict[str, float]]:
    """Scales of every stage in 8 and in 16 bits."""
    names = [x.name for x in graph.layers]
    return {
        PRECISIONS[p].activation: scales_of(graph, dict.fromkeys(names, p), ranges, method)
        for p in ("w8a8", "w16a16")
    }


def mixed_scales(graph: Graph, precisions: Precisions, table: ScaleTable) -> dict[str, float]:
    """Scales of a network with casts: each stage's in its own type, a cast's those of what it casts."""
    dtypes = tensor_dtypes(graph, precisions)
    known = {key for scales in table.values() for key in scales}
    kinds = {t.name: dtypes[t.name] for t in graph.of_kind("input")}
    source: dict[str, str] = {}
    for layer in graph.layers:
        kinds.update(dict.fromkeys(stage_keys(layer), dtypes[layer.output]))
        if layer.output not in known:  # a cast
            source[layer.output] = layer.operands[0].parts[0].tensor
    return {
        key: table[dtype][source.get(key, key)]
        for key, dtype in kinds.items()
        if dtype in table and source.get(key, key) in table[dtype]
    }


def subject(
    graph: Graph, weights: Weights, inputs: Sequence[Inputs], *, method: Method = "auto", options: tuple[str, ...] = OPTIONS
) -> Subject:  # fmt: skip
    """A network to be measured, its ranges taken from an FP32 evaluation of every set of inputs."""
    table = scale_table(graph, measure_ranges(graph, weights, inputs), method)
    return Subject(graph=graph, weights=weights, inputs=inputs, scales=table, options=options)
