"""`npusim train`: the pipeline's verbs. This module imports no torch; each verb imports what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npusim.errors import CheckFailedError, MissingExtraError, NpusimError
from npusim.training.cli_data import app as data_app

if TYPE_CHECKING:
    from npusim.training.stages import Session

app = typer.Typer(
    help="Make the deployed network: compress, distil twice, evaluate, ship.", no_args_is_help=True
)
app.add_typer(data_app, name="data")

PresetOption = Annotated[str, typer.Option("--preset", help="sd-v1, toy or toy-small")]
OutOption = Annotated[Path, typer.Option("--out", help="the run's folder")]
SeedOption = Annotated[int, typer.Option("--seed", help="determines all data, noise and first weights")]
BudgetOption = Annotated[
    float | None, typer.Option("--budget-minutes", min=0.0, help="stop, with a checkpoint, after this time")
]
ResumeOption = Annotated[bool, typer.Option("--resume/--no-resume", help="go on from the checkpoint")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; part of what a run must repeat")
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", min=1, help="at most so many steps per stage: a rehearsal")
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="no, bf16 or fp16 (a GPU only), instead of the preset's")
]
TeacherOption = Annotated[
    Path | None, typer.Option("--teacher", help="a local pipeline folder to use as teacher (sd-v1)")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="an imagefolder with metadata.jsonl (sd-v1)")]

_DEFAULT_OUT = Path("npusim-runs/train")


def _need(*packages: str) -> None:
    """Raise MissingExtraError for the first of these that is not installed."""
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, "training")


def _session(
    preset: str,
    out: Path,
    seed: int,
    budget: float | None = None,
    resume: bool = True,
    threads: int | None = None,
    steps: int | None = None,
    teacher: Path | None = None,
    data: Path | None = None,
    precision: str | None = None,
) -> Session:
    """Open (or create) the run's folder with these settings."""
    import os

    from npusim.training.config import in_precision, shortened
    from npusim.training.config import preset as named

    chosen = named(preset)
    _need("torch", "diffusers", "transformers", "accelerate", "safetensors", "PIL", "scipy")
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is ever fetched
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    from npusim.training.loop import Budget
    from npusim.training.run import Run, open_run
    from npusim.training.stages import Session

    if threads is not None:
        torch.set_num_threads(threads)
    if steps is not None:
        chosen = shortened(chosen, steps)
    if precision is not None:
        chosen = in_precision(chosen, precision)
    run = Run(preset=chosen, out=out, seed=seed, teacher=teacher, data=data)
    open_run(run)
    return Session(run=run, budget=Budget(budget), resume=resume, say=typer.echo)


def _stage(name: str, session: Session) -> None:
    from npusim.training.stages import run_stage

    run_stage(session, name)


@app.command()
def classifier(
    preset: PresetOption = "toy-small",
    out: OutOption = _DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Train the attribute classifier, the judge of all later stages."""
    _stage("classifier", _session(preset, out, seed, budget_minutes, resume, threads, steps))


@app.command()
def vae(
    preset: PresetOption = "toy-small",
    out: OutOption = _DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Train the autoencoder; the classifier must be able to read its reconstructions."""
    _stage("vae", _session(preset, out, seed, budget_minutes, resume, threads, steps))


@app.command()
def teacher(
    preset: PresetOption = "toy-small",
    out: OutOption = _DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Train the large U-Net and its text encoder."""
    _stage("teacher", _session(preset, out, seed, budget_minutes, resume, threads, steps))


@app.command("bk-init")
def bk_init(
    preset: PresetOption = "toy-small",
    out: OutOption = _DEFAULT_OUT,
    seed: SeedOption = 0,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
    teacher: TeacherOption = None,
) -> None:
    """Remove BK-SDM's blocks from the teacher and copy its weights into the student."""
    _stage("bk-init", _session(preset, out, seed, None, resume, threads, steps, teacher))


@app.command()
def kd(
    preset: PresetOption = "toy-small",
    out: OutOption = _DEFAULT_OUT,
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
        "kd", _session(preset, out, seed, budget_minutes, resume, threads, steps, teacher, data, precision)
    )


@app.command()
def lcm(
    preset: PresetOption = "toy-small",
    out: OutOption = _DEFAULT_OUT,
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
        "lcm", _session(preset, out, seed, budget_minutes, resume, threads, steps, teacher, data, precision)
    )


@app.command("all")
def everything(
    preset: PresetOption = "toy-small",
    out: OutOption = _DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Run every stage, then evaluate and draw the contact sheets; run it again to go on where it stopped."""
    session = _session(preset, out, seed, budget_minutes, resume, threads, steps)
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
    out: OutOption = _DEFAULT_OUT,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Judge every network of the run on the same prompts and noise."""
    from npusim.training.evaluate import evaluate_run

    evaluate_run(_session(preset, out, seed, threads=threads, steps=steps))


@app.command()
def sample(
    preset: PresetOption = "toy-small",
    out: OutOption = _DEFAULT_OUT,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Draw contact sheets: the teacher at 25 steps, the student at 4, 2 and 1."""
    session = _session(preset, out, seed, threads=threads, steps=steps)
    from npusim.training.sample import draw_sheets

    draw_sheets(session)


@app.command()
def bench(preset: PresetOption = "toy-small", seed: SeedOption = 0, threads: ThreadsOption = None) -> None:
    """Rehearse each stage: seconds per step without the first ones, and the minutes of a whole run."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        session = _session(preset, Path(folder), seed, threads=threads)
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
    _need("torch", "diffusers", "transformers", "accelerate")
    import torch

    from npusim.training.bench import smoke as take_steps

    if threads is not None:
        torch.set_num_threads(threads)
    take_steps(chosen, steps, typer.echo)


@app.command()
def claims(
    preset: PresetOption = "toy-small",
    out: OutOption = _DEFAULT_OUT,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
) -> None:
    """Test two of the paper's claims on a finished run: large teacher for LCM, and stage 1 before it."""
    session = _session(preset, out, seed, budget_minutes, resume, threads, steps)
    from npusim.training.claims import examine_claims

    examine_claims(session)


@app.command()
def ship(
    preset: PresetOption = "toy-small",
    out: OutOption = _DEFAULT_OUT,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
    to: Annotated[Path | None, typer.Option("--to", help="the folder; default: this package's own")] = None,
) -> None:
    """Publish a finished run's network as fp16 with its card."""
    session = _session(preset, out, seed, threads=threads, steps=steps)
    from npusim.training.ship import ship as publish

    publish(session, f"edgefusion-{preset}", to)


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
