"""`npusim train data`: one verb per step of the chain. Each reads one variant (union: several) and writes another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npusim.errors import CheckFailedError, MissingExtraError
from npusim.training.chain.pictures import MAX_PIXELS

if TYPE_CHECKING:
    from npusim.training.chain.step import Work
    from npusim.training.chain.variant import Variant

app = typer.Typer(
    help="The data chain: L-orig to L-pp to L-pps, synt to synt-cur, and unions.", no_args_is_help=True
)

VariantArgument = Annotated[Path, typer.Argument(help="the variant to read", show_default=False)]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", help="the variant to write; run the same command again to go on", show_default=False
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="processes (default: one per core)", show_default=False)
]
MaxPixelsOption = Annotated[
    int, typer.Option("--max-pixels", min=1, help="larger pictures are set aside undecoded")
]
SeedOption = Annotated[int, typer.Option("--seed", help="determines all that is drawn")]


def need(*packages: str) -> None:
    """Raise MissingExtraError for the first of these that is not installed."""
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, "training")


def _work(workers: int | None = None, max_pixels: int = MAX_PIXELS) -> Work:
    from npusim.training.chain.step import Work
    from npusim.training.chain.stream import usable_cores

    need("PIL", "safetensors")
    return Work(workers=workers or usable_cores(), max_pixels=max_pixels)


def _report(variant: Variant) -> None:
    from npusim.training.chain.step import described

    typer.echo(described(variant))


@app.command()
def make(
    out: OutOption,
    source: Annotated[
        Path | None, typer.Option("--from", help="an imagefolder with metadata.jsonl (file_name, text)")
    ] = None,
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
) -> None:
    """Begin a chain: check every picture and caption of an imagefolder."""
    from npusim.training.chain.make import make_from_folder

    assert source is not None
    _report(make_from_folder(source, out, _work(workers, max_pixels)))


@app.command()
def union(
    variants: Annotated[list[Path], typer.Argument(help="two or more variants", show_default=False)],
    out: OutOption,
) -> None:
    """Join variants; a record that comes by two ways is kept once."""
    from npusim.training.chain.union import unite
    from npusim.training.chain.variant import open_variant

    _report(unite([open_variant(folder) for folder in variants], out, _work()))


@app.command()
def stats(
    variants: Annotated[list[Path], typer.Argument(help="one or more variants", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="read every picture again and compare its SHA-256; exit 1 if one differs"
        ),
    ] = False,
) -> None:
    """Say what variants hold: what was set aside and why, captions, coverage, lineage."""
    from npusim.training.chain.stats import damaged, statistics
    from npusim.training.chain.variant import open_variant
    from npusim.training.screen_data import print_statistics

    found = [statistics(folder) for folder in variants]
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        print_statistics(found)
    broken = [line for folder in variants if verify for line in damaged(open_variant(folder))]
    if broken:
        more = f" and {len(broken) - 5:,} more" if len(broken) > 5 else ""
        raise CheckFailedError(f"{len(broken):,} pictures are not as recorded: {'; '.join(broken[:5])}{more}")
