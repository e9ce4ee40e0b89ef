"""`npusim train grid`: the paper's ablations at the world's scale. This module imports no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from npusim.training.cli_session import (
    DEFAULT_OUT,
    BudgetOption,
    ClipOption,
    InceptionOption,
    OutOption,
    PresetOption,
    ResumeOption,
    SeedOption,
    StepsOption,
    ThreadsOption,
    open_session,
)

CellsOption = Annotated[
    list[str] | None,
    typer.Option("--cells", help="names or patterns such as 'kd-*', with all that they need; default: all"),
]


VariantOption = Annotated[
    list[str] | None,
    typer.Option(
        "--variant", help="NAME=FOLDER: an imagefolder (npusim train data ...) in place of the grid's own"
    ),
]


def _budget_option(stage: str) -> object:
    return typer.Option(f"--{stage}-steps", min=1, help="steps of each such cell; default: the preset's")


def grid(
    preset: PresetOption = "toy-small",
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    cells: CellsOption = None,
    budget_minutes: BudgetOption = None,
    teacher_steps: Annotated[int | None, _budget_option("teacher")] = None,
    kd_steps: Annotated[int | None, _budget_option("kd")] = None,
    lcm_steps: Annotated[int | None, _budget_option("lcm")] = None,
    records: Annotated[
        int | None,
        typer.Option("--records", min=8, help="records of L-orig; default: half the preset's pool"),
    ] = None,
    variant: VariantOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    steps: StepsOption = None,
    inception: InceptionOption = None,
    clip: ClipOption = None,
) -> None:
    """Train and compare student x teacher x data x steps, as the paper's tables do; run it again to go on."""
    from npusim.training.grid.plan import chosen, given_variants

    wanted, own = chosen(cells or ["*"]), given_variants(variant or [])
    session = open_session(preset, out, seed, budget_minutes, resume, threads, steps)
    from npusim.training.grid.run import run_grid
    from npusim.training.grid.settings import settings_of
    from npusim.training.metrics.measures import given

    settings = settings_of(session.run.preset, teacher_steps, kd_steps, lcm_steps, records)
    run_grid(session, settings, wanted, given(inception, clip), own)
