"""Equal units are lowered once: the commands of the first are repeated for the others, with their own names and addresses.

A unit is a layer or a segment. What its lowering appends depends on names and addresses only in that they are copied, and on what ran
before only through the buffers that it finds (tensors at home) and through the SRAM places that it takes over. A fragment keeps
the former with relative numbers; the latter are looked up again whenever the fragment is repeated. The Program is the same, to the bit, as
if each unit had been lowered (`tests/core/test_fragments.py`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npusim.graph import Shape4
from npusim.lower.builder import COMMAND_COLUMNS, Box, ProgramBuilder, Record, State
from npusim.lower.context import Lowering
from npusim.lower.signature import Signature
from npusim.program import FLAG_HANDOVER, SRAM, WRITE, Gang, Ints

_COLUMN = {name: i for i, name in enumerate(COMMAND_COLUMNS)}

#: A box of a tensor that was there before: which of the unit's tensors, offset, shape.
_Outer = tuple[int, Shape4, Shape4]


# ---- what its lowering appended -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a Program had come."""

    commands: int
    buffers: int
    tensors: int
    accesses: int


@dataclass(frozen=True, slots=True)
class _Contact:
    """A command that meets what was there before.

    Attributes:
        command: its number in the fragment.
        taken: buffers that were added since the last contact and take over places of others.
        reads, writes: boxes of tensors at home.
        fresh: buffers among `taken`, now or before, that it writes.
    """

    command: int
    taken: tuple[int, ...]
    reads: tuple[_Outer, ...]
    writes: tuple[_Outer, ...]
    fresh: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fragment:
    """Commands, buffers and accesses of a unit, numbered from its first.

    Attributes:
        rows: command columns [n, columns]; `layer`, `gang`, `function` and `attributes` index the lists below.
        deps: dependencies among its own commands.
        buffers: (tensor, region, address in it, size, slot, offset, shape); own state tensors follow the unit's tensors.
        states: state tensors (layer, suffix, shape, element bytes).
        accesses: as in the Program [n, 12]; buffers from -1 downwards are the homes of tensors 0, 1, ...
        contacts: commands that meet what was there before.
        final: (region, from, to, buffer) of the places that it leaves occupied.
        records: of each buffer that matters afterwards, what was written and read.
        opened: (tensor, buffer) that it gave a home in SRAM.
        handed: results that were handed to another kind of engine.
    """

    rows: Ints
    kinds: tuple[str, ...]
    gangs: tuple[Gang, ...]
    functions: tuple[str, ...]
    attributes: tuple[Mapping[str, Any], ...]
    deps: tuple[tuple[int, ...], ...]
    buffers: tuple[tuple[int, int, int, int, int, Shape4, Shape4], ...]
    states: tuple[tuple[int, str, Shape4, int], ...]
    accesses: Ints
    contacts: tuple[_Contact, ...]
    final: tuple[tuple[int, int, int, int], ...]
    records: Mapping[int, tuple[tuple[Shape4, Shape4, int, tuple[int, ...]], ...]]
    opened: tuple[tuple[int, int], ...]
    handed: Mapping[tuple[int, str], int]

    def __len__(self) -> int:
        return len(self.kinds)


#: Shorter fragments are not kept.
SHORT = 12

#: Fragments by signature key, as far as they are known.
Fragments = dict[object, Fragment]


def mark(low: Lowering) -> Mark:
    """How far the Program has come."""
    builder = low.builder
    return Mark(len(builder.kinds), len(builder.buffers), len(builder.tensors), len(builder.accesses.fresh))


