"""Who wrote which SRAM bytes, kept per place as long as one access wrote all of it, and per granule only where it must be.

Most pieces are written whole by one command and read whole by others: for them one number suffices. Granules are marked in the
shadow as soon as places overlap in part or are written piece by piece. A place that is overwritten as a whole loses its marks, so
that none of its own is ever found again by mistake.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from npusim.execute.sram import Place

Shadow = npt.NDArray[np.int32]


class Ledger:
    """Live places of the SRAM: their bytes, and who wrote them."""

    def __init__(self) -> None:
        self._live: dict[int, tuple[int, int]] = {}
        self._sole: dict[int, int] = {}
        self._broken: dict[int, int] = {}
        self._changes: Counter[int] = Counter()

    def sole_writer(self, buffer: int) -> int | None:
        """The access that wrote the whole place, if nothing touched its bytes since."""
        return self._sole.get(buffer)

    def is_live(self, buffer: int) -> bool:
        """Whether the place's granules are marked."""
        return buffer in self._live

    def broken_by(self, buffer: int) -> int | None:
        """The access that overwrote the whole place, or None if the place was never written."""
        return self._broken.get(buffer)

    def changes(self, buffer: int) -> int:
        """How often anything was written over bytes of the place."""
        return self._changes[buffer]

    def write(self, buffer: int, place: Place, places: dict[int, Place], access: int, *, whole: bool) -> bool:
        """Note a write; True if its granules must be marked in the shadow."""
        start, end = place.start, place.end
        touched = [b for b, (low, high) in self._live.items() if low < end and start < high and b != buffer]
        self._changes.update((buffer, *touched))
        if whole and all(start <= self._live[b][0] and self._live[b][1] <= end for b in touched):
            self._keep_whole(buffer, place, places, access, touched)
            return False
        for other in touched:
            self._mark(other, places[other])
        if buffer in self._live:
            self._mark(buffer, place)
        self._live[buffer] = (start, end)
        self._broken.pop(buffer, None)
        return True

    def forget(self, buffer: int) -> None:
        """Drop a place that no command will touch again. Its marks may stay: no other place expects its writers."""
        self._live.pop(buffer, None)
        self._sole.pop(buffer, None)
        self._broken.pop(buffer, None)
        self._changes.pop(buffer, None)

    def _keep_whole(
        self, buffer: int, place: Place, places: dict[int, Place], access: int, touched: list[int]
    ) -> None:
        for other in touched:
            if other not in self._sole:
                places[other].shadow[...] = 0
            del self._live[other]
            self._sole.pop(other, None)
            self._broken[other] = access
        if buffer in self._live and buffer not in self._sole:
            place.shadow[...] = 0
        self._sole[buffer] = access
        self._live[buffer] = (place.start, place.end)
        self._broken.pop(buffer, None)

    def _mark(self, buffer: int, place: Place) -> None:
        """From one number to marked granules."""
        writer = self._sole.pop(buffer, None)
        if writer is not None:
            place.shadow[...] = writer + 1
