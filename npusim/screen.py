"""What a profile prints: one screen that a person can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from npusim.units import MIB, format_bytes, ps_to_ms

if TYPE_CHECKING:
    from npusim.api import Profile
    from npusim.reports.compare import Change

_TOP, _CHANGES = 10, 15


def print_profile(console: Console, profile: Profile) -> None:
    """Headline, costliest layers, segments, assumptions."""
    _headline(console, profile)
    console.print(_layers_table(profile))
    if profile.summary["segments"]:
        console.print(_segments_table(profile.summary))
    if "levers" in profile.summary:
        console.print(_gap_table(profile.summary))
        console.print(_why_table(profile.summary))
    _notes(console, profile.summary)


def _headline(console: Console, profile: Profile) -> None:
    s, npu = profile.summary, profile.plan.npu
    peak = s["peak_sram_bytes"] / npu.sram.sram_bytes
    traffic = s["dram_read_bytes"] + s["dram_write_bytes"]
    achieved = s["macs"] / s["latency_ms"] / 1e9 if s["latency_ms"] else 0.0
    console.print(
        f"[bold]{escape(s['model'])}[/] on {escape(npu.title)}, {s['precision']}, tiles {escape(s['tiles'])}",
        highlight=False,
    )
    mark = {p: " (planned for)" if s["policy"] == p else "" for p in ("decoupled", "serial")}
    rows = (
        ("latency", f"[bold]{s['decoupled_latency_ms']:.2f} ms[/] decoupled{mark['decoupled']}, "
                    f"{s['serial_latency_ms']:.2f} ms serial{mark['serial']}"),
        ("bound", f"{s['lower_bound_ms']:.2f} ms at best ({s['bound_by']}); "
                  f"the plan takes {_ratio(s['latency_ms'], s['lower_bound_ms'])} of it"),
        ("compute", f"{s['macs'] / 1e9:.2f} GMAC, {achieved:.2f} TMAC/s; hand-over between engines {s['handover_ms']:.2f} ms"),
        ("DRAM", f"{format_bytes(traffic)} ({format_bytes(s['spill_bytes'])} of it spilled intermediates); "
                 f"no plan can do with less than {format_bytes(s['dram_bound_bytes'])}"),
        ("SRAM", f"peak {s['peak_sram_bytes'] / MIB:.2f} of {npu.sram.sram_bytes / MIB:.2f} MiB ({peak:.0%}), "
                 f"{s['sram_utilization']:.0%} on average"),
        ("energy", f"{s['energy_mj']:.0f} mJ"),
        ("engines", ", ".join(f"{k} {v:.0%}" for k, v in _engines(s["engine_busy"]).items()) + " busy"),
        ("coverage", _coverage(s["coverage"])),
    )  # fmt: skip
    for name, text in rows:
        console.print(f"  [cyan]{name:9}[/]{text}", highlight=False)


def _ratio(value: float, bound: float) -> str:
    return f"{value / bound:.2f} x" if bound else "-"


def _engines(busy: Mapping[str, float]) -> dict[str, float]:
    """Mean busy share per kind of engine."""
    kinds: dict[str, list[float]] = {}
    for lane, share in busy.items():
        kinds.setdefault(lane.rstrip("0123456789"), []).append(share)
    return {kind: sum(shares) / len(shares) for kind, shares in kinds.items()}


def _coverage(coverage: Mapping[str, Any]) -> str:
    if not coverage["unmodelled"]:
        return "100 % of nodes, MACs and bytes are modelled"
    names = ", ".join(f"{op} ({len(nodes)})" for op, nodes in coverage["unmodelled"].items())
    return f"[yellow]{coverage['nodes']:.1%} of nodes; costed by their bytes only: {escape(names)}[/]"


def layer_times_ms(profile: Profile) -> list[float]:
    """Time that each layer's commands take one after the other, ms."""
    duration = (profile.trace.end_ps - profile.trace.start_ps).astype(np.float64)
    total = np.bincount(profile.program.commands.layer, weights=duration, minlength=len(profile.graph.layers))
    return [ps_to_ms(int(t)) for t in total]


