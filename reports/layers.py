"""One row per layer: where its time and its DRAM traffic go."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from npusim.dtypes import PAIRS
from npusim.program import PRODUCT
from npusim.reports.critical import critical_ps
from npusim.reports.events import slices
from npusim.reports.source import Simulated, planned_trace
from npusim.reports.theme import block_of
from npusim.summary import intermediate_transfers
from npusim.units import PS_PER_MS, PS_PER_S

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def union_by(group: Ints, start: Ints, end: Ints, count: int) -> Ints:
    """[count] length of the union of the intervals of each group."""
    if not len(start):
        return np.zeros(count, dtype=np.int64)
    base = group * (int(end.max()) + 1)
    order = np.lexsort((start, group))
    low, high = (start + base)[order], np.maximum.accumulate((end + base)[order])
    before = np.concatenate([[0], high[:-1]])
    covered = np.zeros(count, dtype=np.int64)
    np.add.at(covered, group[order], np.maximum(0, high - np.maximum(low, before)))
    return covered


def peak_macs_per_s(profile: Simulated, pair: str) -> float:
    """Multiply-accumulates per second of all tensor engines together, at the published peak of an operand pair."""
    npu = profile.plan.npu
    per_cycle = sum(e.count * e.macs_per_cycle for e in npu.tensor_engine)
    return float(per_cycle * npu.tensor_rates.get(pair, 0.0) * npu.core.clock_hz)


@dataclass(frozen=True, kw_only=True)
class LayerFigures:
    """Columns with one value per layer of the Program.

    Attributes:
        critical_ps: time it holds the critical path; adds up to the makespan.
        busy_ps: union of the intervals in which one of its commands runs.
        macs: multiply-accumulates, without recomputed ones.
        dram_bytes: bytes across the DRAM bus; `spill_bytes` those of intermediates.
        peak_s: seconds that its products would take on all tensor engines at their peak.
        command_critical_ps: [commands], what `critical_ps` adds up.
    """

    critical_ps: Ints
    busy_ps: Ints
    macs: Ints
    dram_bytes: Ints
    spill_bytes: Ints
    peak_s: Floats
    command_critical_ps: Ints

    @cached_property
    def mac_utilization(self) -> Floats:
        """Share of all multipliers' peak that a layer's products reach while the layer runs."""
        found: Floats = self.peak_s * PS_PER_S / np.maximum(1, self.busy_ps)
        return found


def layer_figures(profile: Simulated) -> LayerFigures:
    """Sum a run up by layer."""
    program, trace = profile.program, planned_trace(profile)
    commands, count = program.commands, len(program.layers)

    def total(values: Ints) -> Ints:
        summed = np.zeros(count, dtype=np.int64)
        np.add.at(summed, commands.layer, values)
        return summed

    rates = np.asarray([peak_macs_per_s(profile, pair) for pair in PAIRS])
    products = np.flatnonzero((commands.opcode == PRODUCT) & (commands.macs > 0))
    seconds = commands.macs[products] / np.maximum(rates[commands.pair[products]], 1.0)
    held = critical_ps(program, trace)
    return LayerFigures(
        critical_ps=total(held),
        busy_ps=union_by(commands.layer, trace.start_ps, trace.end_ps, count),
        macs=total(commands.macs - commands.recomputed_macs),
        dram_bytes=total(profile.work.dram_bytes),
        spill_bytes=total(np.where(intermediate_transfers(program), profile.work.dram_bytes, 0)),
        peak_s=np.bincount(commands.layer[products], weights=seconds, minlength=count).astype(np.float64),
        command_critical_ps=held,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One row of the layer table; times in ms, sizes in bytes.

    Attributes:
        name, op: the layer and its operator.
        block, part: module paths of the U-Net block it belongs to, and of the part of that block.
        shape: of its output, as stored: batch, heads, rows, columns.
        precision: of its operands.
        slices: tiles or pieces that it runs in.
        critical_ms: time it holds the critical path; the rows add up to the latency.
        busy_ms: time in which any of its commands runs.
        macs: multiply-accumulates, without recomputed ones.
        mac_share: share of all multipliers' peak that its products reach while it runs.
        dram_bytes: bytes across the DRAM bus; `spill_bytes` those of intermediates.
    """

    name: str
    op: str
    block: str
    part: str
    shape: tuple[int, ...]
    precision: str
    slices: int
    critical_ms: float
    busy_ms: float
    macs: int
    mac_share: float
    dram_bytes: int
    spill_bytes: int


def layer_rows(profile: Simulated, figures: LayerFigures) -> list[LayerRow]:
    """Rows of the layer table, in execution order."""
    by_name = {layer.name: layer for layer in profile.graph.layers}
    precisions = {layer.name: layer.precision for layer in profile.plan.layers}
    counts = slices(profile.program)
    rows = []
    for index, name in enumerate(profile.program.layers):
        layer = by_name.get(name)
        scope = layer.scope if layer is not None else ""
        rows.append(
            LayerRow(
                name=name,
                op=layer.op if layer is not None else "",
                block=block_of(scope),
                part=block_of(scope, 2),
                shape=_shape(profile, layer.output) if layer is not None else (),
                precision=precisions.get(name, profile.plan.options.precision),
                slices=counts[index],
                critical_ms=int(figures.critical_ps[index]) / PS_PER_MS,
                busy_ms=int(figures.busy_ps[index]) / PS_PER_MS,
                macs=int(figures.macs[index]),
                mac_share=float(figures.mac_utilization[index]),
                dram_bytes=int(figures.dram_bytes[index]),
                spill_bytes=int(figures.spill_bytes[index]),
            )
        )
    return rows


def _shape(profile: Simulated, tensor: str) -> tuple[int, ...]:
    found = profile.graph.tensors.get(tensor)
    return tuple(found.shape) if found is not None else ()


def as_csv(rows: Sequence[LayerRow]) -> str:
    """The layer table as CSV text (RFC 4180); shapes as `1x1x4096x320`."""
    text = io.StringIO()
    names = [column.name for column in fields(LayerRow)]
    writer = csv.DictWriter(text, fieldnames=names)
    writer.writeheader()
    writer.writerows(
        {name: getattr(row, name) for name in names} | {"shape": "x".join(map(str, row.shape))}
        for row in rows
    )
    return text.getvalue()