def record(low: Lowering, unit: Signature, since: Mark) -> Fragment | None:
    """What was appended since; None if it cannot be repeated, or is so short that lowering it again is as fast.

    Nothing may have been repeated in between.
    """
    builder = low.builder
    count = len(builder.kinds) - since.commands
    if count < SHORT:
        return None
    rows, accesses = (
        builder.rows.last(count),
        builder.accesses.last(len(builder.accesses.fresh) - since.accesses),
    )
    buffers = _buffers(low, unit, since)
    outer = _outer(low, unit, since, accesses)
    if buffers is None or outer is None or _unwritten(accesses, since, len(buffers)):
        return None
    final = _final(builder, unit, since)
    opened = tuple(
        (i, low.homes[t] - since.buffers)
        for i, t in enumerate(unit.tensors)
        if low.homes.get(t, -1) >= since.buffers
    )
    relative, tables = _relative(low, unit, since, rows)
    handed = {
        (w - since.commands, kind): i - since.commands
        for (w, kind), i in builder.handed.items() if w >= since.commands
    }  # fmt: skip
    _clear_foreign_handovers(relative, handed)
    return Fragment(
        rows=relative,
        kinds=tuple(builder.kinds[since.commands :]),
        gangs=tables[0], functions=tables[1], attributes=tables[2],
        deps=tuple(
            tuple(d - since.commands for d in deps if d >= since.commands) for deps in builder.deps[since.commands :]
        ),
        buffers=buffers,
        states=_states(low, unit, since),
        contacts=_contacts(builder, since, buffers, accesses, outer),
        accesses=_relative_accesses(accesses, since, outer),
        final=final,
        records={b: _records(builder, since, b) for b in {*(b for *_, b in final), *(b for _, b in opened)}},
        opened=opened,
        handed=handed,
    )  # fmt: skip


def _buffers(low: Lowering, unit: Signature, since: Mark) -> tuple[Any, ...] | None:
    """The buffers that were added, by region; None if one lies in none."""
    known = {low.ids[t]: i for i, t in enumerate(unit.tensors)}
    ordered = sorted((r, i) for i, r in enumerate(unit.regions))
    starts = [r[0] for r, _ in ordered]
    found = []
    for tensor, space, address, size, slot, _, offset, shape in low.builder.buffers[since.buffers :]:
        at = bisect_right(starts, address) - 1
        if space != SRAM or at < 0 or address + size > ordered[at][0][1]:
            return None
        local = known.get(tensor, len(unit.tensors) + tensor - since.tensors)
        found.append((local, ordered[at][1], address - starts[at], size, slot, offset, shape))
    return tuple(found)


def _outer(low: Lowering, unit: Signature, since: Mark, accesses: Ints) -> dict[int, int] | None:
    """Buffer that was there before -> the unit's tensor whose home it is; None if there is another."""
    touched = {int(b) for b in np.unique(accesses[:, 3]) if b < since.buffers}
    homes = {low.homes[t]: i for i, t in enumerate(unit.tensors) if t in low.homes}
    return {b: homes[b] for b in touched} if touched <= set(homes) else None


def _unwritten(accesses: Ints, since: Mark, count: int) -> bool:
    """Whether a buffer was added that nobody writes."""
    written = accesses[accesses[:, 2] == WRITE, 3]
    return len(np.unique(written[written >= since.buffers])) < count


def _final(builder: ProgramBuilder, unit: Signature, since: Mark) -> tuple[tuple[int, int, int, int], ...]:
    found = []
    for (start, end), owner in builder.occupants.items():
        if owner >= since.buffers:
            region = next(i for i, (a, b) in enumerate(unit.regions) if a <= start and end <= b)
            first = unit.regions[region][0]
            found.append((region, start - first, end - first, owner - since.buffers))
    return tuple(found)


def _states(low: Lowering, unit: Signature, since: Mark) -> tuple[tuple[int, str, Shape4, int], ...]:
    found = []
    for name, _, shape, element_bytes, _ in low.builder.tensors[since.tensors :]:
        layer, suffix = name.rsplit(":", 1)
        found.append((unit.layers.index(layer), suffix, shape, element_bytes))
    return tuple(found)


def _relative(low: Lowering, unit: Signature, since: Mark, rows: Ints) -> tuple[Ints, tuple[Any, Any, Any]]:
    """Rows whose columns index the unit's own lists, and these lists."""
    builder, relative = low.builder, rows.copy()
    relative[:, _COLUMN["step"]] -= since.commands
    layers = np.asarray([low.layer_index[n] for n in unit.layers])
    order = np.argsort(layers)
    relative[:, _COLUMN["layer"]] = order[np.searchsorted(layers[order], rows[:, _COLUMN["layer"]])]
    tables = []
    for column, table in (
        ("gang", builder.gangs),
        ("function", builder.functions),
        ("attributes", builder.attributes),
    ):
        used, inverse = np.unique(rows[:, _COLUMN[column]], return_inverse=True)
        if len(used) and used[0] < 0:
            used, inverse = used[1:], inverse - 1
        relative[:, _COLUMN[column]] = inverse
        tables.append(tuple(table[i] for i in used.tolist()))
    return relative, (tables[0], tables[1], tables[2])


