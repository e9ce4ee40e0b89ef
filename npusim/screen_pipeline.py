"""What the profile of a pipeline prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from npusim.units import format_bytes, ps_to_ms

Summary = Mapping[str, Any]


def print_pipeline(console: Console, summary: Summary, npu_title: str) -> None:
    """Headline, networks, what dominates them, other numbers of steps, assumptions."""
    _headline(console, summary, npu_title)
    console.print(_networks(summary))
    console.print(_dominates(summary))
    console.print(_steps(summary))
    console.print("assumptions", style="dim")
    for sentence in summary["assumptions"]:
        console.print(f"  - {escape(sentence)}", style="dim", highlight=False)


def _headline(console: Console, s: Summary, npu_title: str) -> None:
    steps = f"{s['steps']} denoising step{'s' if s['steps'] > 1 else ''}"
    console.print(
        f"[bold]{escape(s['title'] or s['model'])}[/] on {escape(npu_title)}, {steps}", highlight=False
    )
    mark = {p: " (planned for)" if s["policy"] == p else "" for p in ("decoupled", "serial")}
    traffic = s["dram_read_bytes"] + s["dram_write_bytes"]
    loaded = f", {format_bytes(s['load_bytes'])} of it weights from storage" if s["load_bytes"] else ""
    rows = (
        ("latency", f"[bold]{s['decoupled_latency_ms']:.2f} ms[/] decoupled{mark['decoupled']}, "
                    f"{s['serial_latency_ms']:.2f} ms serial{mark['serial']}"),
        ("of it", f"launches {s['launch_ms']:.2f} ms, loading weights {s['load_ms']:.2f} ms"),
        ("bound", f"{s['lower_bound_ms']:.2f} ms at best, without launches and loads"),
        ("DRAM", f"{format_bytes(traffic)} ({format_bytes(s['spill_bytes'])} of it spilled intermediates{loaded})"),
        ("energy", f"{s['energy_mj']:.0f} mJ"),
    )  # fmt: skip
    for name, text in rows:
        console.print(f"  [cyan]{name:9}[/]{text}", highlight=False)


def _table(title: str, *columns: str, left: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in columns:
        justify: Literal["left", "right"] = "left" if name in left else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name != left[-1] if left else True)
    return table


def _networks(s: Summary) -> Table:
    table = _table(
        "networks, in order: times x (ms each + launch) + loads = total", "network", "as", "times", "ms each", "launch", "loads",
        "total ms", "share", "DRAM", "mJ", left=("network", "as"),
    )  # fmt: skip
    for n in s["networks"]:
        load = f"{n['loads']} x {ps_to_ms(n['load_ps']):.2f}" if n["loads"] else "-"
        kind = n["precision"] + (f", batch {n['batch']}" if n["batch"] > 1 else "")
        table.add_row(
            escape(n["name"]), kind, str(n["evaluations"]), f"{n['evaluation_ms']:.2f}",
            f"{ps_to_ms(n['launch_ps']):.2f}", load, f"{n['total_ms']:.2f}", f"{n['share']:.1%}",
            format_bytes(n["dram_read_bytes"] + n["dram_write_bytes"]), f"{n['energy_mj']:.0f}",
        )  # fmt: skip
    return table


def _dominates(s: Summary) -> Table:
    table = _table(
        "what holds the critical path of one evaluation", "network", "bound by", "kinds of layers",
        left=("network", "bound by", "kinds of layers"),
    )  # fmt: skip
    for n in s["networks"]:
        kinds = ", ".join(f"{d['what']} {d['ms']:.2f} ms ({d['share']:.0%})" for d in n["dominated_by"][:4])
        table.add_row(escape(n["name"]), n["bound_by"], kinds)
    return table


def _steps(s: Summary) -> Table:
    table = _table("steps", "steps", "latency ms", "DRAM", "mJ", left=())
    for row in s["steps_table"]:
        mark = "[bold]" if row["steps"] == s["steps"] else ""
        moved = format_bytes(row["dram_read_bytes"] + row["dram_write_bytes"])
        table.add_row(
            f"{mark}{row['steps']}", f"{mark}{row['latency_ms']:.2f}", moved, f"{row['energy_mj']:.0f}"
        )
    return table
