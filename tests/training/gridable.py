"""A grid on tiny networks, from its shared stages to its tables; as a script it dies by SIGKILL where it is told to.

Usage: gridable.py FOLDER [CELL PHASE], where PHASE is `train` (in the second step) or `judge` (before figures are written).
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from npusim.training.config import Preset, preset, shortened
from npusim.training.grid import run as grid_run
from npusim.training.grid.cells import Bench
from npusim.training.grid.plan import chosen
from npusim.training.grid.settings import GridSettings
from npusim.training.loop import Budget
from npusim.training.run import Run, open_run
from npusim.training.session import Session

CELLS = ("lcm-edgefusion", "kd-plain-L-orig", "lcm-small-teacher", "kd-synt-half")
SETTINGS = GridSettings(
    teacher_steps=2, kd_steps=3, lcm_steps=3, records=48, draw_steps=2, allowed_wrong=4
)  # untrained networks draw nothing that a stricter rule would leave


def tiny() -> Preset:
    """toy-small with networks of a few thousand weights."""
    full = shortened(preset("toy-small"), 2)
    unet = dataclasses.replace(full.unet, channels=(8, 8, 8, 8), heads=2, cross_dim=16)
    sampling = dataclasses.replace(
        full.sampling, prompts=6, renders=32, teacher_steps=2, student_steps=(2, 1)
    )
    vae = dataclasses.replace(full.vae, channels=(16,))
    text = dataclasses.replace(full.text, hidden=16, heads=2)
    return dataclasses.replace(full, unet=unet, sampling=sampling, vae=vae, text=text)


def run(folder: Path, cells: tuple[str, ...] = CELLS, budget: Budget | None = None) -> list[str]:
    """Run the grid. Returns what it said."""
    said: list[str] = []
    its = Run(preset=tiny(), out=folder)
    open_run(its)
    session = Session(run=its, budget=budget or Budget(), say=said.append)
    grid_run.run_grid(session, SETTINGS, chosen(cells))
    return said


def _die(cell: str, phase: str) -> None:
    """Arrange for the process to kill itself in that phase of that cell."""

    def dies(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if phase == "judge":
        judge = Bench.judge
        Bench.judge = lambda self, name, kind: (dies if name == cell else judge)(self, name, kind)  # type: ignore[method-assign]
        return
    train = grid_run.train_cell

    def trained(session: Session, settings: GridSettings, which: Any) -> bool:
        if which.name == cell:
            from npusim.training import loop

            save = loop._Record.save
            loop._Record.save = lambda self, *a: (save(self, *a), dies())[0]  # type: ignore[method-assign]
        return train(session, settings, which)

    grid_run.train_cell = trained


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        _die(sys.argv[2], sys.argv[3])
    run(Path(sys.argv[1]))
