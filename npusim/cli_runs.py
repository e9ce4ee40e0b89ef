"""Verbs on run directories: compare two, check one against limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npusim.errors import BadInputError, CheckFailedError

RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]


def compare(
    a: RunArgument,
    b: RunArgument,
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("npusim-compare.html"),
) -> None:
    """What got slower or heavier from run A to run B, on screen and as a page."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from npusim.reports.compare import changes, write_compare
    from npusim.run_directory import load_summary, write_aside

    found = sorted(changes(load_summary(a), load_summary(b)), key=lambda c: -abs(c.share))
    table = Table(title=f"{a} -> {b}", title_justify="left", box=None, padding=(0, 1))
    for name, justify in (
        ("where", "left"),
        ("figure", "left"),
        ("A", "right"),
        ("B", "right"),
        ("change", "right"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for change in found[:15]:
        grown = f"{change.increase / change.before:+.1%}" if change.before else "new"
        table.add_row(
            escape(change.where), f"{change.what}, {change.unit}", f"{change.before:,.6g}", f"{change.after:,.6g}", grown
        )  # fmt: skip
    Console().print(table)
    write_aside(out, lambda path: write_compare(a, b, path))
    typer.echo(f"page: {out}")


def check(
    run: RunArgument,
    max_dram_bytes: Annotated[
        int | None, typer.Option(help="Most DRAM bytes, read and written.", min=0)
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Longest latency under the planned policy.", min=0)
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="A run directory or summary.json not to be worse than.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Percent by which the baseline may be exceeded.", min=0)
    ] = 0.0,
) -> None:
    """The DMA-cost gate: exit 1, and the segments to blame, when a limit does not hold."""
    from npusim.check import check_baseline, check_limits
    from npusim.run_directory import load_summary

    if max_dram_bytes is None and max_latency_ms is None and baseline is None:
        raise BadInputError("nothing to check: give --max-dram-bytes, --max-latency-ms or --baseline")
    summary = load_summary(run)
    found = check_limits(summary, max_dram_bytes=max_dram_bytes, max_latency_ms=max_latency_ms)
    if baseline is not None:
        found += check_baseline(summary, load_summary(baseline), tolerance_percent=tolerance)
    if found:
        raise CheckFailedError(f"{run}: " + "; ".join(v.sentence() for v in found))
    typer.echo(f"{run}: within its limits")
