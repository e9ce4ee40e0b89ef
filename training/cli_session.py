"""Options that the verbs of `npusim train` share, and how each opens its run. This module imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npusim.errors import MissingExtraError

if TYPE_CHECKING:
    from npusim.training.session import Session

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

InceptionOption = Annotated[
    Path | None,
    typer.Option("--inception", help="pytorch-fid's pt_inception-2015-12-05-6726825d.pth, for IS and FID"),
]
ClipOption = Annotated[
    Path | None, typer.Option("--clip", help="a local folder of a CLIPModel, for the CLIP score")
]

DEFAULT_OUT = Path("npusim-runs/train")


def need(*packages: str) -> None:
    """Raise MissingExtraError for the first of these that is not installed."""
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, "training")


def prepare(threads: int | None) -> None:
    """Check that the extra is installed, keep libraries off the net and silent, and set the threads."""
    import os

    need("torch", "diffusers", "transformers", "accelerate", "safetensors", "PIL", "scipy")
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is ever fetched
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)


def open_session(
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
    from npusim.training.config import in_precision, shortened
    from npusim.training.config import preset as named

    chosen = named(preset)
    prepare(threads)
    from npusim.training.loop import Budget
    from npusim.training.run import Run, open_run
    from npusim.training.session import Session

    if steps is not None:
        chosen = shortened(chosen, steps)
    if precision is not None:
        chosen = in_precision(chosen, precision)
    run = Run(preset=chosen, out=out, seed=seed, teacher=teacher, data=data)
    open_run(run)
    return Session(run=run, budget=Budget(budget), resume=resume, say=typer.echo)
