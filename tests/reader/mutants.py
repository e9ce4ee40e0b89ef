"""Byte mutants of small models: what a broken disk, a bad transfer or a fuzzer makes of a file. Seeded, so that each has a number."""

from __future__ import annotations

import random
from collections.abc import Sequence


def mutant(seeds: Sequence[bytes], number: int) -> bytes:
    """Mutant `number`: one to four changes of one of the seed files."""
    drawn = random.Random(number)
    data = bytearray(drawn.choice(seeds))
    for _ in range(drawn.choice((1, 1, 2, 4))):
        _change(data, drawn, seeds)
    return bytes(data)


def _change(data: bytearray, drawn: random.Random, seeds: Sequence[bytes]) -> None:
    at = drawn.randrange(len(data) + 1)
    kind = drawn.randrange(6)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << drawn.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = drawn.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif kind == 2:
        data[at:at] = drawn.randbytes(drawn.randrange(1, 9))
    elif kind == 3:
        del data[at : at + drawn.randrange(1, 17)]
    elif kind == 4:
        other = drawn.choice(seeds)
        start = drawn.randrange(len(other))
        data[at : at + 24] = other[start : start + drawn.randrange(1, 25)]
    else:
        end = min(len(data), at + drawn.randrange(1, 65))
        data[at:at] = data[at:end]
