"""The network layer by layer on whole tensors: what a Program's tiles must add up to, and what calibration observes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from npusim.execute.blocks import Array, Block
from npusim.execute.compute import Compute
from npusim.execute.formats import Numbers
from npusim.execute.stages import MAIN, gate_position, stage_after
from npusim.execute.vector_layers import OUT, PARAMETERS, STATISTICS, X, wanted_rows
from npusim.execute.windows import pack, unpack
from npusim.execute.workers import INLINE, Workers, workers
from npusim.graph import Graph, Layer, Operand
from npusim.lower.geometry import TensorBox
from npusim.quantize import decode

#: Called with a stage's key and its stored values, [b, h, r, c].
Observer = Callable[[str, Array], None]


def execute_untiled(
    graph: Graph,
    numbers: Numbers,
    inputs: Mapping[str, Array],
    *,
    accumulator_bits: int = 64,
    observe: Observer | None = None,
) -> dict[str, Array]:
    """Outputs of the model, one whole layer after the other.

    Args:
        numbers: formats and weights.
        inputs: arrays by input name.
        observe: sees every stage of every layer.

    Returns:
        FP32 arrays by output name, in the model's shapes.
    """
    with workers() as pool:
        run = Untiled(graph, numbers, inputs, accumulator_bits, observe, pool)
        for layer in graph.layers:
            run.layer(layer)
        return unpack(graph, run.decoded)


class Untiled:
    """A run that is stepped layer by layer; tensors that nothing reads any more are dropped."""

    def __init__(
        self,
        graph: Graph,
        numbers: Numbers,
        inputs: Mapping[str, Array],
        accumulator_bits: int = 64,
        observe: Observer | None = None,
        pool: Workers = INLINE,
    ) -> None:
        self._start(
            graph,
            numbers,
            pack(graph, inputs, numbers.formats),
            graph.layers,
            accumulator_bits,
            observe,
            pool,
        )
        if observe is not None:
            for name, values in self.values.items():
                observe(name, values)

    @classmethod
    def resumed(
        cls, graph: Graph, numbers: Numbers, values: Mapping[str, Array], layers: Sequence[Layer], pool: Workers = INLINE
    ) -> Untiled:  # fmt: skip
        """A run of some layers, in execution order, that goes on from stored values of all tensors that they need."""
        run = cls.__new__(cls)
        run._start(graph, numbers, dict(values), layers, 64, None, pool)
        return run

    def _start(
        self, graph: Graph, numbers: Numbers, values: dict[str, Array], layers: Sequence[Layer], accumulator_bits: int,
        observe: Observer | None, pool: Workers,
    ) -> None:  # fmt: skip
        self.graph, self.numbers, self.observe = graph, numbers, observe
        self.compute = Compute(graph, numbers.formats, accumulator_bits, pool)
        self.values = values
        self._readers: dict[str, int] = dict.fromkeys(graph.tensors, 0)
        for layer in layers:
            for name in dict.fromkeys(layer.reads()):
                self._readers[name] += 1
        for window in graph.outputs:
            for part in window.parts:
                self._readers[part.tensor] += 1

    def decoded(self, name: str) -> Array:
        """A whole tensor as FP32."""
        return decode(self._whole(name), self.numbers.formats[name])

    def layer(self, layer: Layer) -> None:
        """Run one layer, its epilogue included."""
        reads = {number: self._blocks(o) for number, o in enumerate(layer.operands)}
        shape = self.graph.tensors[layer.output].shape
        out = TensorBox(layer.output, (0, 0, 0, 0), shape)
        position = MAIN
        if layer.op in ("conv", "linear", "matmul"):
            values, position = self._product(layer, reads, out)
        else:
            values = self.compute.vector(layer, self._vector_reads(layer, reads, out), out)
        self._see(stage_after(layer, position).key, values)
        for index, entry in enumerate(layer.epilogue):
            if index > position and entry.function != "scale":
                piece = Block(layer.output, (0, 0, 0, 0), values)
                values = self.compute.epilogue(layer, index, {OUT: [piece], **reads})
                self._see(stage_after(layer, index).key, values)
        self.values[layer.output] = values
        for name in dict.fromkeys(layer.reads()):
            self._readers[name] -= 1
            if not self._readers[name]:
                self.values.pop(name, None)

    def _product(self, layer: Layer, reads: dict[int, list[Block]], out: TensorBox) -> tuple[Array, int]:
        factors = {
            X: reads[0],
            1: [
                b for i, o in enumerate(layer.operands) if o.role in ("weight", "bias", "y") for b in reads[i]
            ],
        }
        if not layer.attributes.get("gated"):
            return self.compute.product(layer, factors, [out], int(layer.attributes.get("heads", 1)))[0], MAIN
        halves = [_half(b, i, out.shape[3]) for i in (0, 1) for b in factors[1]]
        results = self.compute.product(layer, {X: reads[0], 1: halves}, [out, out], 1)
        key = stage_after(layer, MAIN).key
        for result in results:
            self._see(key, result)
        pieces = [Block(layer.output, (0, 0, 0, 0), r) for r in results]
        return self.compute.gate(layer, pieces), gate_position(layer)

    def _vector_reads(
        self, layer: Layer, reads: dict[int, list[Block]], out: TensorBox
    ) -> dict[int, list[Block]]:
        main = {
            i: b
            for i, b in reads.items()
            if layer.operands[i].role in ("x", "residual", "broadcast", "whole")
        }
        epilogue = {e.operand for e in layer.epilogue}
        main = {i: b for i, b in main.items() if i not in epilogue}
        parameters = [
            b for i, o in enumerate(layer.operands) if o.role in ("scale", "bias") for b in reads[i]
        ]
        if parameters:
            main[PARAMETERS] = parameters
        if layer.op == "gather":
            rows = wanted_rows(self.graph, layer, reads[0], out)
            main = {
                X: reads[0],
                PARAMETERS: [Block(reads[1][0].tensor, (0, 0, 0, 0), _rows_of(reads[1][0], rows, out))],
            }
        if layer.op == "group_norm":
            statistics = self.compute.statistics(layer, main)
            main[STATISTICS] = [Block("", (0, 0, 0, 0), statistics)]
        return main

    def _see(self, key: str, values: Array) -> None:
        if self.observe is not None:
            self.observe(key, values)

    def _blocks(self, operand: Operand) -> list[Block]:
        return [
            Block(
                p.tensor,
                (0, 0, 0, p.start),
                np.ascontiguousarray(self._whole(p.tensor)[..., p.start : p.start + p.size]),
            )
            for p in operand.parts
        ]

    def _whole(self, name: str) -> Array:
        if name not in self.values:
            self.values[name] = self.numbers.weight(name)
        return self.values[name]


def _half(block: Block, half: int, cols: int) -> Block:
    """Rows of a gated weight, or columns of its bias, that belong to one half of the product."""
    low = half * cols
    if block.data.shape[2] == 2 * cols:
        return Block(block.tensor, (0, 0, low, 0), block.data[:, :, low : low + cols])
    return Block(block.tensor, (0, 0, 0, low), block.data[..., low : low + cols])


def _rows_of(table: Block, rows: Array, out: TensorBox) -> Array:
    return np.asarray(table.data[0, 0, rows].reshape(out.shape))
