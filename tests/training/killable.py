"""A small stage with everything that a resume must restore; as a script it dies by SIGKILL in a step.

Usage: killable.py FOLDER [STEP], where STEP is the step in which the process kills itself.
"""

from __future__ import annotations

import copy
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from npusim.training.config import Optimiser, Training
from npusim.training.draw import Draw
from npusim.training.loop import Budget, Outcome, train


class Killable:
    """Least squares with accumulation, EMA, a companion and a learning rate that moves."""

    name = "killable"
    frozen: tuple[Any, ...] = ()

    def __init__(self, dies_at: int | None = None, steps: int = 20) -> None:
        optimiser = Optimiser(lr=0.05, warmup_steps=3)
        self.training = Training(
            steps=steps, batch=4, optimiser=optimiser, accumulation=2, ema=0.9, checkpoint_every=4
        )
        torch.manual_seed(0)
        self.module: Any = nn.Linear(6, 3)
        self.companion: Any = copy.deepcopy(self.module)
        self._dies_at = dies_at

    def losses(self, module: Any, draw: Draw) -> dict[str, Any]:
        if draw.step == self._dies_at and draw.micro == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        x = torch.randn(self.training.batch, 6, generator=draw.torch())
        loss = (module(x) - x[:, :3] - self.companion(x).detach()).square().mean()
        return {"loss": loss, "size": x.abs().mean()}

    def after_update(self, module: Any) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(list(self.companion.parameters()), list(module.parameters()), 0.1)


def run(
    folder: Path, dies_at: int | None = None, budget: Budget | None = None, resume: bool = True
) -> Outcome:
    """Train it."""
    return train(Killable(dies_at), folder, seed=3, budget=budget, resume=resume)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
