"""Training and judging of one cell. Cells of one kind differ in what their names say, and in nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from npusim.training import checkpoints, networks, text
from npusim.training.config import Training
from npusim.training.data.source import Source
from npusim.training.data.world import Combinations
from npusim.training.distillation import Pairing, compress_student, surroundings, train_kd, train_lcm
from npusim.training.evaluate import Correct, Examination, line
from npusim.training.grid.data import load_pool
from npusim.training.grid.plan import CELLS, Cell, Kind
from npusim.training.grid.settings import GridSettings, grid_folder
from npusim.training.metrics.measures import NOT_COMPUTED, NOTHING, Measures
from npusim.training.run import Run
from npusim.training.sample import Contender, Studio, save_sheet
from npusim.training.session import Session, complete, fresh
from npusim.training.teacher import TeacherTraining

SHEET = 32


def place(name: str) -> str:
    """The stage folder of a cell; a stage of the run itself keeps its own."""
    return f"grid/cells/{name}" if name in CELLS else name


def train_cell(session: Session, settings: GridSettings, cell: Cell) -> bool:
    """Train a cell, or go on with it.

    Returns:
        Whether it is finished. A cell without data, or one that needs such a cell, is not.
    """
    run = session.run
    if not all(run.finished(place(name)) for name in cell.needs):
        return False
    if cell.kind == "init":
        return compress_student(session, teacher=place(cell.teacher), place=place(cell.name))
    source = load_pool(run, cell.data)
    if source is None:
        session.say(f"{cell.name}: not trained, {cell.data} holds no picture (the rule rejected all)")
        return False
    if cell.kind == "teacher":
        return _train_plain_teacher(session, settings, cell, source)
    pairing = Pairing(
        teacher=place(cell.teacher),
        student=place(cell.student),
        place=place(cell.name),
        source=source,
        data=cell.data,
    )
    kd, lcm = run.preset.kd, run.preset.lcm
    if cell.kind == "kd":
        return train_kd(session, pairing, replace(kd, training=_lasting(kd.training, settings.kd_steps)))
    return train_lcm(session, pairing, replace(lcm, training=_lasting(lcm.training, settings.lcm_steps)))


def _lasting(training: Training, steps: int) -> Training:
    return replace(training, steps=steps)


def _train_plain_teacher(session: Session, settings: GridSettings, cell: Cell, source: Source) -> bool:
    """A teacher from fresh weights under the run's text encoder, which stays as it is: all cells share it."""
    run, preset = session.run, session.run.preset
    shared = surroundings(run)
    unet = fresh(run, lambda: networks.build_unet(networks.unet_config(preset.unet)))
    module, scheduler = (
        networks.Conditioned(unet, shared.text_encoder),
        networks.noise_schedule(preset.schedule),
    )
    empty = text.tokenize(shared.tokenizer, [""])
    training = _lasting(preset.teacher.training, settings.teacher_steps)
    stage = TeacherTraining(replace(preset.teacher, training=training), module, scheduler, source, empty)

    def publish(folder: Path) -> dict[str, Any]:
        unet.cpu().save_pretrained(folder / "unet")
        return {"identity": shared.identity, "data": cell.data}

    return complete(session, stage, publish, place(cell.name))


class Bench:
    """Judges cells, each on the same prompts and noise; keeps figures and what was right per prompt."""

    def __init__(self, session: Session, measures: Measures = NOTHING) -> None:
        self._session, self._run, self._measures = session, session.run, measures
        self._examinations: list[Examination] = []

    def judge(self, name: str, kind: Kind) -> None:
        """Judge a finished cell (or a stage of the run) unless that was done."""
        run, path = self._run, judged_path(self._run, name)
        steps = step_counts(run, kind)
        if not steps or (self._session.resume and self._judged(path)):
            return
        figures: dict[str, Any] = {}
        for examination in self._opened():
            for count in steps:
                keep = correct_path(run, examination.name, name, count)
                taken, pictures = examination.take(Contender(place(name), count), keep)
                figures.setdefault(examination.name, {})[str(count)] = taken
                self._session.say(f"judged {name}, {examination.name}, {count} steps: {line(taken)}")
                if examination.name == "seen":
                    save_sheet(path.with_name(f"{name}-{count}.png"), pictures[:SHEET])
        checkpoints.write_json(path, figures)

    def _judged(self, path: Path) -> bool:
        """Whether the figures are there, with all that the user's networks can add."""
        if not path.is_file():
            return False
        taken = [
            figures for by_steps in checkpoints.read_json(path).values() for figures in by_steps.values()
        ]
        return all(figures.get(name) != NOT_COMPUTED for figures in taken for name in self._measures.names())

    def _opened(self) -> list[Examination]:
        if not self._examinations:
            run = self._run
            studio = Studio(run)
            self._examinations = [
                Examination(run, studio, name, self._measures) for name in run.world().tested
            ]
        return self._examinations


def step_counts(run: Run, kind: Kind) -> tuple[int, ...]:
    """The step counts at which a cell of this kind is sampled; none for one that nothing trained."""
    if kind == "init":
        return ()
    return run.preset.sampling.student_steps if kind == "lcm" else (run.preset.sampling.teacher_steps,)


def judged_path(run: Run, name: str) -> Path:
    """Where a cell's figures are."""
    return grid_folder(run) / "judged" / f"{name}.json"


def correct_path(run: Run, combinations: Combinations, name: str, steps: int) -> Path:
    """Where it is kept which attribute of which prompt a cell got right."""
    return grid_folder(run) / "judged" / f"{combinations}-{name}-{steps}.npy"


def load_correct(run: Run, combinations: Combinations, name: str, steps: int) -> Correct:
    """[N, A]: which attribute of which prompt was right."""
    return np.asarray(np.load(correct_path(run, combinations, name, steps), allow_pickle=False))
