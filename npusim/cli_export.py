"""The verb `export`: feed a planned deployment to another tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from npusim.cli_options import parse_dims, parse_shapes
from npusim.cli_runs import DimOption, ShapeOption, print_notes
from npusim.errors import BadInputError
from npusim.units import format_bytes


def export(
    run: Annotated[Path | None, typer.Argument(help="A run directory.", show_default=False)] = None,
    model: Annotated[
        str,
        typer.Option(
            help="What was profiled: the ONNX file with its weights (trace, csv: a zoo name is enough)."
        ),
    ] = "",
    to: Annotated[str, typer.Option(help="The target (npusim export --list).")] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write (default beside the run directory: RUN + the target's ending)."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the target: NAME=VALUE, or NAME alone (see --list)."),
    ] = None,
    contrib: Annotated[
        bool, typer.Option("--contrib", help="onnx-qdq: operators of com.microsoft at opset 17.")
    ] = False,
    list_targets: Annotated[bool, typer.Option("--list", help="The installed targets, and leave.")] = False,
    shape: ShapeOption = None,
    dim: DimOption = None,
) -> None:
    """Write a planned deployment as files for another tool."""
    if list_targets:
        _print_targets()
        return
    if run is None or not model or not to:
        missing = [n for n, given in (("RUN", run), ("--model", model), ("--to", to)) if not given]
        raise BadInputError(
            f"export needs {', '.join(missing)}; e.g. npusim export npusim-runs/unet --model unet.onnx --to onnx-qdq; "
            "targets: npusim export --list"
        )
    from npusim.export.registry import check_options, find_exporter
    from npusim.export.registry import export as write
    from npusim.export.source import open_source

    exporter = find_exporter(to)
    options = _parse_options([*(option or ()), *(["contrib"] if contrib else ())])
    check_options(to, exporter, options)
    source = open_source(run, model, shapes=parse_shapes(shape), dims=parse_dims(dim))
    target = out if out is not None else run.parent / f"{run.resolve().name}{exporter.suffix}"
    files, notes = write(source, to, target, options)
    print_notes((*source.notes, *notes))
    for file in files:
        typer.echo(f"wrote {file} ({format_bytes(file.stat().st_size)})")


def _parse_options(items: Sequence[str]) -> dict[str, str]:
    found = {}
    for item in items:
        name, _, value = item.partition("=")
        if not name or name in found:
            raise BadInputError(f"--option is '{item}'; it takes NAME or NAME=VALUE, each name once")
        found[name] = value
    return found


def _print_targets() -> None:
    """Every target with what it carries and loses; a package that cannot be loaded is named, the others still stand."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from npusim.errors import ExportError
    from npusim.export.registry import offers

    console = Console(highlight=False)
    for offer in offers():
        console.print(f"[bold]{escape(offer.name)}[/bold]  (package {escape(offer.package)})")
        try:
            found = offer.load()
        except ExportError as error:
            console.print(f"  [red]{escape(str(error))}[/red]")
            continue
        rows = {"writes": found.title, "carries": found.carries, "loses": found.loses}
        rows |= {f"--option {name}=VALUE": what for name, what in found.options.items()}
        rows |= {f"--option {name}": what for name, what in found.flags.items()}
        table = Table.grid(padding=(0, 2))
        for name, text in rows.items():
            table.add_row(f"  {escape(name)}", escape(text))
        console.print(table)
