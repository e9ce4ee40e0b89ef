"""Which layer loses most: a deployment and FP32 of the same weights, side by side, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from npusim.execute.blocks import Array
from npusim.execute.formats import Numbers
from npusim.execute.measure import Closeness, closeness
from npusim.execute.stages import float_formats
from npusim.execute.untiled import Untiled
from npusim.execute.workers import workers
from npusim.graph import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoss:
    """One layer's output against FP32.

    Attributes:
        closeness: of the output, with all error gathered so far.
        own_noise_db: 10 log10 of how much larger the relative noise is after the layer than before it.
    """

    name: str
    op: str
    closeness: Closeness
    own_noise_db: float

    @property
    def noise_added(self) -> float:
        """By how much the noise, as a share of the signal's power, is larger after the layer than before it; 0 where it is not."""
        after = self.closeness.sqnr_db
        if not np.isfinite(after):  # equal to FP32
            return 0.0
        return float(max(0.0, 10 ** (-after / 10) - 10 ** (-(after + self.own_noise_db) / 10)))


def compare_layers(
    graph: Graph, numbers: Numbers, inputs: Mapping[str, Array], *, accumulator_bits: int = 64
) -> list[LayerLoss]:
    """Every layer's output against FP32 of the same weights, in execution order.

    Whole layers are run (untiled): for integers the tiled result is the same.
    """
    with workers() as pool:
        exact = Numbers(float_formats(graph), numbers.weights)
        reference = Untiled(graph, exact, inputs, pool=pool)
        quantized = Untiled(graph, numbers, inputs, accumulator_bits, pool=pool)
        return [*_losses(graph, reference, quantized)]


def _losses(graph: Graph, reference: Untiled, quantized: Untiled) -> Iterator[LayerLoss]:
    """Both runs stepped side by side."""
    levels: dict[str, float] = {}
    for layer in graph.layers:
        reference.layer(layer)
        quantized.layer(layer)
        close = closeness(quantized.decoded(layer.output), reference.decoded(layer.output))
        before = min((levels[t] for t in layer.reads() if t in levels), default=np.inf)
        levels[layer.output] = close.sqnr_db
        own = min(before, 120.0) - close.sqnr_db
        yield LayerLoss(name=layer.name, op=layer.op, closeness=close, own_noise_db=own)
