"""Everything that commands read and write: DRAM tensors as arrays, SRAM as bytes, both with shadows that catch races."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from npusim.errors import NpusimError
from npusim.execute.blocks import Array
from npusim.execute.dram import reads_with_gaps, stored_twice
from npusim.execute.expect import expected_writers
from npusim.execute.ledger import Ledger
from npusim.execute.sram import Place, Sram
from npusim.graph import Shape4
from npusim.layout import Layout
from npusim.program import DRAM, OPCODES, READ, SRAM, Program

#: Types of tensors that only a Program knows, by what they hold; others have that of the tensor that they are named after.
STATE_TYPES = {"stats": "float64", "running": "float32", "factor": "float32", "part": "float32"}
#: Reads of boxes of at most this many writers are checked box by box.
FEW_WRITERS = 12


class RaceError(NpusimError):
    """A command found bytes that another command than the expected one wrote, or that nothing wrote."""


class StoreError(NpusimError):
    """A DRAM element was stored twice, or never."""


class Memory:
    """DRAM and SRAM of one run. Commands that may run at the same time may call it at the same time.

    Attributes:
        offset, shape: box of each access, in its tensor.

    Args:
        program: what will run.
        dtypes: numpy type of each program tensor.
        source: gives the stored data of tensors that nothing writes (weights, inputs), by name.
    """

    def __init__(
        self, program: Program, sram_bytes: int, dtypes: list[np.dtype[Any]], source: Callable[[str], Array]
    ) -> None:
        self.program, self.dtypes, self._source = program, dtypes, source
        table, buffers = program.accesses, program.buffers
        self._buffer: list[int] = table.buffer.tolist()
        self.shape: list[Shape4] = list(map(tuple, table.shape.tolist()))
        held = (buffers.shape[table.buffer] == table.shape) & (buffers.offset[table.buffer] == table.offset)
        self._whole: list[bool] = held.all(axis=1).tolist()
        self._low: list[Shape4] = list(map(tuple, (table.offset - buffers.offset[table.buffer]).tolist()))
        self.offset: list[Shape4] = list(map(tuple, table.offset.tolist()))
        self._inside: list[bool] = _inside(program).tolist()
        self._ledger = Ledger()
        self._lock, self._source_lock = threading.Lock(), threading.Lock()
        self._space: list[int] = buffers.space.tolist()
        self._tensor: list[int] = buffers.tensor.tolist()
        self._expected = expected_writers(program)
        self._gaps = reads_with_gaps(program, self._expected)
        self._twice = stored_twice(program)
        self._done = bytearray(len(table.buffer))
        self._marks = np.zeros(len(table.buffer) + 1, dtype=np.bool_)
        used = sorted(
            {dtypes[t].itemsize for t, s in zip(self._tensor, self._space, strict=True) if s == SRAM} or {1}
        )
        self._sram = Sram(sram_bytes, used[0])
        self._form = _forms(program, dtypes)
        self._views: dict[tuple[Any, ...], Place] = {}
        self._places: dict[int, Place] = {}
        self._proofs: dict[int, tuple[Hashable, int]] = {}
        self._arrays: dict[int, Array] = {}
        self._stored: dict[int, int] = {}
        self._uses = np.bincount(table.buffer, minlength=len(self._space)).tolist()
        self._written = set(table.buffer[table.mode != READ].tolist())
        self._kept = {t for t, kind in enumerate(program.tensors.kind) if kind == "output"}

    def read(self, access: int) -> Array:
        """The box of a reading access, [b, h, r, c]: a view where the layout allows; valid until its bytes are written again.

        Raises:
            RaceError: some of its bytes are unwritten, stale or already overwritten.
        """
        buffer = self._buffer[access]
        if self._space[buffer] == SRAM:
            with self._lock:
                place = self._checked_place(access, buffer)
                self._release(buffer)
            low, shape = self._low[access], self.shape[access]
            return place.whole(shape) if self._whole[access] else place.read(low, shape)
        index, array = self._slices(access), self._array(buffer)
        with self._lock:
            self._check_stored(access, buffer)
            self._release(buffer)
        return array[index]

    def origin(self, access: int) -> Hashable:
        """What a checked read found, as a key: equal keys mean equal bytes."""
        return self._buffer[access], self._low[access], self.shape[access], self._expected.get(access)

    def gather(self, access: int, rows: npt.NDArray[np.int64]) -> Array:
        """Named rows of a constant table, [1, 1, rows, cols]."""
        buffer = self._buffer[access]
        values = np.ascontiguousarray(self._array(buffer)[:, :, rows])
        with self._lock:
            self._release(buffer)
        return values

    def write(self, access: int, values: Array) -> None:
        """Put values into the box of a writing access.

        Raises:
            StoreError: a DRAM element gets a second value.
        """
        buffer = self._buffer[access]
        low, shape = self._low[access], self.shape[access]
        if self._space[buffer] == SRAM:
            with self._lock:
                place = self._place(buffer)
                if self._ledger.write(buffer, place, self._places, access, whole=self._whole[access]):
                    place.mark(low, shape, access + 1)
                place.write(low, shape, values)  # with its marks: who comes too early finds neither
                self._release(buffer)
            return
        index, array = self._slices(access), self._array(buffer)
        array[index] = values
        with self._lock:
            self._store(access, buffer)
            self._release(buffer)

    def result(self, tensor: int) -> Array:
        """A finished output in DRAM.

        Raises:
            StoreError: some element was never stored.
        """
        buffer = next((b for b, t in enumerate(self._tensor) if t == tensor and self._space[b] == DRAM), None)
        name = self.program.tensors.name[tensor]
        if buffer is None:
            raise StoreError(f"the output '{name}' has no place in DRAM")
        if buffer in self._written:
            size = int(self.program.tensors.shape[tensor].prod())
            missing = size - self._stored.get(buffer, 0)
            if missing:
                raise StoreError(f"{missing} of {size} elements of the output '{name}' were never stored")
        return self._array(buffer)

    # ---- places ------------------------------------------------------------------------------------------------

    def _checked_place(self, access: int, buffer: int) -> Place:
        place = self._place(buffer)
        low, shape = self._low[access], self.shape[access]
        writer = self._ledger.sole_writer(buffer)
        if writer is None:
            proof = self.origin(access), self._ledger.changes(buffer)
            if self._proofs.get(buffer) != proof:  # several products in a row read the same pixels
                self._check(access, self._marked(buffer, place, low, shape))
                self._proofs[buffer] = proof
        elif writer not in self._expected.get(access, ()):
            raise RaceError(self._race(access, np.asarray([writer + 1])))
        return place

    def _check_stored(self, access: int, buffer: int) -> None:
        """Each element is stored once: once all expected writers have stored, nothing else can be in their boxes."""
        if buffer in self._written:
            late = next((w for w in self._expected.get(access, ()) if not self._done[w]), None)
            if late is not None or access in self._gaps:
                raise RaceError(self._race(access, np.zeros(1, dtype=np.int32)))

    def _store(self, access: int, buffer: int) -> None:
        before = self._twice.get(access)
        if before is not None:
            raise StoreError(
                f"{self._who(access)} stores elements of {self._name(buffer)} that {self._who(before)} stores too"
            )
        self._done[access] = 1
        self._stored[buffer] = self._stored.get(buffer, 0) + prod(self.shape[access])

    def _place(self, buffer: int) -> Place:
        place = self._places.get(buffer)
        if place is None:
            key = self._form[buffer]
            place = self._views.get(key) or self._views.setdefault(key, self._sram.place(*key))
            self._places[buffer] = place
        return place

    def _array(self, buffer: int) -> Array:
        found = self._arrays.get(buffer)
        if found is not None:
            return found
        tensor = self._tensor[buffer]
        with self._source_lock:
            if buffer not in self._arrays:
                if buffer in self._written:
                    shape = tuple(self.program.tensors.shape[tensor].tolist())
                    self._arrays[buffer] = np.empty(shape, dtype=self.dtypes[tensor])
                else:
                    self._arrays[buffer] = self._source(self.program.tensors.name[tensor])
            return self._arrays[buffer]

    def _release(self, buffer: int) -> None:
        """Drop what no command will touch again."""
        self._uses[buffer] -= 1
        if self._uses[buffer]:
            return
        if self._space[buffer] == SRAM:
            self._ledger.forget(buffer)
            self._places.pop(buffer, None)
            self._proofs.pop(buffer, None)
        elif self._tensor[buffer] not in self._kept:
            self._arrays.pop(buffer, None)

    def _marked(
        self, buffer: int, place: Place, low: tuple[int, ...], shape: tuple[int, ...]
    ) -> npt.NDArray[np.int32]:
        """Shadow of a box; of a place that was overwritten as a whole, what overwrote it."""
        if self._ledger.is_live(buffer):
            return place.marks(low, shape)
        writer = self._ledger.broken_by(buffer)
        return np.asarray([0 if writer is None else writer + 1], dtype=np.int32)

    def _slices(self, access: int) -> tuple[slice, ...]:
        if not self._inside[access]:
            raise IndexError(f"{self._who(access)} touches a box outside {self._name(self._buffer[access])}")
        b, h, r, c = self.offset[access]
        n = self.shape[access]
        return slice(b, b + n[0]), slice(h, h + n[1]), slice(r, r + n[2]), slice(c, c + n[3])

    # ---- races -------------------------------------------------------------------------------------------------

    def _check(self, access: int, shadow: npt.NDArray[np.int32]) -> None:
        expected = self._expected.get(access, ())
        if len(expected) == 1:
            good = shadow == expected[0] + 1
        elif self._is_patchwork(access, expected, shadow):
            return
        else:
            self._marks[[e + 1 for e in expected]] = True
            good = self._marks[shadow]
            self._marks[[e + 1 for e in expected]] = False
        if not good.all():
            raise RaceError(self._race(access, shadow[~good]))

    def _is_patchwork(self, access: int, expected: tuple[int, ...], shadow: npt.NDArray[np.int32]) -> bool:
        """Whether a few writers left boxes that make up the read one without overlap; if not, granules must tell."""
        low, size = self._low[access], self.shape[access]
        if len(expected) > FEW_WRITERS or shadow.ndim != 5 or shadow.shape[2] != 1:
            return False
        cells, covered = shadow.shape[4] // size[3], 0
        for writer in expected:
            first = [max(0, w - o) for w, o in zip(self._low[writer], low, strict=True)]
            last = [
                min(n, w + m - o)
                for n, w, m, o in zip(size, self._low[writer], self.shape[writer], low, strict=True)
            ]
            b, h, r, c = (slice(f, t) for f, t in zip(first, last, strict=True))
            found = shadow[b, h, 0, r, c.start * cells : c.stop * cells]
            if not (found == writer + 1).all():
                return False
            covered += found.size
        return covered == shadow.size

    def _race(self, access: int, found: npt.NDArray[np.int32]) -> str:
        buffer = self._buffer[access]
        where = f"{found.size} granules of {self._name(buffer)}"
        if self._space[buffer] == SRAM:
            address, size = (
                int(c[buffer]) for c in (self.program.buffers.address, self.program.buffers.stored_bytes)
            )
            where += f" (SRAM bytes {address} to {address + size})"
        wanted = ", ".join(self._who(e) for e in self._expected.get(access, ())[:2]) or "nothing"
        writer = int(found.ravel()[0])
        seen = f"hold what {self._who(writer - 1)} wrote" if writer else "are not written yet"
        return f"{self._who(access)} reads {where}: they {seen}, it expects data of {wanted}; a dependency is missing or an address wrong"

    def _who(self, access: int) -> str:
        command = int(self.program.accesses.command[access])
        commands = self.program.commands
        layer = self.program.layers[int(commands.layer[command])]
        return f"command {command} ({OPCODES[int(commands.opcode[command])]} of '{layer}')"

    def _name(self, buffer: int) -> str:
        return f"'{self.program.tensors.name[self._tensor[buffer]]}'"


def _forms(
    program: Program, dtypes: list[np.dtype[Any]]
) -> list[tuple[int, tuple[int, ...], Layout, np.dtype[Any]]]:
    """Address, shape, layout and element type of each buffer: what its view of the SRAM depends on."""
    layouts = [Layout(block, padded) for block, padded in program.tensors.layout.tolist()]
    columns = (
        program.buffers.address.tolist(),
        program.buffers.shape.tolist(),
        program.buffers.tensor.tolist(),
    )
    return [(a, tuple(s), layouts[t], dtypes[t]) for a, s, t in zip(*columns, strict=True)]


def _inside(program: Program) -> npt.NDArray[np.bool_]:
    """Whether each access stays within its tensor."""
    table = program.accesses
    held = program.tensors.shape[program.buffers.tensor[table.buffer]]
    inside: npt.NDArray[np.bool_] = (table.offset >= 0) & (table.offset + table.shape <= held)
    return np.asarray(inside.all(axis=1))


def program_dtypes(program: Program, dtypes: Mapping[str, np.dtype[Any]]) -> list[np.dtype[Any]]:
    """Numpy type of each tensor of a Program, by the graph's tensor types and those of `STATE_TYPES`.

    Raises:
        NpusimError: a type does not have the bytes per element that the plan gives the tensor.
    """
    found = []
    for name, size in zip(program.tensors.name, program.tensors.element_bytes.tolist(), strict=True):
        base, _, what = name.rpartition(":")
        kind = (
            dtypes.get(name)
            if name in dtypes
            else (np.dtype(STATE_TYPES[what]) if what in STATE_TYPES else dtypes.get(base))
        )
        if kind is None or kind.itemsize != size:
            raise NpusimError(
                f"tensor '{name}' has {size} bytes per element in the plan, {kind} was expected; profile the model again"
            )
        found.append(kind)
    return found
