"""The command stream: what is timed is what is run.

A Program is a set of numpy columns. `tensors` are logical, `buffers` are places that hold a box of one, `commands` do one thing
on one gang, `accesses` say which boxes of which buffers a command reads and writes. Dependencies are complete: any order that
respects them gives the same result. Durations are not here: they belong to a hardware description.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

OPCODES = ("load", "store", "product", "vector")
LOAD, STORE, PRODUCT, VECTOR = range(4)
SPACES = ("sram", "dram")
SRAM, DRAM = range(2)
MODES = ("read", "write", "update")
READ, WRITE, UPDATE = range(3)

#: Why a command exists: the nine rows of the paper's Table 6, then the rest.
ROLES = (
    "load_qk", "qk", "store_scores", "load_scores", "softmax", "store_probs", "load_probs_v", "pv", "store_out",
    "weight", "halo", "spill", "norm_stats", "other",
)  # fmt: skip
ROLE = {name: i for i, name in enumerate(ROLES)}
TABLE6_ROLES = ROLES[:9]

FLAG_FIRST, FLAG_LAST, FLAG_REASSOCIATES, FLAG_ACTIVATIONS, FLAG_HANDOVER = 1, 2, 4, 8, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Gang:
    """Engines that share a command: `kind` is tensor, vector or dma; each engine is (kind of engine, number).

    Tensor engines of two kinds may be one gang: they divide each product between them (`cost.product_ps`).
    """

    name: str
    kind: str
    engines: tuple[tuple[str, int], ...]

    @property
    def counts(self) -> tuple[tuple[str, int], ...]:
        """(kind of engine, how many), in the order in which the kinds are named."""
        kinds = [unit for unit, _ in self.engines]
        return tuple((unit, kinds.count(unit)) for unit in dict.fromkeys(kinds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """Logical tensors, one row each: shape [n, 4], bytes per element, layout (block, padded), kind, name."""

    name: tuple[str, ...]
    kind: tuple[str, ...]
    shape: Ints
    element_bytes: Ints
    layout: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """Places: tensor, space (SRAM or DRAM), address, stored bytes, slot (-1: none), and the box [n, 4] + [n, 4] held."""

    tensor: Ints
    space: Ints
    address: Ints
    stored_bytes: Ints
    slot: Ints
    alias_of: Ints
    offset: Ints
    shape: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """What is done. `m, n, k, batch` are the extents of a product; vector commands have their elements in `m`.

    `dep_ptr`/`dep_idx` list each command's dependencies, ascending. `attributes` indexes the program's attribute table.
    """

    opcode: Ints
    gang: Ints
    step: Ints
    segment: Ints
    layer: Ints
    tile: Ints
    role: Ints
    pair: Ints
    function: Ints
    batch: Ints
    m: Ints
    n: Ints
    k: Ints
    macs: Ints
    recomputed_macs: Ints
    flags: Ints
    attributes: Ints
    dep_ptr: Ints
    dep_idx: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Accesses:
    """Boxes touched: command, operand number, mode, buffer, offset [n, 4] and shape [n, 4] in tensor coordinates."""

    command: Ints
    operand: Ints
    mode: Ints
    buffer: Ints
    offset: Ints
    shape: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A lowered plan.

    Attributes:
        gangs: by index in `commands.gang`.
        lanes: names of the engines, by lane number.
        layers: names, by index in `commands.layer`.
        segments: names, by index in `commands.segment` (-1: none).
        functions: vector function names, by index in `commands.function`.
        attributes: by index in `commands.attributes`.
    """

    gangs: tuple[Gang, ...]
    lanes: tuple[str, ...]
    layers: tuple[str, ...]
    segments: tuple[str, ...]
    functions: tuple[str, ...]
    attributes: tuple[Mapping[str, Any], ...]
    tensors: Tensors
    buffers: Buffers
    commands: Commands
    accesses: Accesses

    def __len__(self) -> int:
        return len(self.commands.opcode)

    def queues(self) -> list[tuple[tuple[int, ...], list[int]]]:
        """(gangs, their commands in serial order) of each set of engines that belong to the same gangs: one in-order queue each."""
        member: dict[tuple[str, int], tuple[int, ...]] = {}
        for number, gang in enumerate(self.gangs):
            for engine in gang.engines:
                member[engine] = (*member.get(engine, ()), number)
        return [
            (gangs, np.flatnonzero(np.isin(self.commands.gang, gangs)).tolist())
            for gangs in dict.fromkeys(member[key] for key in sorted(member))
        ]

    def gang_lanes(self) -> list[tuple[int, ...]]:
        """For each gang the numbers of its engines in `lanes`."""
        number = {name: i for i, name in enumerate(self.lanes)}
        return [tuple(number[f"{unit}{engine}"] for unit, engine in g.engines) for g in self.gangs]

    def sha256(self) -> str:
        """Hash of everything that decides what is run, in which order, on what."""
        digest = hashlib.sha256()
        for table in (self.buffers, self.commands, self.accesses):
            for column in fields(table):
                digest.update(np.ascontiguousarray(getattr(table, column.name), dtype=np.int64).tobytes())
        digest.update(
            self.tensors.shape.tobytes()
            + self.tensors.element_bytes.tobytes()
            + self.tensors.layout.tobytes()
        )
        digest.update(repr((self.gangs, self.functions, self.tensors.kind, _plain(self.attributes))).encode())
        return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return sorted((k, _plain(v)) for k, v in value.items())
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
