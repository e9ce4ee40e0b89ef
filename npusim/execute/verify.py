"""Is a Program well formed? Checked from its columns alone, without running it and without the builder's help.

Bounds of boxes and addresses, room for slots, order and completeness of dependencies: every two commands that touch the same bytes,
one of them writing, must be ordered by the dependencies alone; and every read must find its bytes written into the buffer that
it reads by nothing else than that buffer's own writers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npusim.layout import Layout, stored_bytes
from npusim.program import DRAM, LOAD, READ, SRAM, STORE, Program

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a Program: what kind, and a sentence that names commands and bytes."""

    kind: str
    sentence: str


def verify_program(program: Program, sram_bytes: int, *, limit: int = 10) -> list[Fault]:
    """The first faults of a Program (none if it is sound).

    Args:
        sram_bytes: capacity of the scratchpad.
        limit: how many faults are worth listing.
    """
    found: list[Fault] = []
    for check in (_shapes, _bounds, _moves, _engines, _dependencies, _hazards):
        for fault in check(program, sram_bytes):
            found.append(fault)
            if len(found) >= limit:
                return found
        if found:
            return found
    return found


def _shapes(program: Program, sram_bytes: int) -> Iterator[Fault]:
    """Columns agree in length, indices point into their tables."""
    commands, table = program.commands, program.accesses
    count = len(program)
    ranges = (
        ("gang", commands.gang, 0, len(program.gangs)), ("layer", commands.layer, 0, len(program.layers)),
        ("attributes", commands.attributes, 0, len(program.attributes)), ("command", table.command, 0, count),
        ("buffer", table.buffer, 0, len(program.buffers.tensor)), ("tensor", program.buffers.tensor, 0, len(program.tensors.name)),
    )  # fmt: skip
    for name, column, low, high in ranges:
        if len(column) and (column.min() < low or column.max() >= high):
            yield Fault("shape", f"column '{name}' points outside its table of {high} rows")
    if (
        len(commands.dep_ptr) != count + 1
        or commands.dep_ptr[-1] != len(commands.dep_idx)
        or (np.diff(commands.dep_ptr) < 0).any()
    ):
        yield Fault("shape", "the dependency lists do not match the commands")
    if len(table.command) and (np.diff(table.command) < 0).any():
        yield Fault("shape", "accesses are not in the order of their commands")


def _bounds(program: Program, sram_bytes: int) -> Iterator[Fault]:
    """Boxes lie in their buffers, buffers in their tensors and in their space."""
    buffers, table = program.buffers, program.accesses
    whole = program.tensors.shape[buffers.tensor]
    for index in np.flatnonzero(
        ((buffers.offset < 0) | (buffers.shape < 1) | (buffers.offset + buffers.shape > whole)).any(axis=1)
    ):
        yield Fault(
            "bounds",
            f"buffer {index} holds a box outside '{program.tensors.name[int(buffers.tensor[index])]}'",
        )
    low, high = buffers.offset[table.buffer], (buffers.offset + buffers.shape)[table.buffer]
    outside = (table.offset < low) | (table.shape < 1) | (table.offset + table.shape > high)
    for access in np.flatnonzero(outside.any(axis=1)):
        yield Fault(
            "bounds",
            f"{_who(program, int(table.command[access]))} touches a box outside buffer {table.buffer[access]}",
        )
    for place in range(len(buffers.tensor)):
        tensor = int(buffers.tensor[place])
        layout = Layout(*program.tensors.layout[tensor].tolist())
        need = stored_bytes(
            tuple(buffers.shape[place].tolist()), layout, int(program.tensors.element_bytes[tensor])
        )
        address, size = int(buffers.address[place]), int(buffers.stored_bytes[place])
        if size < need:
            yield Fault("bounds", f"buffer {place} has {size} bytes, its box needs {need}")
        if address < 0 or (buffers.space[place] == SRAM and address + need > sram_bytes):
            yield Fault(
                "bounds",
                f"buffer {place} occupies SRAM bytes {address} to {address + need}, there are {sram_bytes}",
            )
        if address % int(program.tensors.element_bytes[tensor]):
            yield Fault("bounds", f"buffer {place} starts at byte {address}, inside an element")
    yield from _dram_overlaps(program)


def _dram_overlaps(program: Program) -> Iterator[Fault]:
    buffers = program.buffers
    chosen = np.flatnonzero(buffers.space == DRAM)
    order = chosen[np.argsort(buffers.address[chosen], kind="stable")]
    ends = buffers.address[order] + buffers.stored_bytes[order]
    for i in np.flatnonzero(ends[:-1] > buffers.address[order][1:]):
        yield Fault("overlap", f"DRAM buffers {order[i]} and {order[i + 1]} overlap")