def _clear_foreign_handovers(rows: Ints, handed: Mapping[tuple[int, str], int]) -> None:
    """Keep the hand-over flag of the commands that take over a result of the fragment itself."""
    own = np.zeros(len(rows), dtype=bool)
    own[list(handed.values())] = True
    rows[~own, _COLUMN["flags"]] &= ~FLAG_HANDOVER


def _relative_accesses(accesses: Ints, since: Mark, outer: Mapping[int, int]) -> Ints:
    relative = accesses.copy()
    relative[:, 0] -= since.commands
    relative[:, 3] -= since.buffers
    for buffer, tensor in outer.items():
        relative[accesses[:, 3] == buffer, 3] = -1 - tensor
    return relative


def _contacts(
    builder: ProgramBuilder, since: Mark, buffers: Sequence[Any], accesses: Ints, outer: Mapping[int, int]
) -> tuple[_Contact, ...]:
    """The commands that meet what was there before, in order."""
    taking = _taking(buffers)
    reads: dict[int, list[_Outer]] = {}
    writes: dict[int, list[_Outer]] = {}
    fresh: dict[int, list[int]] = {}
    for command, _, mode, buffer, *box in accesses.tolist():
        at = command - since.commands
        if buffer in outer:
            (writes if mode == WRITE else reads).setdefault(at, []).append(
                (outer[buffer], tuple(box[:4]), tuple(box[4:]))
            )
        elif mode == WRITE and buffer - since.buffers in taking:
            fresh.setdefault(at, []).append(buffer - since.buffers)
    taken: dict[int, list[int]] = {}
    for buffer in sorted(taking):
        taken.setdefault(builder.born[since.buffers + buffer] - since.commands, []).append(buffer)
    return tuple(
        _Contact(
            i,
            tuple(taken.get(i, ())),
            tuple(reads.get(i, ())),
            tuple(writes.get(i, ())),
            tuple(fresh.get(i, ())),
        )
        for i in sorted({*reads, *writes, *fresh, *taken})
    )


def _taking(buffers: Sequence[Any]) -> set[int]:
    """Buffers whose place was not covered yet by buffers before them."""
    covered: dict[int, list[tuple[int, int]]] = {}
    found = set()
    for number, (_, region, start, size, *_) in enumerate(buffers):
        ranges = covered.setdefault(region, [])
        if not any(a <= start and start + size <= b for a, b in ranges):
            found.add(number)
            covered[region] = _merged([*ranges, (start, start + size)])
    return found


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _records(builder: ProgramBuilder, since: Mark, buffer: int) -> tuple[Any, ...]:
    return tuple(
        (r.low, r.high, r.writer - since.commands, tuple(i - since.commands for i in r.readers))
        for r in builder.states[since.buffers + buffer].records
    )


# ---- again ----------------------------------------------------------------------------------------------------------------


def repeat(low: Lowering, unit: Signature, fragment: Fragment, segment: int) -> None:
    """Append a fragment once more, under this unit's names and addresses."""
    builder = low.builder
    first, base = len(builder.kinds), len(builder.buffers)
    starts = [start for start, _ in unit.regions]
    homes = [low.homes.get(t, -1) for t in unit.tensors]
    ids = [low.ids[t] for t in unit.tensors]
    ids += [
        low.internal_tensor(f"{unit.layers[i]}:{suffix}", shape, size)
        for i, suffix, shape, size in fragment.states
    ]
    builder.buffers.extend(
        (ids[t], SRAM, starts[region] + at, size, slot, -1, offset, shape)
        for t, region, at, size, slot, offset, shape in fragment.buffers
    )
    builder.states.extend([_GONE] * len(fragment.buffers))
    builder.born.extend([first] * len(fragment.buffers))
    rows = _absolute(low, unit, fragment, first, segment)
    builder.kinds.extend(fragment.kinds)
    deps = [[d + first for d in own] for own in fragment.deps]
    pending = _meet(low, fragment, homes, starts, (first, rows, deps))
    builder.deps.extend(array("i", d) for d in deps)
    builder.rows.extend(rows)
    builder.accesses.extend(_absolute_accesses(fragment, first, base, homes))
    _leave(low, unit, fragment, (first, base), starts, pending)


