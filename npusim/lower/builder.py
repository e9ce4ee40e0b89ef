"""Appends commands to a Program and finds their dependencies.

For each buffer the builder remembers which boxes were written by whom and read by whom since. A buffer that takes the place of
another waits for all that still touch the old one. So dependencies are complete on SRAM and DRAM ranges, whatever the queues do.
"""

from __future__ import annotations

from array import array
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
    WRITE,
    Accesses,
    Buffers,
    Commands,
    Gang,
    Ints,
    Program,
    Tensors,
)


@dataclass(slots=True, eq=False)
class Record:
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
class State:
    """What is known of a buffer while lowering."""

    records: list[Record] = field(default_factory=list)
    pending: tuple[int, ...] = ()
    tracked: bool = True


COMMAND_COLUMNS = (
    "opcode", "gang", "step", "segment", "layer", "tile", "role", "pair", "function",
    "batch", "m", "n", "k", "macs", "recomputed_macs", "flags", "attributes",
)  # fmt: skip
#: Columns of an access: command, operand, mode, buffer, offset, shape.
ACCESS_WIDTH = 12
#: From this extent on, boxes need more than 32 bits.
LONG_AXIS = 2**31
_COMPUTE = ("tensor", "vector")


class Table:
    """Rows of integers, appended one by one or as an array.

    Attributes:
        dtype: of the array that they become.
    """

    def __init__(self, width: int, dtype: type[np.signedinteger[Any]] = np.int64) -> None:
        self.width, self.dtype = width, dtype
        self.fresh: list[tuple[int, ...]] = []
        self._chunks: list[Ints] = []

    def extend(self, rows: Ints) -> None:
        """Append an array [n, width]."""
        self._settle()
        self._chunks.append(rows)

    def last(self, count: int) -> Ints:
        """The last rows, which were appended one by one: [count, width]."""
        rows = self.fresh[len(self.fresh) - count :]
        return np.asarray(rows, dtype=self.dtype).reshape(count, self.width)

    def array(self) -> Ints:
        """All rows: [n, width]."""
        self._settle()
        return np.concatenate([np.empty((0, self.width), dtype=self.dtype), *self._chunks], dtype=self.dtype)

    def _settle(self) -> None:
        if self.fresh:
            self._chunks.append(self.last(len(self.fresh)))
            self.fresh = []


