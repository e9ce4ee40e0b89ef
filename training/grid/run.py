"""The grid as one resumable command: data, cells, judging, tables; whatever is finished is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npusim.errors import BadInputError
from npusim.training import checkpoints
from npusim.training.grid.cells import Bench, place, train_cell
from npusim.training.grid.data import make_data
from npusim.training.grid.plan import BETTER, CELLS, Cell
from npusim.training.grid.settings import GridSettings, grid_folder, open_grid
from npusim.training.grid.tables import write_tables
from npusim.training.metrics.measures import NOTHING, Measures
from npusim.training.session import Session
from npusim.training.stages import run_stage

SHARED = ("classifier", "vae", "teacher", "bk-init")
"""Stages of the run that every cell takes; trained first where they are missing."""


def run_grid(
    session: Session,
    settings: GridSettings,
    cells: list[Cell],
    measures: Measures = NOTHING,
    given: Mapping[str, Path] | None = None,
) -> dict[str, Any] | None:
    """Train and judge these cells until the budget is spent; write the tables after each.

    given: variants of the user's own, instead of the grid's.

    Returns:
        The tables, or None where the budget ended before the shared networks were there.

    Raises:
        BadInputError: the preset has no procedural world, or the folder holds a grid of other settings.
    """
    run = session.run
    if run.preset.world == "folder":
        raise BadInputError(
            f"--preset {run.preset.name}: the grid makes its data from a procedural world and its classifier; choose toy or toy-small"
        )
    if not all(run.finished(stage) or run_stage(session, stage) for stage in SHARED):
        return None
    open_grid(run, settings, given)
    make_data(session, settings, given or {})
    bench = Bench(session, measures)
    bench.judge(BETTER, "teacher")
    for cell in cells:
        if session.budget.spent():
            session.say("grid: time is up; run the same command to go on")
            break
        began = time.monotonic()
        if train_cell(session, settings, cell):
            bench.judge(cell.name, cell.kind)
            _spend(session, cell.name, time.monotonic() - began)
        write_tables(run)
    found = write_tables(run)
    done = sum(run.finished(place(name)) for name in CELLS)
    session.say(f"grid: {done} of {len(CELLS)} cells finished; {grid_folder(run) / 'tables.md'}")
    return found


def _spend(session: Session, name: str, seconds: float) -> None:
    """Add to OUT/grid/spent.json what a cell took in this call, training and judging."""
    path = grid_folder(session.run) / "spent.json"
    spent = checkpoints.read_json(path) if path.is_file() else {}
    spent[name] = round(spent.get(name, 0.0) + seconds, 1)
    checkpoints.write_json(path, spent)