#: Buffers that others have taken the place of.
_GONE = State()


def _absolute(low: Lowering, unit: Signature, fragment: Fragment, first: int, segment: int) -> Ints:
    builder, rows = low.builder, fragment.rows.copy()
    rows[:, _COLUMN["step"]] += first
    rows[:, _COLUMN["segment"]] = segment
    layers = [low.layer_index[n] for n in unit.layers]
    gangs = [builder.gangs.index(g) for g in fragment.gangs]
    functions = [builder.function(f) for f in fragment.functions]
    attributes = [builder.attribute(a) for a in fragment.attributes]
    for column, table in (
        ("layer", layers),
        ("gang", gangs),
        ("function", functions),
        ("attributes", attributes),
    ):
        at = _COLUMN[column]
        rows[:, at] = np.asarray([*table, -1], dtype=np.int64)[rows[:, at]]
    return rows


def _absolute_accesses(fragment: Fragment, first: int, base: int, homes: Sequence[int]) -> Ints:
    accesses = fragment.accesses.copy()
    accesses[:, 0] += first
    outer = accesses[:, 3] < 0
    accesses[~outer, 3] += base
    accesses[outer, 3] = np.asarray([*homes, -1], dtype=np.int64)[-1 - accesses[outer, 3]]
    return accesses


def _meet(
    low: Lowering,
    fragment: Fragment,
    homes: Sequence[int],
    starts: Sequence[int],
    out: tuple[int, Ints, list[list[int]]],
) -> dict[int, set[int]]:
    """Look up what the fragment's commands wait for outside of it, and what they take over from others.

    Returns:
        What each buffer waits for that takes over places of others.
    """
    builder, (first, rows, deps) = low.builder, out
    pending: dict[int, set[int]] = {}
    count = len(fragment)
    for contact in fragment.contacts:
        for buffer in contact.taken:
            _, region, at, size, *_ = fragment.buffers[buffer]
            pending[buffer] = builder.evict(starts[region] + at, starts[region] + at + size)
        if contact.command == count:
            continue
        index, found, flags = first + contact.command, set[int](), 0
        for tensor, offset, shape in contact.reads:
            box = Box(homes[tensor], offset, shape)
            flags |= builder.read(index, fragment.kinds[contact.command], box, found)
        for tensor, offset, shape in contact.writes:
            builder.write(index, Box(homes[tensor], offset, shape), found)
        for buffer in contact.fresh:
            found |= pending[buffer]
        found.discard(index)
        if found:
            deps[contact.command] = sorted(found.union(deps[contact.command]))
        rows[contact.command, _COLUMN["flags"]] |= flags
    return pending


def _leave(
    low: Lowering, unit: Signature, fragment: Fragment, since: tuple[int, int], starts: Sequence[int],
    pending: Mapping[int, set[int]],
) -> None:  # fmt: skip
    """Leave the SRAM as the fragment's lowering would."""
    builder, (first, base) = low.builder, since
    for region, start, end, buffer in fragment.final:
        builder.occupants[starts[region] + start, starts[region] + end] = base + buffer
    for buffer, records in fragment.records.items():
        builder.states[base + buffer] = State(
            records=[Record(a, b, w + first, [i + first for i in readers]) for a, b, w, readers in records],
            pending=tuple(sorted(pending.get(buffer, ()))),
        )
    for tensor, buffer in fragment.opened:
        low.homes[unit.tensors[tensor]] = base + buffer
    builder.handed.update({(w + first, kind): i + first for (w, kind), i in fragment.handed.items()})
