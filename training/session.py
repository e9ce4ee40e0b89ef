"""One call of the command line, and how a stage is trained to its end and published at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from npusim.training import checkpoints
from npusim.training.loop import Budget, Stage, silent, train
from npusim.training.run import Run

Say = Callable[[str], None]


@dataclass(slots=True)
class Session:
    """One call of the command line: the run, its time budget, whether to resume, and where to report."""

    run: Run
    budget: Budget = field(default_factory=Budget)
    resume: bool = True
    say: Say = silent


def complete(
    session: Session, stage: Stage, publish: Callable[[Path], dict[str, Any]], place: str | None = None
) -> bool:
    """Train, then publish networks and stage.json as one folder, then drop the checkpoint.

    Args:
        publish: writes the networks into the folder it is given; returns the facts for stage.json.
        place: the stage's folder in the run; by default its name. What a stage draws depends on its name alone, so that
            stages of one name in several places see the same data addresses and noise.

    Returns:
        Whether the stage is finished.
    """
    place = place or stage.name
    run, folder = session.run, session.run.stage(place)
    if run.finished(place) and session.resume:
        session.say(f"{place}: already finished")
        return True
    outcome = train(
        stage, folder, seed=run.seed, budget=session.budget, resume=session.resume, say=session.say
    )
    if not outcome.finished:
        session.say(
            f"{place}: time is up at step {outcome.step}/{stage.training.steps}; "
            "run the same command to go on"
        )
        return False

    def fill(aside: Path) -> None:
        facts = publish(aside) | {
            "steps": outcome.step,
            "seed": run.seed,
            "seconds_per_step": outcome.seconds_per_step,
            "seconds_of_last_call": outcome.seconds,
        }
        checkpoints.write_json(aside / "stage.json", facts)

    checkpoints.publish_folder(folder / "final", fill)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    session.say(f"{place}: finished at step {outcome.step} ({outcome.seconds_per_step:.3f} s per step)")
    return True


def fresh(run: Run, build: Callable[[], Any]) -> Any:
    """Build a network whose first weights depend on the run's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return build()
