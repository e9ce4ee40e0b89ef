"""Appends commands to a Program and finds their dependencies.

For each buffer the builder remembers which boxes were written by whom and read by whom since. A buffer that takes the place of
another waits for all that still touch the old one. So dependencies are complete on SRAM and DRAM ranges, whatever the queues do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npusim.dtypes import PAIRS
from npusim.graph import Shape4
from npusim.layout import Layout
from npusim.program import (
    DRAM,
    FLAG_HANDOVER,
    READ,
    SRAM,
    Accesses,
    Buffers,
    Commands,
    Gang,
    Program,
    Tensors,
)


@dataclass(slots=True, eq=False)
class _Record:
    """One written box: who wrote it, who read it since."""

    low: Shape4
    high: Shape4
    writer: int
    readers: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Box:
    """A box of a tensor, in the buffer that holds it."""

    buffer: int
    offset: Shape4
    shape: Shape4


@dataclass(slots=True)
class _State:
    """What is known of a buffer while lowering."""

    records: list[_Record] = field(default_factory=list)
    pending: tuple[int, ...] = ()
    tracked: bool = True


_COMMAND_COLUMNS = (
    "opcode", "gang", "step", "segment", "layer", "tile", "role", "pair", "function",
    "batch", "m", "n", "k", "macs", "recomputed_macs", "flags", "attributes",
)  # fmt: skip
_COMPUTE = ("tensor", "vector")


class ProgramBuilder:
    """Collects the columns of a Program, in serial order."""

    def __init__(
        self, gangs: Sequence[Gang], lanes: Sequence[str], layers: Sequence[str], segments: Sequence[str]
    ) -> None:
        self.gangs, self.lanes = tuple(gangs), tuple(lanes)
        self.layers, self.segments = tuple(layers), tuple(segments)
        self._tensors: list[tuple[str, str, Shape4, int, Layout]] = []
        self._buffers: list[tuple[int, int, int, int, int, int, Shape4, Shape4]] = []
        self._states: list[_State] = []
        self._occupants: dict[tuple[int, int], int] = {}  # disjoint address ranges
        self._rows: list[tuple[int, ...]] = []
        self._deps: list[list[int]] = []
        self._accesses: list[tuple[int, int, int, int, Shape4, Shape4]] = []
        self._functions: dict[str, int] = {}
        self._attributes: dict[str, int] = {}
        self._attribute_table: list[Mapping[str, Any]] = []
        self._handed: set[tuple[int, str]] = set()
        self._dram_top = 0

    # ---- tables ------------------------------------------------------------------------------------------------

    def tensor(self, name: str, kind: str, shape: Shape4, element_bytes: int, layout: Layout) -> int:
        """Add a logical tensor; returns its index."""
        self._tensors.append((name, kind, shape, element_bytes, layout))
        return len(self._tensors) - 1

    def sram_buffer(
        self, tensor: int, address: int, size: int, offset: Shape4, shape: Shape4, slot: int = -1
    ) -> int:
        """Add a place in SRAM for a box of a tensor. It waits for whatever still uses these addresses."""
        index = len(self._buffers)
        before = self._occupants.get((address, address + size))
        pending = self._outstanding(before) if before is not None else self._evict(address, address + size)
        self._occupants[address, address + size] = index
        self._buffers.append((tensor, SRAM, address, size, slot, -1, offset, shape))
        self._states.append(_State(pending=tuple(sorted(pending))))
        return index

    def _evict(self, low: int, high: int) -> set[int]:
        """Free a range that others occupy in part; returns the commands that still touch what they hold there."""
        pending: set[int] = set()
        for (start, end), owner in list(self._occupants.items()):
            if end <= low or start >= high:
                continue
            pending |= self._outstanding(owner)
            del self._occupants[start, end]
            if start < low:
                self._occupants[start, low] = owner
            if end > high:
                self._occupants[high, end] = owner
        return pending

    def dram_buffer(self, tensor: int, size: int, *, tracked: bool) -> int:
        """Add the place of a whole tensor in DRAM; constants need no tracking, since nothing writes them."""
        shape = self._tensors[tensor][2]
        self._buffers.append((tensor, DRAM, self._dram_top, size, -1, -1, (0, 0, 0, 0), shape))
        self._dram_top += -(-size // 64) * 64
        self._states.append(_State(tracked=tracked))
        return len(self._buffers) - 1

    def whole(self, buffer: int) -> Box:
        """The box that a buffer holds."""
        _, _, _, _, _, _, offset, shape = self._buffers[buffer]
        return Box(buffer, offset, shape)

    def address_of(self, buffer: int) -> int:
        """Address of a buffer in its space."""
        return self._buffers[buffer][2]

    def function(self, name: str) -> int:
        """Index of a vector function name."""
        return self._functions.setdefault(name, len(self._functions))

    def _attribute(self, attributes: Mapping[str, Any]) -> int:
        key = repr(sorted(attributes.items())) if attributes else ""
        if key not in self._attributes:
            self._attributes[key] = len(self._attribute_table)
            self._attribute_table.append(dict(attributes))
        return self._attributes[key]

    # ---- commands ----------------------------------------------------------------------------------------------

    def command(
        self,
        opcode: int,
        gang: int,
        *,
        layer: int,
        role: int,
        reads: Sequence[tuple[int, Box]] = (),
        writes: Sequence[tuple[int, Box]] = (),
        segment: int = -1,
        tile: int = -1,
        pair: str = "",
        function: str = "",
        extents: tuple[int, int, int, int] = (0, 0, 0, 0),
        flags: int = 0,
        attributes: Mapping[str, Any] | None = None,
    ) -> int:
        """Append a command; `reads` and `writes` pair an operand number with a box. Returns its index."""
        index = len(self._rows)
        kind = self.gangs[gang].kind
        deps: set[int] = set()
        for operand, box in reads:
            flags |= self._read(index, kind, box, deps)
            self._accesses.append((index, operand, READ, box.buffer, box.offset, box.shape))
        for operand, box in writes:
            self._write(index, box, deps)
            self._accesses.append((index, operand, READ + 1, box.buffer, box.offset, box.shape))
        deps.discard(index)
        batch, m, n, k = extents
        self._rows.append((
            opcode, gang, index, segment, layer, tile, role, PAIRS.index(pair) if pair else -1,
            self.function(function) if function else -1, batch, m, n, k, batch * m * n * k if pair else 0, 0, flags,
            self._attribute(attributes or {}),
        ))  # fmt: skip
        self._deps.append(sorted(deps))
        return index

    def _read(self, index: int, kind: str, box: Box, deps: set[int]) -> int:
        state = self._states[box.buffer]
        if not state.tracked:
            return 0
        flags = 0
        for record in _met(state.records, *_corners(box)):
            deps.add(record.writer)
            record.readers.append(index)
            flags |= self._handover(record.writer, kind, box.buffer)
        return flags

    def _handover(self, writer: int, kind: str, buffer: int) -> int:
        """Charged once for each written box and kind of consumer."""
        if kind not in _COMPUTE or self._buffers[buffer][1] != SRAM or writer >= len(self._rows):
            return 0
        source = self.gangs[self._rows[writer][1]].kind
        if source not in _COMPUTE or source == kind or (writer, kind) in self._handed:
            return 0
        self._handed.add((writer, kind))
        return FLAG_HANDOVER

    def _write(self, index: int, box: Box, deps: set[int]) -> None:
        state = self._states[box.buffer]
        low, high = _corners(box)
        deps.update(state.pending)
        for record in _met(state.records, low, high):
            deps.update(record.readers or (record.writer,))
            if _inside(record, low, high):
                state.records.remove(record)
        state.records.append(_Record(low, high, index))

    def _outstanding(self, buffer: int) -> set[int]:
        state = self._states[buffer]
        found = set(state.pending) if not state.records else set()
        for record in state.records:
            found.update(record.readers or (record.writer,))
        return found

    # ---- the result --------------------------------------------------------------------------------------------

    def build(self) -> Program:
        """The finished Program."""
        rows = np.asarray(self._rows, dtype=np.int64).reshape(len(self._rows), len(_COMMAND_COLUMNS))
        columns = {name: np.ascontiguousarray(rows[:, i]) for i, name in enumerate(_COMMAND_COLUMNS)}
        dep_ptr = np.concatenate([[0], np.cumsum([len(d) for d in self._deps], dtype=np.int64)]).astype(
            np.int64
        )
        dep_idx = np.asarray([d for deps in self._deps for d in deps], dtype=np.int64)
        return Program(
            gangs=self.gangs,
            lanes=self.lanes,
            layers=self.layers,
            segments=self.segments,
            functions=tuple(self._functions),
            attributes=tuple(self._attribute_table),
            tensors=self._tensor_table(),
            buffers=self._buffer_table(),
            commands=Commands(**columns, dep_ptr=dep_ptr, dep_idx=dep_idx),
            accesses=self._access_table(),
        )

    def _tensor_table(self) -> Tensors:
        return Tensors(
            name=tuple(t[0] for t in self._tensors),
            kind=tuple(t[1] for t in self._tensors),
            shape=np.asarray([t[2] for t in self._tensors], dtype=np.int64).reshape(-1, 4),
            element_bytes=np.asarray([t[3] for t in self._tensors], dtype=np.int64),
            layout=np.asarray([(t[4].block, t[4].padded) for t in self._tensors], dtype=np.int64).reshape(
                -1, 2
            ),
        )

    def _buffer_table(self) -> Buffers:
        flat = np.asarray([b[:6] for b in self._buffers], dtype=np.int64).reshape(-1, 6)
        return Buffers(
            **{
                n: np.ascontiguousarray(flat[:, i])
                for i, n in enumerate(("tensor", "space", "address", "stored_bytes", "slot", "alias_of"))
            },
            offset=np.asarray([b[6] for b in self._buffers], dtype=np.int64).reshape(-1, 4),
            shape=np.asarray([b[7] for b in self._buffers], dtype=np.int64).reshape(-1, 4),
        )

    def _access_table(self) -> Accesses:
        flat = np.asarray([a[:4] for a in self._accesses], dtype=np.int64).reshape(-1, 4)
        return Accesses(
            **{
                n: np.ascontiguousarray(flat[:, i])
                for i, n in enumerate(("command", "operand", "mode", "buffer"))
            },
            offset=np.asarray([a[4] for a in self._accesses], dtype=np.int64).reshape(-1, 4),
            shape=np.asarray([a[5] for a in self._accesses], dtype=np.int64).reshape(-1, 4),
        )


def _corners(box: Box) -> tuple[Shape4, Shape4]:
    o, s = box.offset, box.shape
    return o, (o[0] + s[0], o[1] + s[1], o[2] + s[2], o[3] + s[3])


def _met(records: list[_Record], low: Shape4, high: Shape4) -> list[_Record]:
    """The records whose boxes meet a box."""
    if not records:
        return records
    b0, h0, r0, c0 = low
    b1, h1, r1, c1 = high
    return [
        r
        for r in records
        if r.low[2] < r1
        and r0 < r.high[2]
        and r.low[3] < c1
        and c0 < r.high[3]
        and r.low[1] < h1
        and h0 < r.high[1]
        and r.low[0] < b1
        and b0 < r.high[0]
    ]


def _inside(record: _Record, low: Shape4, high: Shape4) -> bool:
    return all(x <= a and b <= y for a, b, x, y in zip(record.low, record.high, low, high, strict=True))
