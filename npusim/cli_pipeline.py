"""`npusim profile` of a pipeline: what the verb does when its model is a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from npusim.errors import BadInputError, MissingExtraError
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


def run_command(
    run: Path, prompt: str | None, others: Mapping[str, object], *, verify: bool, order: str, seed: int, out: Path | None
) -> None:  # fmt: skip
    """Draw a picture with a pipeline's run; say what stands in the way for any other."""
    from npusim.run_directory import is_pipeline_run, load_summary

    if run.suffix == ".toml" and not run.is_dir():
        raise BadInputError(
            f"{run}: is a specification; run 'npusim profile {run}' first, then give the run directory it writes"
        )
    if not is_pipeline_run(run):
        if prompt is not None:
            raise BadInputError(
                f"{run}: is the run of one network, and --prompt is for a pipeline's; give --model"
            )
        raise BadInputError("Missing option '--model': the ONNX file, with its weights, that was profiled")
    if prompt is None or not prompt.strip():
        raise BadInputError(f"{run}: is a pipeline's run; say what to draw with --prompt")
    refuse(others)
    for package, extra in (
        ("torch", "training"),
        ("diffusers", "training"),
        ("PIL", "training"),
        ("onnxscript", "models"),
    ):
        if find_spec(package) is None:
            raise MissingExtraError(package, extra)
    from npusim.picture import draw, save_pictures

    target = out if out is not None else Path(f"{load_summary(run)['model']}.png")
    with stage("drawing"):
        found = draw(run, prompt, seed=seed, verify=verify, order=order)  # type: ignore[arg-type]
    for note in found.notes:
        typer.echo(f"note: {note}")
    save_pictures([found.values], target)
    typer.echo(f"wrote {target}: {found.values.shape[2]} x {found.values.shape[1]}")
    if found.reference is not None:
        typer.echo(
            f"  against diffusers in FP32: largest error {found.largest_error:.2g} of the range, PSNR {found.psnr_db:.1f} dB"
        )
        beside = target.with_name(f"{target.stem}-beside.png")
        save_pictures([found.reference, found.values], beside)
        typer.echo(f"wrote {beside}: diffusers in FP32, then this run")
