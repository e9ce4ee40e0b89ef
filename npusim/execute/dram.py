"""Who stored which box of a DRAM tensor. Each element is stored once, so boxes alone say what a read will find."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from npusim.program import DRAM, READ, Program

#: Boxes that are compared with all others at a time.
CHUNK = 512


def stored_twice(program: Program) -> dict[int, int]:
    """Writes of DRAM some of whose elements an earlier write (in serial order) stores too, with that write."""
    table = program.accesses
    writes = np.flatnonzero((program.buffers.space[table.buffer] == DRAM) & (table.mode != READ))
    writes = writes[np.argsort(table.buffer[writes], kind="stable")]
    found: dict[int, int] = {}
    for group in np.split(writes, np.flatnonzero(np.diff(table.buffer[writes])) + 1):
        low, high = table.offset[group], table.offset[group] + table.shape[group]
        for first in range(0, len(group), CHUNK):
            rows = slice(first, first + CHUNK)
            shared = ((low[rows, None] < high[None]) & (high[rows, None] > low[None])).all(axis=2)
            later, earlier = np.nonzero(np.tril(shared, first - 1))
            found.update(zip(group[rows][later].tolist(), group[earlier].tolist(), strict=True))
    return found


def reads_with_gaps(program: Program, expected: Mapping[int, tuple[int, ...]]) -> frozenset[int]:
    """Reads of DRAM that commands write, some of whose elements no write before them (in serial order) stores."""
    table = program.accesses
    in_dram = (program.buffers.space[table.buffer] == DRAM) & (table.mode == READ)
    reads = [a for a in np.flatnonzero(in_dram).tolist() if a in expected]
    pairs = np.asarray([(a, w) for a in reads for w in expected[a]], dtype=np.int64).reshape(-1, 2)
    reader, writer = pairs[:, 0], pairs[:, 1]
    high = table.offset + table.shape
    low = np.maximum(table.offset[reader], table.offset[writer])
    shared = np.maximum(np.minimum(high[reader], high[writer]) - low, 0).prod(axis=1)
    found = np.zeros(len(table.buffer), dtype=np.int64)
    np.add.at(found, reader, shared)
    chosen = np.asarray(reads, dtype=np.int64)
    short = found[chosen] < table.shape[chosen].prod(axis=1)
    return frozenset(chosen[short].tolist())