def _moves(program: Program, sram_bytes: int) -> Iterator[Fault]:
    """A transfer's boxes correspond one to one: same tensor, same box, one side in DRAM, the other in SRAM."""
    table, buffers = program.accesses, program.buffers
    first = np.searchsorted(table.command, np.arange(len(program) + 1))
    for command in np.flatnonzero((program.commands.opcode == LOAD) | (program.commands.opcode == STORE)):
        if program.attributes[int(program.commands.attributes[command])].get("gathers"):
            continue
        mine = np.arange(first[command], first[command + 1])
        reads, writes = mine[table.mode[mine] == READ], mine[table.mode[mine] != READ]
        source, target = (SRAM, DRAM) if program.commands.opcode[command] == STORE else (DRAM, SRAM)
        good = (
            len(reads) == len(writes) > 0
            and (buffers.tensor[table.buffer[reads]] == buffers.tensor[table.buffer[writes]]).all()
            and (table.offset[reads] == table.offset[writes]).all()
            and (table.shape[reads] == table.shape[writes]).all()
            and (buffers.space[table.buffer[reads]] == source).all()
            and (buffers.space[table.buffer[writes]] == target).all()
        )
        if not good:
            yield Fault(
                "move",
                f"{_who(program, int(command))} does not move the same box from one memory to the other",
            )


def _engines(program: Program, sram_bytes: int) -> Iterator[Fault]:
    """Compute engines reach SRAM only; a gathering load takes whole rows from DRAM."""
    table, commands = program.accesses, program.commands
    space = program.buffers.space[table.buffer]
    compute = ~np.isin(commands.opcode[table.command], (LOAD, STORE))
    for access in np.flatnonzero(compute & (space != SRAM)):
        yield Fault("engine", f"{_who(program, int(table.command[access]))} touches DRAM; only transfers can")
    for access in np.flatnonzero(~compute):
        command = int(table.command[access])
        if (
            not program.attributes[int(commands.attributes[command])].get("gathers")
            or table.operand[access] != 0
        ):
            continue
        cols = int(program.tensors.shape[program.buffers.tensor[table.buffer[access]]][3])
        writes = table.mode[access] != READ
        rows = min(
            int(program.tensors.shape[program.buffers.tensor[table.buffer[access]]][2]),
            _written_rows(program, command),
        )
        if (
            table.shape[access][3] != cols
            or space[access] != (SRAM if writes else DRAM)
            or (not writes and table.shape[access][2] != rows)
        ):
            yield Fault("engine", f"{_who(program, command)} does not gather whole rows of a table in DRAM")


def _written_rows(program: Program, command: int) -> int:
    table = program.accesses
    mine = (table.command == command) & (table.mode != READ)
    return int(table.shape[mine][:, 2].sum())


def _dependencies(program: Program, sram_bytes: int) -> Iterator[Fault]:
    """Dependencies point back in the serial order."""
    commands = program.commands
    owner = np.repeat(np.arange(len(program)), np.diff(commands.dep_ptr))
    for i in np.flatnonzero((commands.dep_idx >= owner) | (commands.dep_idx < 0)):
        yield Fault(
            "order",
            f"{_who(program, int(owner[i]))} depends on command {commands.dep_idx[i]}, which does not come before it",
        )


# ---- hazards -------------------------------------------------------------------------------------------------------


class _Ancestors:
    """Transitive dependencies as bit sets over a window of commands: is `early` always done before `late`?"""

    def __init__(self, program: Program) -> None:
        pointers, dependencies = program.commands.dep_ptr.tolist(), program.commands.dep_idx.tolist()
        self._bits: list[int] = []
        for command in range(len(program)):
            bits = 0
            for dependency in dependencies[pointers[command] : pointers[command + 1]]:
                bits |= self._bits[dependency] | (1 << dependency)
            self._bits.append(bits)

    def ordered(self, early: int, late: int) -> bool:
        """Whether `late` can only run after `early`."""
        return bool(self._bits[late] >> early & 1)


