"""Which writes each read must see: what the serial order says, and any legal order must reproduce."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npusim.program import READ, Program

Ints = npt.NDArray[np.int64]


class _History:
    """Writes of one buffer that are still visible, in serial order: boxes (low, high) and access numbers."""

    __slots__ = ("accesses", "boxes", "count")

    def __init__(self) -> None:
        self.boxes = np.empty((4, 8), dtype=np.int64)
        self.accesses = np.empty(4, dtype=np.int64)
        self.count = 0

    def visible(self, low: Ints, high: Ints) -> Ints:
        """Positions of the writes that overlap a box."""
        if self.count == 1 and (self.boxes[0, :4] == low).all() and (self.boxes[0, 4:] == high).all():
            return _FIRST
        held = self.boxes[: self.count]
        return np.flatnonzero(((held[:, :4] < high) & (held[:, 4:] > low)).all(axis=1))

    def write(self, access: int, low: Ints, high: Ints) -> None:
        """Add a write; those wholly under it vanish."""
        held = self.boxes[: self.count]
        kept = np.flatnonzero(~((held[:, :4] >= low) & (held[:, 4:] <= high)).all(axis=1))
        if len(kept) < self.count:
            self.boxes[: len(kept)] = held[kept]
            self.accesses[: len(kept)] = self.accesses[kept]
            self.count = len(kept)
        if self.count == len(self.accesses):
            self.boxes = np.concatenate([self.boxes, np.empty_like(self.boxes)])
            self.accesses = np.concatenate([self.accesses, np.empty_like(self.accesses)])
        self.boxes[self.count] = (*low, *high)
        self.accesses[self.count] = access
        self.count += 1


_FIRST = np.zeros(1, dtype=np.int64)


def expected_writers(program: Program) -> dict[int, tuple[int, ...]]:
    """For each reading access of a buffer that commands write, the accesses whose data it must find there."""
    table = program.accesses
    if not len(table.command):  # a model whose outputs are constants or views
        return {}
    reads = table.mode == READ
    written = np.zeros(len(program.buffers.tensor), dtype=np.bool_)
    written[table.buffer[~reads]] = True
    cut = np.zeros(len(written), dtype=np.bool_)
    cut[table.buffer[~_whole(program)]] = True
    found = _last_writers(table.buffer, reads, (written & ~cut)[table.buffer])
    histories: dict[int, _History] = {}
    lows, highs = table.offset, table.offset + table.shape
    for access in np.flatnonzero((written & cut)[table.buffer]).tolist():
        history = histories.setdefault(int(table.buffer[access]), _History())
        if reads[access]:
            positions = history.visible(lows[access], highs[access])
            found[access] = tuple(history.accesses[positions].tolist())
        else:
            history.write(access, lows[access], highs[access])
    return found


def _whole(program: Program) -> npt.NDArray[np.bool_]:
    """Whether each access touches all that its buffer holds."""
    table, buffers = program.accesses, program.buffers
    same = (table.shape == buffers.shape[table.buffer]) & (table.offset == buffers.offset[table.buffer])
    found: npt.NDArray[np.bool_] = same.all(axis=1)
    return found


def _last_writers(
    buffer: Ints, reads: npt.NDArray[np.bool_], chosen: npt.NDArray[np.bool_]
) -> dict[int, tuple[int, ...]]:
    """Expected writers in buffers that are only touched as a whole: the last one before each read."""
    accesses = np.flatnonzero(chosen)
    accesses = accesses[np.argsort(buffer[accesses], kind="stable")]
    places = np.arange(len(accesses))
    last = np.maximum.accumulate(np.where(reads[accesses], -1, places)) if len(accesses) else places
    known = (last >= 0) & (buffer[accesses[last]] == buffer[accesses])
    return {
        access: (writer,) if one else ()
        for access, writer, one, read in zip(
            accesses.tolist(), accesses[last].tolist(), known.tolist(), reads[accesses].tolist(), strict=True
        )
        if read
    }
