"""Run a Program: exactly its commands, in any order that their dependencies allow, on a scratchpad of the hardware's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from npusim.execute.blocks import Array, Block, stacked
from npusim.execute.compute import Compute
from npusim.execute.formats import Numbers
from npusim.execute.memory import Memory, program_dtypes
from npusim.execute.online import ONLINE
from npusim.execute.order import Order, run_in_order
from npusim.execute.vector_layers import X, Y, wanted_rows
from npusim.execute.windows import pack, unpack
from npusim.execute.workers import Workers, workers
from npusim.garbage import uncollected_cycles
from npusim.graph import Graph, Layer
from npusim.lower.geometry import TensorBox
from npusim.lower.statistics import statistics_tensor
from npusim.plan import Plan
from npusim.program import LOAD, PRODUCT, READ, STORE, Program
from npusim.quantize import decode


def execute(
    graph: Graph,
    plan: Plan,
    program: Program,
    numbers: Numbers,
    inputs: Mapping[str, Array],
    *,
    order: Order = "parallel",
    seed: int = 0,
) -> dict[str, Array]:
    """Outputs of the model, computed by the commands of a Program.

    Args:
        graph: the layers that the Program was lowered from.
        plan: its decisions (the hardware is in it).
        program: `lower(graph, plan)`.
        numbers: formats of all tensors, and the weights in them.
        inputs: arrays by input name, in the model's shapes.
        order: `parallel` (several commands at a time, as their dependencies allow), `serial`, or `random`: one at a time in an order
            drawn from `seed`. All give the same bits.

    Returns:
        FP32 arrays by output name, in the model's shapes.

    Raises:
        BadInputError: an input is missing, unknown, ill-shaped or not finite.
        RaceError, StoreError: the Program is wrong.
        AccumulatorOverflowError: an integer sum does not fit the hardware.
    """
    with workers() as pool, uncollected_cycles():
        return _Run(graph, plan, program, numbers, inputs, pool).outputs(order, seed)


class _Sources:
    """Inputs and weights by name. While one weight is used, the next in serial order is read and encoded."""

    def __init__(
        self, program: Program, stored: Mapping[str, Array], numbers: Numbers, pool: Workers
    ) -> None:
        self._stored, self._numbers, self._pool = stored, numbers, pool
        tensors = program.buffers.tensor[program.accesses.buffer]
        used = dict.fromkeys(tensors[program.accesses.mode == READ].tolist())
        kinds, names = program.tensors.kind, program.tensors.name
        weights = [names[t] for t in used if kinds[t] == "weight" and names[t] not in stored]
        self._next = dict(pairwise(weights))
        self._begun: dict[str, Future[Array]] = {}
        self._given: set[str] = set()

    def get(self, name: str) -> Array:
        """The stored data of a tensor that no command writes."""
        if name in self._stored:
            return self._stored[name]
        begun = self._begun.pop(name, None)
        waits = begun is None or begun.cancel()
        found = self._numbers.weight(name) if begun is None or waits else begun.result()
        self._given.add(name)
        following = self._next.get(name)
        if following is not None and following not in self._given and self._pool.threads > 1:
            self._begun[following] = self._pool.ahead(partial(self._numbers.weight, following))
        return found


class _Run:
    """One execution."""

    def __init__(
        self, graph: Graph, plan: Plan, program: Program, numbers: Numbers, inputs: Mapping[str, Array], pool: Workers
    ) -> None:  # fmt: skip
        self.graph, self.program, self.numbers = graph, program, numbers
        stored = pack(graph, inputs, numbers.formats)
        types = {name: numbers.formats[name].numpy for name in graph.tensors}
        types.update(
            {f"{x.name}:rows": types[x.operands[1].parts[0].tensor] for x in graph.layers if x.op == "gather"}
        )
        dtypes = program_dtypes(program, types)
        self.memory = Memory(
            program,
            plan.npu.sram.sram_bytes,
            dtypes,
            _Sources(program, stored, numbers, pool).get,
        )
        bits = min(e.accumulator_bits for e in plan.npu.tensor_engine)
        self.compute = Compute(graph, numbers.formats, bits, pool)
        by_name = {x.name: x for x in graph.layers}
        self.layers: list[Layer] = [by_name[name] for name in program.layers]
        self._norms = {statistics_tensor(x.name): x for x in graph.layers if x.op == "group_norm"}
        accesses = program.accesses
        self._first: list[int] = np.searchsorted(accesses.command, np.arange(len(program) + 1)).tolist()
        self._mode, self._operand = accesses.mode.tolist(), accesses.operand.tolist()
        self._names = [program.tensors.name[t] for t in program.buffers.tensor[accesses.buffer].tolist()]
        commands = program.commands
        self._opcode, self._layer, self._heads = (
            c.tolist() for c in (commands.opcode, commands.layer, commands.batch)
        )
        self._attributes = [program.attributes[i] for i in commands.attributes.tolist()]
        functions = (*program.functions, "")  # -1: none
        self._function = [functions[i] for i in commands.function.tolist()]

    def outputs(self, order: Order, seed: int) -> dict[str, Array]:
        """Run every command, then take the outputs from DRAM."""
        run_in_order(self.program, order, seed, self.run, self.compute.workers)
        position = {name: i for i, name in enumerate(self.program.tensors.name)}

        def whole(name: str) -> Array:
            return decode(self.memory.result(position[name]), self.numbers.formats[name])

        return unpack(self.graph, whole)

    def run(self, command: int) -> None:
        """Run one command."""
        accesses = range(self._first[command], self._first[command + 1])
        reads = [a for a in accesses if self._mode[a] == READ]
        writes = [a for a in accesses if self._mode[a] != READ]
        opcode, layer = self._opcode[command], self.layers[self._layer[command]]
        attributes = self._attributes[command]
        if opcode == LOAD and attributes.get("gathers"):
            self._gather(layer, reads, writes[0])
        elif opcode in (LOAD, STORE):
            self._move(reads, writes)
        else:
            results = self._computed(command, opcode, layer, attributes, reads, writes)
            for access, values in zip(writes, results, strict=True):
                self.memory.write(access, values)

    def _move(self, reads: Sequence[int], writes: Sequence[int]) -> None:
        for source, target in zip(reads, writes, strict=True):
            self.memory.write(target, self.memory.read(source))

    def _gather(self, layer: Layer, reads: Sequence[int], write: int) -> None:
        index = [self._block(a) for a in reads if self._operand[a] == 1]
        rows = wanted_rows(self.graph, layer, index, self._box(write))
        self.memory.write(write, self.memory.gather(reads[0], rows))

    def _computed(
        self,
        command: int,
        opcode: int,
        layer: Layer,
        attributes: Mapping[str, Any],
        reads: Sequence[int],
        writes: Sequence[int],
    ) -> list[Array]:
        blocks: dict[int, list[Block]] = {}
        for access in reads:
            blocks.setdefault(self._operand[access], []).append(self._block(access))
        if opcode != PRODUCT or layer.op == "matmul":
            blocks = {number: stacked(parts) for number, parts in blocks.items()}
        else:
            blocks = {n: parts if n == Y else stacked(parts) for n, parts in blocks.items()}
        if "online" in attributes:
            out, heads = self._box(writes[0]), self._heads[command]
            if opcode == PRODUCT:
                return [self.compute.part(layer, blocks, out, heads)]
            return ONLINE[attributes["online"]](self.compute, layer, blocks, out)
        if opcode == PRODUCT:
            return self.compute.product(layer, blocks, [self._box(a) for a in writes], self._heads[command])
        if "epilogue" in attributes:
            return [self.compute.epilogue(layer, int(attributes["epilogue"]), blocks)]
        function = self._function[command]
        if function == "geglu":
            return [self.compute.gate(layer, [blocks[0][0], blocks[1][0]])]
        if function == "group_norm_stats":
            return self._sums(writes, blocks)
        return [self.compute.vector(layer, blocks, self._box(writes[0]))]

    def _sums(self, writes: Sequence[int], blocks: dict[int, list[Block]]) -> list[Array]:
        """Sums for the norm whose statistics are written: zeros to begin with, or those of one more piece added."""
        if X not in blocks:
            return [np.zeros(self.memory.shape[a]) for a in writes]
        return [self.compute.statistics(self._norms[self._names[writes[0]]], blocks)]

    def _block(self, access: int) -> Block:
        values = self.memory.read(access)
        return Block(self._names[access], self.memory.offset[access], values, self.memory.origin(access))

    def _box(self, access: int) -> TensorBox:
        return TensorBox(self._names[access], self.memory.offset[access], self.memory.shape[access])