class ProgramBuilder:
    """Collects the columns of a Program, in serial order."""

    def __init__(
        self, gangs: Sequence[Gang], lanes: Sequence[str], layers: Sequence[str], segments: Sequence[str]
    ) -> None:
        self.gangs, self.lanes = tuple(gangs), tuple(lanes)
        self.layers, self.segments = tuple(layers), tuple(segments)
        self.tensors: list[tuple[str, str, Shape4, int, Layout]] = []
        self.buffers: list[tuple[int, int, int, int, int, int, Shape4, Shape4]] = []
        self.states: list[State] = []
        self.occupants: dict[tuple[int, int], int] = {}  # disjoint address ranges
        self.rows = Table(len(COMMAND_COLUMNS))
        self.kinds: list[str] = []  # of the gang of each command
        self.deps: list[array[int]] = []  # a number in a list takes nine times as much memory
        self.accesses = Table(ACCESS_WIDTH, np.int32)  # most of a Program's memory
        self.born: list[int] = []  # how many commands there were when a buffer was added
        self.functions: list[str] = []
        self._function_index: dict[str, int] = {}
        self.attributes: list[Mapping[str, Any]] = []
        self._attribute_index: dict[str, int] = {}
        self.handed: dict[tuple[int, str], int] = {}
        self._dram_top = 0

    # ---- tables ------------------------------------------------------------------------------------------------

    def tensor(self, name: str, kind: str, shape: Shape4, element_bytes: int, layout: Layout) -> int:
        """Add a logical tensor; returns its index."""
        if max(shape) >= LONG_AXIS:
            self.accesses.dtype = np.int64
        self.tensors.append((name, kind, shape, element_bytes, layout))
        return len(self.tensors) - 1

    def sram_buffer(
        self, tensor: int, address: int, size: int, offset: Shape4, shape: Shape4, slot: int = -1
    ) -> int:
        """Add a place in SRAM for a box of a tensor. It waits for whatever still uses these addresses."""
        index = len(self.buffers)
        before = self.occupants.get((address, address + size))
        pending = self._outstanding(before) if before is not None else self.evict(address, address + size)
        self.occupants[address, address + size] = index
        self.buffers.append((tensor, SRAM, address, size, slot, -1, offset, shape))
        self.states.append(State(pending=tuple(sorted(pending))))
        self.born.append(len(self.kinds))
        return index

    def evict(self, low: int, high: int) -> set[int]:
        """Free a range that others occupy in part; returns the commands that still touch what they hold there."""
        pending: set[int] = set()
        for (start, end), owner in list(self.occupants.items()):
            if end <= low or start >= high:
                continue
            pending |= self._outstanding(owner)
            del self.occupants[start, end]
            if start < low:
                self.occupants[start, low] = owner
            if end > high:
                self.occupants[high, end] = owner
        return pending

    def dram_buffer(self, tensor: int, size: int, *, tracked: bool) -> int:
        """Add the place of a whole tensor in DRAM; constants need no tracking, since nothing writes them."""
        shape = self.tensors[tensor][2]
        self.buffers.append((tensor, DRAM, self._dram_top, size, -1, -1, (0, 0, 0, 0), shape))
        self._dram_top += -(-size // 64) * 64
        self.states.append(State(tracked=tracked))
        self.born.append(len(self.kinds))
        return len(self.buffers) - 1

    def whole(self, buffer: int) -> Box:
        """The box that a buffer holds."""
        _, _, _, _, _, _, offset, shape = self.buffers[buffer]
        return Box(buffer, offset, shape)

    def address_of(self, buffer: int) -> int:
        """Address of a buffer in its space."""
        return self.buffers[buffer][2]

    def function(self, name: str) -> int:
        """Index of a vector function name."""
        if name not in self._function_index:
            self._function_index[name] = len(self.functions)
            self.functions.append(name)
        return self._function_index[name]

    def attribute(self, attributes: Mapping[str, Any]) -> int:
        key = repr(sorted(attributes.items())) if attributes else ""
        if key not in self._attribute_index:
            self._attribute_index[key] = len(self.attributes)
            self.attributes.append(dict(attributes))
        return self._attribute_index[key]

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
        index = len(self.kinds)
        kind = self.gangs[gang].kind
        deps: set[int] = set()
        for operand, box in reads:
            flags |= self.read(index, kind, box, deps)
            self.accesses.fresh.append((index, operand, READ, box.buffer, *box.offset, *box.shape))
        for operand, box in writes:
            self.write(index, box, deps)
            self.accesses.fresh.append((index, operand, WRITE, box.buffer, *box.offset, *box.shape))
        deps.discard(index)
        batch, m, n, k = extents
        self.rows.fresh.append((
            opcode, gang, index, segment, layer, tile, role, PAIRS.index(pair) if pair else -1,
            self.function(function) if function else -1, batch, m, n, k, batch * m * n * k if pair else 0, 0, flags,
            self.attribute(attributes or {}),
        ))  # fmt: skip
        self.kinds.append(kind)
        self.deps.append(array("i", sorted(deps)))
        return index

    def read(self, index: int, kind: str, box: Box, deps: set[int]) -> int:
        """Note that a command reads a box: adds what it must wait for to `deps`, returns its flags."""
        state = self.states[box.buffer]
        if not state.tracked:
            return 0
        flags = 0
        for record in _met(state.records, *_corners(box)):
            deps.add(record.writer)
            record.readers.append(index)
            flags |= self._handover(record.writer, index, kind, box.buffer)
        return flags

    def _handover(self, writer: int, index: int, kind: str, buffer: int) -> int:
        """Charged once for each written box and kind of consumer."""
        if kind not in _COMPUTE or self.buffers[buffer][1] != SRAM:
            return 0
        source = self.kinds[writer]
        if source not in _COMPUTE or source == kind or (writer, kind) in self.handed:
            return 0
        self.handed[writer, kind] = index
        return FLAG_HANDOVER

    def write(self, index: int, box: Box, deps: set[int]) -> None:
        """Note that a command writes a box: adds what it must wait for to `deps`."""
        state = self.states[box.buffer]
        low, high = _corners(box)
        deps.update(state.pending)
        for record in _met(state.records, low, high):
            deps.update(record.readers or (record.writer,))
            if _inside(record, low, high):
                state.records.remove(record)
        state.records.append(Record(low, high, index))

    def _outstanding(self, buffer: int) -> set[int]:
        state = self.states[buffer]
        found = set(state.pending) if not state.records else set()
        for record in state.records:
            found.update(record.readers or (record.writer,))
        return found

    # ---- the result --------------------------------------------------------------------------------------------

    def build(self) -> Program:
        """The finished Program."""
        rows = self.rows.array()
        columns = {name: np.ascontiguousarray(rows[:, i]) for i, name in enumerate(COMMAND_COLUMNS)}
        dep_ptr = np.concatenate([[0], np.cumsum([len(d) for d in self.deps], dtype=np.int64)]).astype(
            np.int64
        )
        dep_idx = np.frombuffer(b"".join(self.deps), dtype=np.intc).astype(np.int64)
        return Program(
            gangs=self.gangs,
            lanes=self.lanes,
            layers=self.layers,
            segments=self.segments,
            functions=tuple(self.functions),
            attributes=tuple(self.attributes),
            tensors=self._tensor_table(),
            buffers=self._buffer_table(),
            commands=Commands(**columns, dep_ptr=dep_ptr, dep_idx=dep_idx),
            accesses=self._access_table(),
        )

    def _tensor_table(self) -> Tensors:
        return Tensors(
            name=tuple(t[0] for t in self.tensors),
            kind=tuple(t[1] for t in self.tensors),
            shape=np.asarray([t[2] for t in self.tensors], dtype=np.int64).reshape(-1, 4),
            element_bytes=np.asarray([t[3] for t in self.tensors], dtype=np.int64),
            layout=np.asarray([(t[4].block, t[4].padded) for t in self.tensors], dtype=np.int64).reshape(
                -1, 2
            ),
        )

    def _buffer_table(self) -> Buffers:
        flat = np.asarray([b[:6] for b in self.buffers], dtype=np.int64).reshape(-1, 6)
        return Buffers(
            **{
                n: np.ascontiguousarray(flat[:, i])
                for i, n in enumerate(("tensor", "space", "address", "stored_bytes", "slot", "alias_of"))
            },
            offset=np.asarray([b[6] for b in self.buffers], dtype=np.int64).reshape(-1, 4),
            shape=np.asarray([b[7] for b in self.buffers], dtype=np.int64).reshape(-1, 4),
        )

    def _access_table(self) -> Accesses:
        flat = self.accesses.array()
        return Accesses(
            **{
                n: np.ascontiguousarray(flat[:, i])
                for i, n in enumerate(("command", "operand", "mode", "buffer"))
            },
            offset=np.ascontiguousarray(flat[:, 4:8]),
            shape=np.ascontiguousarray(flat[:, 8:12]),
        )


def _corners(box: Box) -> tuple[Shape4, Shape4]:
    o, s = box.offset, box.shape
    return o, (o[0] + s[0], o[1] + s[1], o[2] + s[2], o[3] + s[3])


def _met(records: list[Record], low: Shape4, high: Shape4) -> list[Record]:
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


def _inside(record: Record, low: Shape4, high: Shape4) -> bool:
    return all(x <= a and b <= y for a, b, x, y in zip(record.low, record.high, low, high, strict=True))