def _layers_table(profile: Profile) -> Table:
    times = layer_times_ms(profile)
    dram = np.bincount(profile.program.commands.layer, weights=profile.work.dram_bytes, minlength=len(times))
    table = Table(
        title=f"the {min(_TOP, len(times))} costliest layers, of {len(times)}",
        title_justify="left",
        box=None,
        padding=(0, 1),
    )
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    table.add_column("DRAM", justify="right")
    table.add_column("kind")
    table.add_column("layer", overflow="fold")
    whole = sum(times) or 1.0
    for index in sorted(range(len(times)), key=lambda i: -times[i])[:_TOP]:
        layer = profile.graph.layers[index]
        table.add_row(
            f"{times[index]:.2f}",
            f"{times[index] / whole:.1%}",
            format_bytes(float(dram[index])),
            layer.op,
            escape(layer.name),
        )
    return table


def _segments_table(summary: Mapping[str, Any]) -> Table:
    """Equal segments share a row."""
    table = Table(title="segments", title_justify="left", box=None, padding=(0, 1))
    for name in ("number", "tiles each", "ms each", "DRAM each", "SRAM", "first"):
        table.add_column(name, justify="left" if name == "first" else "right", overflow="fold")
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for segment in summary["segments"]:
        key = (
            segment["tile_count"],
            tuple(segment["tiles"].items()),
            segment["dram_bytes"],
            round(segment["latency_ms"], 2),
        )
        groups.setdefault(key, []).append(segment)
    for (count, axes, size, latency), members in groups.items():
        tiles = f"{count} = " + " x ".join(f"{axis} {n}" for axis, n in axes)
        table.add_row(
            str(len(members)), tiles, f"{latency:.2f}", format_bytes(size),
            f"{members[0]['peak_sram_bytes'] / MIB:.2f} MiB", escape(members[0]["name"]),
        )  # fmt: skip
    return table


def _table(title: str, left: Sequence[str], *names: str) -> Table:
    """A table without lines; columns named in `left` are set left."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table


def _gap_table(summary: Mapping[str, Any]) -> Table:
    """From the bound to the latency, and the latency on more hardware."""
    table = _table("from the bound to the latency", ("cause",), "ms", "cause")
    table.add_row(f"{summary['lower_bound_ms']:.2f}", f"lower bound ({summary['bound_by']})")
    for cause in summary["gap"]:
        table.add_row(f"{cause['ms']:+.2f}", cause["cause"])
    table.add_row(f"{summary['latency_ms']:.2f}", "latency")
    for lever in summary["levers"]:
        table.add_row(f"{lever['latency_ms']:.2f}", f"latency with {lever['change']}")
    return table


def _why_table(summary: Mapping[str, Any]) -> Table:
    """Equal reasons share a row."""
    table = _table(
        "why so many tiles (each segment simulated on its own)", ("first", "bound by", "next best"),
        "number", "tiles", "ms", "bound by", "next best", *(f"{p['change']}" for p in summary["levers"]), "first",
    )  # fmt: skip
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for segment in summary["segments"]:
        if segment["why"]:
            groups.setdefault(repr((segment["tile_count"], segment["why"])), []).append(segment)
    for members in groups.values():
        segment, why = members[0], members[0]["why"]
        levers = [_percent(p["latency_ms"], why["alone_ms"]) for p in why["levers"]]
        others = [
            f"{p['tile_count']}: {_percent(p['latency_ms'], why['alone_ms'])}, {p['reason']}"
            for p in why["next_best"][:2]
        ]
        table.add_row(
            str(len(members)), str(segment["tile_count"]), f"{why['alone_ms']:.2f}", why["bound_by"], "\n".join(others),
            *levers, escape(segment["name"]),
        )  # fmt: skip
    return table


def _percent(value: float | None, base: float) -> str:
    return f"{value / base - 1:+.1%}" if value is not None and base else "does not fit"


def print_changes(title: str, changes: Sequence[Change]) -> None:
    """The changes that weigh most, as a table."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in ("where", "figure", "A", "B", "change"):
        table.add_column(name, justify="left" if name in ("where", "figure") else "right", overflow="fold")
    for change in changes[:_CHANGES]:
        grown = f"{change.increase / change.before:+.1%}" if change.before else "new"
        table.add_row(
            escape(change.where), f"{change.what}, {change.unit}", f"{change.before:,.6g}", f"{change.after:,.6g}", grown
        )  # fmt: skip
    Console().print(table)


def _notes(console: Console, summary: Mapping[str, Any]) -> None:
    console.print("assumptions", style="dim")
    for sentence in summary["assumptions"]:
        console.print(f"  - {escape(sentence)}", style="dim", highlight=False)
