"""`npusim train`: the pipeline's verbs. This module imports no torch; each verb imports what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npusim.errors import BadInputError, CheckFailedError, NpusimError
from npusim.training.cli_data import app as data_app
from npusim.training.cli_grid import grid
from npusim.training.cli_pages import prefer
from npusim.training.cli_session import (
    DEFAULT_OUT,
    BudgetOption,
    ClipOption,
    DataOption,
    InceptionOption,
    OutOption,
    PrecisionOption,
    PresetOption,
    ResumeOption,
    SeedOption,
    StepsOption,
    TeacherOption,
    ThreadsOption,
    need,
    open_session,
    prepare,
)

if TYPE_CHECKING:
    from npusim.training.session import Session

app = typer.Typer(
    help="Make the deployed network: compress, distil twice, evaluate, ship.", no_args_is_help=True
)
app.add_typer(data_app, name="data")
app.command()(prefer)


def _stage(name: str, session: Session) -> None:
    from npusim.training.stages import run_stage

    run_stage(session, name)


@app.command()
def classifier(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Train the attribute classifier, the judge of all later stages."""
    _stage("classifier", open_session(preset, out, seed, budget_minutes, resume, threads, steps))


@app.command()
def vae(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Train the autoencoder; the classifier must be able to read its reconstructions."""
    _stage("vae", open_session(preset, out, seed, budget_minutes, resume, threads, steps))


@app.command()
def teacher(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Train the large U-Net and its text encoder."""
    _stage("teacher", open_session(preset, out, seed, budget_minutes, resume, threads, steps))


@app.command("bk-init")
def bk_init(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
    teacher: TeacherOption = None,
) -> None:
    """Remove BK-SDM's blocks from the teacher and copy its weights into the student."""
    _stage("bk-init", open_session(preset, out, seed, None, resume, threads, steps, teacher))


@app.command()
def kd(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
    teacher: TeacherOption = None,
    data: DataOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Stage 1: distil the teacher's outputs and features into the student."""
    _stage(
        "kd",
        open_session(preset, out, seed, budget_minutes, resume, threads, steps, teacher, data, precision),
    )


@app.command()
def lcm(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
    teacher: TeacherOption = None,
    data: DataOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Stage 2: distil the student for few steps, guided by the large teacher."""
    _stage(
        "lcm",
        open_session(preset, out, seed, budget_minutes, resume, threads, steps, teacher, data, precision),
    )


@app.command("all")
def everything(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Run every stage, then evaluate and draw the contact sheets; run it again to go on where it stopped."""
    session = open_session(preset, out, seed, budget_minutes, resume, threads, steps)
    from npusim.training.stages import run_all

    if run_all(session):
        _judge(session)


def _judge(session: Session) -> None:
    from npusim.training.evaluate import evaluate_run
    from npusim.training.sample import draw_sheets

    evaluate_run(session)
    draw_sheets(session)


@app.command()
def evaluate(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
    inception: InceptionOption = None,
    clip: ClipOption = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="measure this folder of pictures instead of a run")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="real pictures, for the FID of --pictures")
    ] = None,
) -> None:
    """Judge every network of the run on the same prompts and noise; IS, FID and CLIP score where their networks are given."""
    if pictures is not None and inception is None and clip is None:
        raise BadInputError(
            "--pictures: nothing to measure with; give --inception FILE, --clip FOLDER, or both"
        )
    if pictures is not None:
        _measure(pictures, reference, inception, clip, threads)
        return
    if reference is not None:
        raise BadInputError("--reference: goes with --pictures; a run is compared with renders of its world")
    session = open_session(preset, out, seed, threads=threads, steps=steps)
    from npusim.training.evaluate import evaluate_run
    from npusim.training.metrics.measures import given

    evaluate_run(session, given(inception, clip))


def _measure(
    pictures: Path, reference: Path | None, inception: Path | None, clip: Path | None, threads: int | None
) -> None:
    """Print the figures of a folder of pictures as JSON, what is missing on the error stream."""
    import json

    prepare(threads)
    from npusim.training.metrics.folder import measure_folder
    from npusim.training.metrics.measures import given

    measures = given(inception, clip)
    found = measure_folder(pictures, reference, measures, lambda text: typer.echo(text, err=True))
    typer.echo(json.dumps(found, indent=1))
    if measures.missing():
        typer.echo(measures.missing(), err=True)


@app.command()
def sample(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Draw contact sheets: the teacher at 25 steps, the student at 4, 2 and 1."""
    session = open_session(preset, out, seed, threads=threads, steps=steps)
    from npusim.training.sample import draw_sheets

    draw_sheets(session)


@app.command()
def bench(preset: PresetOption = "toy-small", seed: SeedOption = 0, threads: ThreadsOption = None) -> None:
    """Rehearse each stage: seconds per step without the first ones, and the minutes of a whole run."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        session = open_session(preset, Path(folder), seed, threads=threads)
        from npusim.training.bench import bench as rehearse_all

        rehearse_all(session)


@app.command()
def smoke(
    preset: PresetOption = "sd-v1",
    steps: Annotated[int, typer.Option("--steps", min=1)] = 2,
    threads: ThreadsOption = None,
) -> None:
    """Take KD and LCM steps at full size with random weights: memory and seconds per step."""
    from npusim.training.config import preset as named

    chosen = named(preset)
    need("torch", "diffusers", "transformers", "accelerate")
    import torch

    from npusim.training.bench import smoke as take_steps

    if threads is not None:
        torch.set_num_threads(threads)
    take_steps(chosen, steps, typer.echo)


@app.command()
def claims(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Test two of the paper's claims on a finished run: large teacher for LCM, and stage 1 before it."""
    session = open_session(preset, out, seed, budget_minutes, resume, threads, steps)
    from npusim.training.claims import examine_claims

    examine_claims(session)


@app.command()
def ship(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
    to: Annotated[Path | None, typer.Option("--to", help="the folder; default: this package's own")] = None,
) -> None:
    """Publish a finished run's network as fp16 with its card."""
    session = open_session(preset, out, seed, threads=threads, steps=steps)
    from npusim.training.ship import ship as publish

    publish(session, f"edgefusion-{preset}", to)


app.command()(grid)


def main() -> None:
    """Run the verbs on their own: exit 1 on a failed check, 2 on bad input."""
    try:
        app()
    except CheckFailedError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error
    except NpusimError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
