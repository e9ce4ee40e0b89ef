"""The trace as compact columns for the page: few bytes per command, grouped by gang and ordered in time.

Times are counted in quanta of `quantum_ps` (1 ps up to a makespan of 2 ms, then as many as keep 31 bits). What many
commands share (layer, role, shape, bytes ...) is one row of a table of classes.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from npusim.cost import Work
from npusim.program import DRAM, LOAD, PRODUCT, ROLE, STORE, Program
from npusim.reports.theme import CATEGORIES
from npusim.summary import intermediate_transfers
from npusim.trace import Trace

Ints = npt.NDArray[np.int64]
CATEGORY = {name: i for i, name in enumerate(CATEGORIES)}
CLASS_COLUMNS = (
    "opcode", "layer", "role", "pair", "function", "batch", "m", "n", "k", "segment", "bytes", "tensor", "category",
)  # fmt: skip
NORM_FUNCTIONS = ("layer_norm", "group_norm_stats", "group_norm_apply")


@dataclass(slots=True)
class Columns:
    """Named typed arrays that travel as one compressed text."""

    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    ascending: set[str] = field(default_factory=set)

    def add(self, name: str, values: npt.NDArray[Any], *, ascending: bool = False) -> None:
        """Store a column of non-negative integers (or -1) in the narrowest type that holds it.

        Columns that ascend are stored as differences, which compress three to twenty times better.
        """
        if ascending:
            values = np.diff(values, prepend=0)
            self.ascending.add(name)
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        for kind in (np.uint8, np.uint16, np.uint32) if low >= 0 else (np.int8, np.int16, np.int32):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                self.arrays[name] = values.astype(kind)
                return
        self.arrays[name] = values.astype(np.float64)

    def index(self) -> list[tuple[str, str, int, bool]]:
        """(name, numpy type, length, whether it holds differences) of each column, widest types first, in the order of `text`."""
        return [(n, str(a.dtype), len(a), n in self.ascending) for n, a in self._ordered()]

    def text(self) -> str:
        """All columns: zlib, then base64."""
        raw = b"".join(a.tobytes() for _, a in self._ordered())
        return base64.b64encode(zlib.compress(raw, 6)).decode("ascii")

    def _ordered(self) -> list[tuple[str, npt.NDArray[Any]]]:
        """Widest first, so that every column starts at a multiple of its element size."""
        return sorted(self.arrays.items(), key=lambda item: -item[1].itemsize)


def quantum_ps(makespan_ps: int) -> int:
    """Picoseconds per unit of time on the page, so that the makespan fits 31 bits."""
    return max(1, -(-makespan_ps // (2**31 - 1)))


def categories(program: Program) -> Ints:
    """[n] index into `theme.CATEGORIES`: why each command runs, for its colour."""
    commands = program.commands
    dma = (commands.opcode == LOAD) | (commands.opcode == STORE)
    attention = np.isin(commands.role, (ROLE["qk"], ROLE["pv"]))
    norms = [i for i, f in enumerate(program.functions) if f in NORM_FUNCTIONS]
    return np.select(
        [
            dma & intermediate_transfers(program),
            dma & (commands.role == ROLE["weight"]),
            dma,
            (commands.opcode == PRODUCT) & attention,
            commands.opcode == PRODUCT,
            commands.role == ROLE["softmax"],
            np.isin(commands.function, norms),
        ],
        [
            CATEGORY["DMA: intermediates"],
            CATEGORY["DMA: weights"],
            CATEGORY["DMA: inputs and outputs"],
            CATEGORY["attention product"],
            CATEGORY["product with weights"],
            CATEGORY["softmax"],
            CATEGORY["normalization"],
        ],
        CATEGORY["other vector work"],
    ).astype(np.int64)


def _details(program: Program, work: Work) -> dict[str, Ints]:
    """Class columns [n]; for transfers `batch, m, n, k` hold the box moved and `tensor` what it is a box of.

    `bytes` cross the DRAM bus in transfers; in other commands they are those of the boxes read and written in SRAM.
    """
    commands, accesses = program.commands, program.accesses
    columns = {name: np.array(getattr(commands, name)) for name in CLASS_COLUMNS[:10]}
    transfer = (commands.opcode == LOAD) | (commands.opcode == STORE)
    columns["bytes"] = np.where(transfer, work.dram_bytes, _touched_bytes(program))
    columns["tensor"] = np.full(len(program), -1)
    columns["category"] = categories(program)
    moved = np.flatnonzero(program.buffers.space[accesses.buffer] == DRAM)[::-1]
    at = accesses.command[moved]
    columns["tensor"][at] = program.buffers.tensor[accesses.buffer[moved]]
    for axis, name in enumerate(("batch", "m", "n", "k")):
        columns[name][at] = accesses.shape[moved, axis]
    return columns


def _touched_bytes(program: Program) -> Ints:
    """[n] bytes of all boxes that each command reads and writes, without padding."""
    accesses = program.accesses
    element = program.tensors.element_bytes[program.buffers.tensor[accesses.buffer]].astype(np.int64)
    touched = np.zeros(len(program), dtype=np.int64)
    np.add.at(touched, accesses.command, accesses.shape.astype(np.int64).prod(axis=1) * element)
    return touched


def _classes(columns: Mapping[str, Ints]) -> tuple[Ints, Ints]:
    """(a command of each class, class of each command): commands of one class agree in every column."""
    table = np.stack([columns[name] for name in CLASS_COLUMNS], axis=1)
    factors = np.asarray([(0x9E3779B97F4A7C15 * (2 * i + 1) | 1) % 2**63 for i in range(table.shape[1])])
    _, first, inverse = np.unique((table * factors).sum(axis=1), return_index=True, return_inverse=True)
    if not np.array_equal(table[first][inverse], table):  # two keys fell together: do it the slow way
        _, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)


def event_columns(
    program: Program, trace: Trace, work: Work, quantum: int, critical: npt.NDArray[np.bool_]
) -> tuple[Columns, list[int]]:
    """Columns of the timeline, and how many commands each gang has.

    Commands are ordered by gang, then by start. `gap` is the time from the end of the command before (of the same
    gang) to the start, `span` the duration, both in quanta; `class_*` describe the classes.
    """
    gang = program.commands.gang
    order = np.lexsort((trace.end_ps, trace.start_ps, gang))
    start, end = trace.start_ps[order] // quantum, trace.end_ps[order] // quantum
    before = np.where(np.diff(gang[order], prepend=-1) != 0, 0, np.concatenate([[0], end[:-1]]))
    details = _details(program, work)
    first, classes = _classes(details)
    columns = Columns()
    columns.add("gap", start - before)
    columns.add("span", end - start)
    columns.add("class", classes[order])
    columns.add("tile", program.commands.tile[order])
    columns.add("stall", trace.stall[order])
    columns.add("critical", critical[order].astype(np.int64))
    for name in CLASS_COLUMNS:
        columns.add(f"class_{name}", details[name][first])
    return columns, np.bincount(gang, minlength=len(program.gangs)).tolist()


def gangs(program: Program, counts: list[int]) -> list[dict[str, Any]]:
    """Name, kind, lanes and number of commands of each gang, for the page."""
    lanes = program.gang_lanes()
    return [
        {"name": g.name, "kind": g.kind, "lanes": list(lanes[i]), "commands": counts[i]}
        for i, g in enumerate(program.gangs)
    ]


def slices(program: Program) -> list[int]:
    """[layers] how many tiles or pieces each layer has (n of 'tile i of n')."""
    count = np.zeros(len(program.layers), dtype=np.int64)
    np.maximum.at(count, program.commands.layer, program.commands.tile + 1)
    found: list[int] = count.tolist()
    return found
