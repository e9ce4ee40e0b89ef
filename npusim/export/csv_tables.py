"""`csv`: one row per layer, one row per command."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npusim.dtypes import PAIRS
from npusim.export.registry import Exporter
from npusim.export.source import ExportSource
from npusim.program import OPCODES, ROLES
from npusim.trace import STALLS


def write(source: ExportSource, path: Path, options: Mapping[str, str]) -> tuple[str, ...]:
    """Write `<stem>.layers.csv` and `<stem>.commands.csv`."""
    from npusim.reports.layers import as_csv, layer_figures, layer_rows

    tables = {"layers": as_csv(layer_rows(source, layer_figures(source))), "commands": command_table(source)}
    for name, text in tables.items():
        path.with_name(f"{path.name.removesuffix('.csv')}.{name}.csv").write_bytes(text.encode())
    return ()


def command_table(source: ExportSource) -> str:
    """Every command in serial order: what it is, what it moves and computes, when it runs. Empty cells: does not apply."""
    program, trace = source.program, source.trace
    c = program.commands

    def named(names: tuple[str, ...], numbers: Any) -> list[str]:
        return [names[i] if i >= 0 else "" for i in numbers.tolist()]

    columns: dict[str, list[Any]] = {
        "command": list(range(len(program))),
        "opcode": named(OPCODES, c.opcode),
        "engines": [program.gangs[g].name for g in c.gang.tolist()],
        "layer": named(program.layers, c.layer),
        "segment": named(program.segments, c.segment),
        "tile": [t if t >= 0 else "" for t in c.tile.tolist()],
        "role": named(ROLES, c.role),
        "function": named(program.functions, c.function),
        "pair": named(PAIRS, c.pair),
        **{name: getattr(c, name).tolist() for name in ("batch", "m", "n", "k", "macs", "recomputed_macs")},
        "dram_bytes": source.work.dram_bytes.tolist(),
        "start_ps": trace.start_ps.tolist(),
        "end_ps": trace.end_ps.tolist(),
        "waited_for": named(STALLS, trace.stall),
        "dependencies": np.diff(c.dep_ptr).tolist(),
    }
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


EXPORTER = Exporter(
    title="two tables: NAME.layers.csv, NAME.commands.csv (RFC 4180)",
    suffix=".csv",
    carries="per layer time, MACs, DRAM bytes; per command engines, role, extents, bytes, start, end, stall reason",
    loses="boxes, addresses, which commands depend on which (only how many)",
    write=write,
)
