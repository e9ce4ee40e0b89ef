"""`npusim profile` of a pipeline: what the verb does when its model is a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from npusim.errors import BadInputError
from npusim.progress import stage


def refuse(options: Mapping[str, object]) -> None:
    """Options that mean nothing for several networks.

    Raises:
        BadInputError: one of them was given.
    """
    for name, value in options.items():
        if value:
            raise BadInputError(
                f"{name} is about one network, and a pipeline has several; profile the network alone for it"
            )


def profile_command(
    model: str, changes: Mapping[str, Any], *, steps: int | None, npu: str, policy: str, out: Path | None, json: bool,
    quiet: bool, images: str | None, open_report: bool,
) -> None:  # fmt: skip
    """Plan every network of a pipeline, write the run directory, print one screen."""
    from npusim.models.pipeline import load_pipeline
    from npusim.pipeline import profile_pipeline
    from npusim.pipeline_directory import (
        check_pipeline_replaceable,
        default_pipeline_directory,
        write_pipeline_run,
    )
    from npusim.run_directory import dump_json

    if images is not None:
        from npusim.reports.images import check_images

        check_images(images)
    specification = load_pipeline(model)
    directory = out if out is not None else default_pipeline_directory(specification.pipeline.name)
    check_pipeline_replaceable(directory)
    found = profile_pipeline(
        specification, npu=npu, policy=policy, changes=changes, steps=steps, quiet=quiet  # type: ignore[arg-type]
    )  # fmt: skip
    with stage(f"writing {directory}", quiet=quiet):
        write_pipeline_run(found, directory, images=images)
    report = directory / "report.html"
    if json:
        sys.stdout.write(dump_json(found.summary))
    elif quiet:
        typer.echo(f"report: {report}")
    else:
        from rich.console import Console

        from npusim.screen_pipeline import print_pipeline

        print_pipeline(Console(), found.summary, found.npu.title)
        typer.echo(f"report: {report}")
    if open_report:
        typer.launch(report.resolve().as_uri())
