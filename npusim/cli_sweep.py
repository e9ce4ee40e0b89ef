"""The verb `sweep`: many design points, each computed once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npusim.errors import BadInputError, CheckFailedError

if TYPE_CHECKING:
    from npusim.sweep.run import Progress, Sweep


def sweep(
    spec: Annotated[Path, typer.Argument(help="The sweep in TOML (docs/sweeps.md).", show_default=False)],
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Address of a Dask scheduler (tcp://host:8786; default: processes of this machine)."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Only go on with this very sweep, as it was started with this --out."),
    ] = False,
    out: Annotated[
        Path,
        typer.Option(help="Folder of the store (points.sqlite, shared by all sweeps in it) and of the page."),
    ] = Path("npusim-sweeps"),
    jobs: Annotated[
        int | None,
        typer.Option(help="Processes without --scheduler (default: one per CPU core).", min=1, max=512),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before more than 100,000 points.")] = False,
    point: Annotated[
        list[str] | None,
        typer.Option(
            help="Write a computed point, by the start of its key, as a full run directory; compute nothing else."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress; print only what was written.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Compute every design point of a sweep that the store does not have yet; write its page."""
    from npusim.sweep.run import Options, open_sweep, run_sweep

    opened = open_sweep(spec, out)
    try:
        if point:
            _open_points(opened, point)
        else:
            say = (lambda text: None) if quiet else typer.echo
            ask = typer.confirm if sys.stdin.isatty() else None
            options = Options(
                scheduler=scheduler, jobs=jobs or len(os.sched_getaffinity(0)), resume=resume, yes=yes, quiet=quiet, ask=ask, say=say
            )  # fmt: skip
            try:
                progress = run_sweep(opened, options)
            except KeyboardInterrupt:
                _say_kept(opened, spec)
                raise
            _report(opened, spec, progress, open_page=open_page, quiet=quiet)
    finally:
        opened.store.close()


def _say_kept(opened: Sweep, spec: Path) -> None:
    kept, place = opened.store.count(opened.name), opened.store.path
    again = f"npusim sweep {spec} --resume --out {place.parent}"
    sys.stderr.write(f"npusim: {kept:,} points are kept in {place}; go on with: {again}\n")


def _open_points(opened: Sweep, starts: list[str]) -> None:
    from npusim.sweep.opened import open_point

    for start in starts:
        typer.echo(f"run: {open_point(opened, start)}")


def _report(opened: Sweep, spec: Path, progress: Progress, *, open_page: bool, quiet: bool) -> None:
    """Write the page, and say what the sweep came to."""
    from npusim.sweep.page import summary_lines, write_page

    page = write_page(opened, spec)
    if not quiet:
        for line in summary_lines(opened, progress):
            typer.echo(line)
    typer.echo(f"store: {opened.store.path}")
    typer.echo(f"page: {page}")
    if open_page:
        typer.launch(page.resolve().as_uri())
    if progress.crashed:
        key, reason = next(iter(progress.crashed.items()))
        raise CheckFailedError(
            f"{len(progress.crashed)} points broke and are not in the store; the first, {key[:12]}: {reason}"
        )
    if not opened.store.count(opened.name):
        raise BadInputError(f"{spec}: no point was computed")
