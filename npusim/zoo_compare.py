"""Every zoo network on one NPU, without and with tiling: the paper's Table 1 as far as the zoo has it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from rich.console import Console
from rich.table import Table

from npusim import api
from npusim.errors import BadInputError
from npusim.hardware import load_npu
from npusim.models import zoo
from npusim.models.systems import SYSTEMS
from npusim.progress import track
from npusim.reports.zoo import SystemRow, ZooRow
from npusim.scheduler.problem import Infeasible
from npusim.units import MIB, format_bytes

#: The two ways that are compared: layers one by one, and the paper's rule.
RULES = ("none", "sram")


def compare_zoo(names: Sequence[str], *, npu: str, jobs: int) -> list[ZooRow]:
    """Profile the named networks (default: all), largest first, in `jobs` processes; rows in the order of the zoo.

    Raises:
        BadInputError: a name is unknown, or a network does not fit.
    """
    chosen = tuple(names) or zoo.names()
    cards = {name: zoo.card(name) for name in chosen}
    load_npu(npu)
    order = sorted(chosen, key=lambda n: -len(zoo.graph_bytes(n)))
    if jobs == 1:
        rows = track((_row(n, npu) for n in order), "profiling the zoo", total=len(order))
        found = dict(zip(order, rows, strict=True))
    else:
        with ProcessPoolExecutor(max_workers=jobs) as pool:
            rows = track(pool.map(_row, order, [npu] * len(order)), "profiling the zoo", total=len(order))
            found = dict(zip(order, rows, strict=True))
    return [found[name] for name in cards]


def _row(name: str, npu: str) -> ZooRow:
    card = zoo.card(name)
    graph = api.load_graph(name)
    summaries: list[dict[str, Any]] = []
    for tiles in RULES:
        made = api.profile(graph, tiles=tiles, precision=card.default_precision, npu=npu)
        if isinstance(made, Infeasible):
            raise BadInputError(made.sentence())
        summaries.append(dict(made.summary))
    return ZooRow(
        name=name, parameters=card.parameters, macs=summaries[0]["macs"], precision=card.default_precision,
        evaluations=card.evaluations_per_image, inferred=card.inferred, coverage=summaries[0]["coverage"]["nodes"],
        latency_ms=tuple(s["latency_ms"] for s in summaries),
        dram_bytes=tuple(s["dram_read_bytes"] + s["dram_write_bytes"] for s in summaries),
        peak_sram_bytes=tuple(s["peak_sram_bytes"] for s in summaries),
        energy_mj=tuple(s["energy_mj"] for s in summaries),
    )  # fmt: skip


def systems_rows(rows: Sequence[ZooRow]) -> list[SystemRow]:
    """The systems of Table 1 whose network is among the rows; time of the denoising network per image."""
    by_name = {r.name: r for r in rows}
    return [
        SystemRow(
            name=s.name, network=s.network, steps=s.steps, guidance=s.guidance, published=s.published_parameters,
            image_ms=tuple(ms * s.evaluations_per_image for ms in by_name[s.network].latency_ms), notes=s.notes,
        )
        for s in SYSTEMS
        if s.network in by_name
    ]  # fmt: skip


def print_zoo(console: Console, rows: Sequence[ZooRow], systems: Sequence[SystemRow]) -> None:
    """Two tables: networks, then the systems of Table 1."""
    columns = (
        "network",
        "params",
        "GMAC",
        "ms none",
        "ms sram",
        "DRAM none",
        "DRAM sram",
        "SRAM MiB",
        "mJ sram",
        "s / image",
        "",
    )
    table = _table(
        "one evaluation, without tiling (none) and with the paper's rule (sram), decoupled", columns
    )
    for r in rows:
        table.add_row(
            r.name, f"{r.parameters / 1e6:,.1f} M", f"{r.macs / 1e9:,.1f}", *(f"{v:,.1f}" for v in r.latency_ms),
            *(format_bytes(v) for v in r.dram_bytes), f"{r.peak_sram_bytes[-1] / MIB:.2f}", f"{r.energy_mj[-1]:,.0f}",
            f"{r.latency_ms[-1] * r.evaluations / 1000:,.2f}", "inferred" if r.inferred else r.precision,
        )  # fmt: skip
    console.print(table)
    table = _table(
        "systems of Table 1: the denoising network per image, s",
        ("system", "network", "steps", "none", "sram", "notes"),
    )
    for s in systems:
        steps = f"{s.steps} x 2" if s.guidance else str(s.steps)
        table.add_row(s.name, s.network, steps, *(f"{v / 1000:,.2f}" for v in s.image_ms), s.notes)
    console.print(table)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for i, name in enumerate(columns):
        table.add_column(
            name,
            justify="left" if i == 0 or not name or name in ("network", "notes") else "right",
            overflow="fold",
        )
    return table
