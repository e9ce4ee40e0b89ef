"""Verbs on the zoo: list, build, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npusim.errors import BadInputError

app = typer.Typer(no_args_is_help=True, help="The zoo of networks.", rich_markup_mode=None)


@app.command("list")
def list_models() -> None:
    """The networks that `npusim profile NAME` knows."""
    from rich.console import Console
    from rich.table import Table

    from npusim.models import zoo

    table = Table(box=None, padding=(0, 1))
    for column in zoo.LISTING_COLUMNS:
        table.add_column(column, overflow="fold")
    for row in zoo.list_models():
        table.add_row(*row)
    Console().print(table)


@app.command("build")
def build(
    name: Annotated[str, typer.Argument(help="A zoo network (npusim models list).")],
    weights: Annotated[
        str, typer.Option(help="random, or a local checkpoint: a diffusers folder or a safetensors file.")
    ] = "random",
    out: Annotated[Path | None, typer.Option(help="The .onnx file to write (default NAME.onnx).")] = None,
    seed: Annotated[int, typer.Option(help="Determines random weights.")] = 0,
    exporter: Annotated[str, typer.Option(help="dynamo or legacy.")] = "dynamo",
    opset: Annotated[int | None, typer.Option(help="ONNX operator set (default 18; legacy 17).")] = None,
    dtype: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
) -> None:
    """Write a network with weights as ONNX (needs the extra `models`)."""
    for value, allowed, option in (
        (exporter, ("dynamo", "legacy"), "--exporter"),
        (dtype, ("fp32", "fp16"), "--dtype"),
    ):
        if value not in allowed:
            raise BadInputError(f"{option} is '{value}'; allowed are {', '.join(allowed)}")
    from npusim.models import checkpoints

    source: str | Path = weights if weights == "random" else Path(weights)
    path = checkpoints.build(
        name, out=out or Path(f"{name}.onnx"), weights=source, seed=seed, exporter=exporter, opset=opset, dtype=dtype  # type: ignore[arg-type]
    )  # fmt: skip
    typer.echo(f"wrote {path}")


@app.command("compare")
def compare(
    npu: Annotated[str, typer.Option(help="A preset or a TOML file.")] = "exynos2400",
    names: Annotated[str, typer.Option(help="Comma-separated zoo networks (default: all).")] = "",
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("npusim-models.html"),
    jobs: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
) -> None:
    """Every network on one NPU, without and with tiling: a table, and a page with latency against parameters."""
    from rich.console import Console

    from npusim.files import write_aside
    from npusim.reports.zoo import write_zoo_page
    from npusim.zoo_compare import compare_zoo, print_zoo, systems_rows

    chosen = tuple(filter(None, (n.strip() for n in names.split(","))))
    rows = compare_zoo(chosen, npu=npu, jobs=jobs)
    systems = systems_rows(rows)
    print_zoo(Console(), rows, systems)
    write_aside(out, lambda path: write_zoo_page(rows, systems, npu, path))
    typer.echo(f"page: {out}")