def _hazards(program: Program, sram_bytes: int) -> Iterator[Fault]:
    """Bytes: in serial order, who wrote each granule and who read it since; any pair with a write must be ordered."""
    ancestors = _Ancestors(program)
    granule = int(np.gcd.reduce(program.tensors.element_bytes)) if len(program.tensors.element_bytes) else 1
    sram = _Bytes(-(-sram_bytes // granule))
    top = int(
        (program.buffers.address + program.buffers.stored_bytes)[program.buffers.space == DRAM].max(initial=0)
    )
    dram = _Bytes(-(-top // granule))
    written = _written_buffers(program)
    table = program.accesses
    for access in range(len(table.command)):
        buffer = int(table.buffer[access])
        space = int(program.buffers.space[buffer])
        if space == DRAM and buffer not in written:
            continue
        memory = sram if space == SRAM else dram
        cells = _granules(program, access, granule)
        yield from memory.touch(program, ancestors, access, buffer, cells)
    for tensor, kind in enumerate(program.tensors.kind):
        if kind == "output":
            yield from _unstored(program, dram, tensor, granule)


class _Bytes:
    """Last writer (access) of each granule, its buffer, and the commands that read it since."""

    def __init__(self, count: int) -> None:
        self.writer = np.full(count, -1, dtype=np.int64)
        self.readers: dict[int, list[tuple[int, Ints]]] = {}

    def touch(
        self, program: Program, ancestors: _Ancestors, access: int, buffer: int, cells: Ints
    ) -> Iterator[Fault]:
        """Check one access against those before it, then remember it."""
        table = program.accesses
        command = int(table.command[access])
        before = np.unique(self.writer[cells])
        reads = table.mode[access] == READ
        if reads and before[0] < 0:
            yield Fault(
                "unwritten", f"{_who(program, command)} reads bytes of buffer {buffer} that nothing wrote"
            )
        for writer in before[before >= 0].tolist():
            other = int(table.command[writer])
            if reads and int(table.buffer[writer]) != buffer:
                yield Fault(
                    "stale",
                    f"{_who(program, command)} reads bytes of buffer {buffer} that {_who(program, other)} wrote for another",
                )
            if other != command and not ancestors.ordered(other, command):
                yield Fault(
                    "hazard",
                    f"{_who(program, command)} does not wait for {_who(program, other)}, which writes the same bytes",
                )
            if not reads:
                yield from self._overwritten(program, ancestors, writer, command, cells)
        if reads:
            for writer in before[before >= 0].tolist():
                self.readers.setdefault(writer, []).append((command, cells))
        else:
            self.writer[cells] = access

    def _overwritten(
        self, program: Program, ancestors: _Ancestors, writer: int, command: int, cells: Ints
    ) -> Iterator[Fault]:
        for reader, where in self.readers.get(writer, ()):
            if (
                reader != command
                and not ancestors.ordered(reader, command)
                and len(np.intersect1d(where, cells))
            ):
                yield Fault(
                    "hazard",
                    f"{_who(program, command)} overwrites bytes without waiting for {_who(program, reader)} to read them",
                )


def _granules(program: Program, access: int, granule: int) -> Ints:
    """Granules of an access's box in its space, ascending."""
    table, buffers, tensors = program.accesses, program.buffers, program.tensors
    buffer = int(table.buffer[access])
    tensor = int(buffers.tensor[buffer])
    layout = Layout(*tensors.layout[tensor].tolist())
    size = int(tensors.element_bytes[tensor])
    low = table.offset[access] - buffers.offset[buffer]
    held = buffers.shape[buffer]
    block = layout.block or int(held[3])
    padded = layout.padded or block
    blocks = -(-int(held[3]) // block)
    b, h, r, c = (np.arange(low[a], low[a] + table.shape[access][a]) for a in range(4))
    column = (c // block) * int(held[2]) * padded + c % block
    rows = (b[:, None, None] * held[1] + h[None, :, None]) * (blocks * held[2] * padded) + r[
        None, None, :
    ] * padded
    elements = (rows[..., None] + column).ravel() * size + int(buffers.address[buffer])
    cells = elements[:, None] + np.arange(0, size, granule) if size > granule else elements[:, None]
    return np.sort(cells.ravel() // granule)


def _written_buffers(program: Program) -> set[int]:
    table = program.accesses
    return set(table.buffer[table.mode != READ].tolist())


def _unstored(program: Program, dram: _Bytes, tensor: int, granule: int) -> Iterator[Fault]:
    """Elements of an output that are never stored."""
    buffers = program.buffers
    for buffer in np.flatnonzero((buffers.tensor == tensor) & (buffers.space == DRAM)):
        tensors = program.tensors
        need = stored_bytes(
            tuple(buffers.shape[buffer].tolist()), Layout(), int(tensors.element_bytes[tensor])
        )
        if tensors.layout[tensor][0]:
            continue
        start = int(buffers.address[buffer])
        missing = int((dram.writer[start // granule : (start + need) // granule] < 0).sum())
        if missing:
            yield Fault(
                "unstored",
                f"{missing * granule} bytes of the output '{tensors.name[tensor]}' are never stored",
            )


def _who(program: Program, command: int) -> str:
    layer = program.layers[int(program.commands.layer[command])]
    return f"command {command} ('{layer}')"
