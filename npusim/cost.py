"""Cycles, time and energy of commands: pure functions of extents and the hardware. Nothing here knows a tensor's name.

Every function takes numpy columns (or scalars) and returns one value per command.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from npusim.arrays import Array, ceil_div, product_steps, shared_steps
from npusim.dtypes import PAIRS
from npusim.hardware import Npu
from npusim.layout import box_bytes_and_runs
from npusim.program import (
    DRAM,
    FLAG_ACTIVATIONS,
    FLAG_HANDOVER,
    LOAD,
    PRODUCT,
    SRAM,
    STORE,
    VECTOR,
    Program,
)
from npusim.units import PS_PER_S

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: (kind of tensor engine, how many), the kind that does most of the work first.
Engines = tuple[tuple[str, int], ...]


def arrays_of(npu: Npu, engines: Engines) -> tuple[Array, ...]:
    """The multiplier arrays of (kind of tensor engine, how many)."""
    described = {e.kind: e for e in npu.tensor_engine}
    return tuple(
        Array(described[kind].array_rows, described[kind].array_cols, described[kind].array_depth, count)
        for kind, count in engines
    )


def step_ps(npu: Npu, pair: str, *, activations: bool) -> float:
    """Picoseconds of one array step.

    Raises:
        KeyError: the hardware has no rate for this operand pair.
    """
    efficiency = npu.tensor_efficiency.activations if activations else npu.tensor_efficiency.weights
    return PS_PER_S / (npu.core.clock_hz * npu.tensor_rates[pair] * efficiency)


def product_ps(
    npu: Npu, arrays: Sequence[Array], extents: Sequence[Any], pair: str, *, activations: bool
) -> Any:
    """Picoseconds of products on a gang of these arrays (`arrays_of`); `extents` is (batch, m, n, k), integers or integer arrays.

    Raises:
        KeyError: the hardware has no rate for this operand pair.
    """
    if len(arrays) == 1:
        steps = product_steps(arrays[0], *extents)
    elif isinstance(extents[0], int):
        steps = shared_steps(*arrays, *extents)
    else:
        steps = _each(arrays, np.stack(extents, axis=1))
    return _up(steps * step_ps(npu, pair, activations=activations))


def _each(arrays: Sequence[Array], extents: Ints) -> Ints:
    """`shared_steps` of each row of extents [n, 4]."""
    unique, inverse = np.unique(extents, axis=0, return_inverse=True)
    steps = np.asarray([shared_steps(*arrays, *row) for row in unique.tolist()], dtype=np.int64)
    return np.asarray(steps[inverse.reshape(-1)])


def vector_ps(npu: Npu, engines: int, elements: Any, operations: Any) -> Any:
    """Picoseconds of `elements` x `operations` lane operations on `engines` vector engines."""
    unit = npu.vector_engine
    cycles = _ceil(elements * operations / (unit.lanes * engines))
    return _up(cycles * (PS_PER_S / (npu.core.clock_hz * unit.efficiency)))


def lane_operations(npu: Npu, function: str) -> float:
    """Lane operations per element of a vector function."""
    table = npu.vector_lane_operations
    return table.get(function, table["default"])


def transfer_bytes(npu: Npu, size_bytes: Any, runs: Any) -> Any:
    """Bytes of bandwidth that a transfer uses up: its own, and an overhead for each contiguous run."""
    return _up(size_bytes + runs * npu.dma.run_overhead_bytes)


def dma_ps(npu: Npu, size_bytes: Any, runs: Any) -> Any:
    """Picoseconds of a transfer that has the DRAM to itself: set-up, then its bytes at the rate of one channel."""
    rate = min(npu.dma.channel_bytes_per_s, npu.dram.dram_shared_bytes_per_s)
    return setup_ps(npu) + _up(transfer_bytes(npu, size_bytes, runs) * (PS_PER_S / rate))


def setup_ps(npu: Npu) -> int:
    """Picoseconds before a transfer moves its first byte."""
    return round(npu.dma.setup_s * PS_PER_S)


def handover_ps(npu: Npu) -> int:
    """Picoseconds that a consumer pays for an operand that another kind of compute engine wrote."""
    return round(npu.handover.handover_s * PS_PER_S)


def _ceil(value: Any) -> Any:
    return ceil(value) if isinstance(value, float) else np.ceil(value)


def _up(value: Any) -> Any:
    """Rounded up to an integer; what is within 1e-3 above one counts as that one (floating-point noise)."""
    if isinstance(value, float | int):
        return ceil(round(value, 3))
    return np.asarray(np.ceil(np.round(value, 3)), dtype=np.int64)


class Work:
    """What each command of a Program asks of the hardware.

    Attributes:
        fixed_ps: [n] duration of compute commands; set-up time of transfers.
        moved: [n] bytes of bandwidth that transfers use (0 for compute).
        dram_bytes: [n] bytes that cross the DRAM bus.
        alone_ps: [n] duration of each command if nothing else uses the DRAM.
        handover_ps: [n] the share of `fixed_ps` that is hand-over.
    """

    def __init__(self, program: Program, npu: Npu) -> None:
        commands = program.commands
        self.dram_bytes, runs = dram_traffic(program)
        dma = (commands.opcode == LOAD) | (commands.opcode == STORE)
        self.moved = np.where(dma, transfer_bytes(npu, self.dram_bytes, runs), 0)
        self.handover_ps = np.where(commands.flags & FLAG_HANDOVER, handover_ps(npu), 0)
        self.fixed_ps = compute_ps(program, npu) + self.handover_ps + np.where(dma, setup_ps(npu), 0)
        rate = min(npu.dma.channel_bytes_per_s, npu.dram.dram_shared_bytes_per_s)
        # plain integers: bytes x 10^12 exceeds 64 bits for transfers over nine megabytes
        moving = [ceil_div(moved * PS_PER_S, rate) for moved in self.moved.tolist()]
        self.alone_ps = self.fixed_ps + np.asarray(moving, dtype=np.int64)


def compute_ps(program: Program, npu: Npu) -> Ints:
    """Picoseconds of each product and vector command, without hand-over; 0 for transfers."""
    commands = program.commands
    result = np.zeros(len(program), dtype=np.int64)
    for index, gang in enumerate(program.gangs):
        mine = commands.gang == index
        if gang.kind == "tensor":
            _fill_products(result, program, npu, gang.counts, mine & (commands.opcode == PRODUCT))
        elif gang.kind == "vector":
            chosen = mine & (commands.opcode == VECTOR)
            rates = np.asarray([lane_operations(npu, f) for f in program.functions] or [0.0])
            result[chosen] = vector_ps(
                npu, len(gang.engines), commands.m[chosen], rates[commands.function[chosen]]
            )
    return result


def _fill_products(
    result: Ints, program: Program, npu: Npu, engines: Engines, chosen: npt.NDArray[np.bool_]
) -> None:
    commands, arrays = program.commands, arrays_of(npu, engines)
    for pair in np.unique(commands.pair[chosen]):
        for activations in (False, True):
            rows = (
                chosen & (commands.pair == pair) & (((commands.flags & FLAG_ACTIVATIONS) > 0) == activations)
            )
            if rows.any():
                extents = tuple(
                    column[rows] for column in (commands.batch, commands.m, commands.n, commands.k)
                )
                result[rows] = product_ps(npu, arrays, extents, PAIRS[int(pair)], activations=activations)


def dram_traffic(program: Program) -> tuple[Ints, Ints]:
    """(bytes, contiguous runs) that each command moves across the DRAM bus."""
    return _traffic(program, DRAM)


def sram_traffic(program: Program) -> Ints:
    """Bytes that each command reads and writes in SRAM."""
    return _traffic(program, SRAM)[0]


def _traffic(program: Program, space: int) -> tuple[Ints, Ints]:
    accesses, buffers, tensors = program.accesses, program.buffers, program.tensors
    chosen = buffers.space[accesses.buffer] == space
    tensor = buffers.tensor[accesses.buffer[chosen]]
    size, runs = box_bytes_and_runs(
        tensors.shape[tensor], accesses.shape[chosen], tensors.layout[tensor], tensors.element_bytes[tensor]
    )
    count = len(program)
    at = accesses.command[chosen]
    return (
        np.bincount(at, weights=size, minlength=count).astype(np.int64),
        np.bincount(at, weights=runs, minlength=count).astype(np.int64),
    )


def energy_pj(program: Program, npu: Npu) -> dict[str, float]:
    """Energy by cause: multiply-accumulates, vector operations, SRAM and DRAM bytes (picojoules)."""
    commands = program.commands
    products = commands.opcode == PRODUCT
    per_pair = np.asarray([npu.energy.mac_pj.get(p, 0.0) for p in PAIRS])
    macs = float((commands.macs[products] * per_pair[commands.pair[products]]).sum())
    rates = np.asarray([lane_operations(npu, f) for f in program.functions] or [0.0])
    vectors = commands.opcode == VECTOR
    operations = float((commands.m[vectors] * rates[commands.function[vectors]]).sum())
    return {
        "macs_pj": macs,
        "vector_pj": operations * npu.energy.vector_operation_pj,
        "sram_pj": float(sram_traffic(program).sum()) * npu.energy.sram_pj_per_byte,
        "dram_pj": float(dram_traffic(program)[0].sum()) * npu.energy.dram_pj_per_byte,
    }


def command_energy_pj(program: Program, npu: Npu) -> npt.NDArray[np.float64]:
    """[n] energy of each command, all causes together (picojoules)."""
    commands = program.commands
    found: npt.NDArray[np.float64] = np.zeros(len(program))
    found += sram_traffic(program) * npu.energy.sram_pj_per_byte
    found += dram_traffic(program)[0] * npu.energy.dram_pj_per_byte
    products, vectors = commands.opcode == PRODUCT, commands.opcode == VECTOR
    per_pair = np.asarray([npu.energy.mac_pj.get(p, 0.0) for p in PAIRS])
    rates = np.asarray([lane_operations(npu, f) for f in program.functions] or [0.0])
    found[products] += commands.macs[products] * per_pair[commands.pair[products]]
    found[vectors] += commands.m[vectors] * rates[commands.function[vectors]] * npu.energy.vector_operation_pj
    return found
