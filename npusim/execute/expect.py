"""Which writes each read must see: what the serial order says, and any legal order must reproduce."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npusim.program import READ, Program

Ints = npt.NDArray[np.int64]
_FEW = 12


class _History:
    """Writes of one buffer that are still visible, in serial order: boxes and access numbers."""

    __slots__ = ("accesses", "highs", "lows")

    def __init__(self) -> None:
        self.lows: list[tuple[int, ...]] = []
        self.highs: list[tuple[int, ...]] = []
        self.accesses: list[int] = []

    def visible(self, low: tuple[int, ...], high: tuple[int, ...]) -> list[int]:
        """Positions of the writes that overlap a box."""
        if len(self.lows) <= _FEW:
            return [
                i for i, (a, b) in enumerate(zip(self.lows, self.highs, strict=True))
                if all(x < v and u < y for x, y, u, v in zip(a, b, low, high, strict=True))
            ]  # fmt: skip
        hit = (np.asarray(self.lows) < high).all(axis=1) & (np.asarray(self.highs) > low).all(axis=1)
        return [int(i) for i in np.flatnonzero(hit)]

    def write(self, access: int, low: tuple[int, ...], high: tuple[int, ...]) -> None:
        """Add a write; those wholly under it vanish."""
        hidden = {
            i for i in self.visible(low, high)
            if all(u <= x and y <= v for x, y, u, v in zip(self.lows[i], self.highs[i], low, high, strict=True))
        }  # fmt: skip
        if hidden:
            for column in (self.lows, self.highs, self.accesses):
                column[:] = [entry for i, entry in enumerate(column) if i not in hidden]  # type: ignore[misc]
        self.lows.append(low)
        self.highs.append(high)
        self.accesses.append(access)


def expected_writers(program: Program) -> dict[int, tuple[int, ...]]:
    """For each reading access of a buffer that commands write, the accesses whose data it must find there."""
    table = program.accesses
    written = set(table.buffer[table.mode != READ].tolist())
    histories: dict[int, _History] = {}
    found: dict[int, tuple[int, ...]] = {}
    columns = zip(
        table.mode.tolist(), table.buffer.tolist(), table.offset.tolist(), table.shape.tolist(), strict=True
    )
    for access, (mode, buffer, offset, shape) in enumerate(columns):
        if buffer not in written:
            continue
        history = histories.setdefault(buffer, _History())
        low = tuple(offset)
        high = tuple(o + s for o, s in zip(offset, shape, strict=True))
        if mode == READ:
            found[access] = tuple(history.accesses[i] for i in history.visible(low, high))
        else:
            history.write(access, low, high)
    return found
