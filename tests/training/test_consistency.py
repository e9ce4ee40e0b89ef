"""One whole LCM loss on networks that are formulas, so that every number can be worked out independently."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from npusim.training import networks
from npusim.training.config import LcmStage, Optimiser, Schedule, Training
from npusim.training.draw import Draw
from npusim.training.lcm import ConsistencyDistillation


class Scale(nn.Module):
    """A U-Net that predicts `gain` times its input plus the mean of its condition."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, z: Any, t: Any, condition: Any, timestep_cond: Any = None) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(sample=self.gain * z + condition.mean(dim=(1, 2))[:, None, None, None])


class Rows(nn.Module):
    """A text encoder whose state is the token itself."""

    def forward(self, input_ids: Any) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(last_hidden_state=input_ids[..., None].float())


class Fixed:
    """One latent and one token row, whatever the draw."""

    def batch(self, draw: Draw, size: int) -> tuple[Any, Any]:
        return torch.full((size, 1, 1, 1), 2.0), torch.ones((size, 1), dtype=torch.long)


def stage() -> ConsistencyDistillation:
    settings = LcmStage(training=Training(steps=1, batch=1, optimiser=Optimiser(lr=0.1)), w_range=(2.0, 2.0))
    trio = (Scale(0.5), Scale(0.25), Rows())
    scheduler = networks.noise_schedule(Schedule())
    return ConsistencyDistillation(
        settings, Schedule(), trio, scheduler, Fixed(), torch.zeros((1, 1), dtype=torch.long)
    )


def test_the_lcm_loss_equals_the_algorithm_written_out() -> None:
    draw = Draw(0, "lcm", 0)
    found = stage().losses(stage().module, draw)["loss"].item()

    generator = draw.torch()
    n = int(torch.randint(0, 50, (1,), generator=generator))
    torch.rand(1, generator=generator)  # w: the range is a point
    noise = float(torch.randn((1, 1, 1, 1), generator=generator))
    alphas = networks.noise_schedule(Schedule()).alphas_cumprod.double()
    t, s = 20 * n + 19, max(20 * n - 1, 0)

    def x0(z: float, eps: float, at: int) -> float:
        return float((z - (1 - alphas[at]).sqrt() * eps) / alphas[at].sqrt())

    def f(z: float, at: int) -> float:
        denominator = (10 * at) ** 2 + 0.25
        return 0.25 / denominator * z + 10 * at / denominator**0.5 * x0(z, 0.5 * z + 1, at)

    z = float(alphas[t].sqrt() * 2 + (1 - alphas[t]).sqrt() * noise)
    cond, uncond = 0.25 * z + 1, 0.25 * z
    guided_eps = cond + 2 * (cond - uncond)
    guided_x0 = x0(z, cond, t) + 2 * (x0(z, cond, t) - x0(z, uncond, t))
    z_s = float(alphas[s].sqrt() * guided_x0 + (1 - alphas[s]).sqrt() * guided_eps)
    expected = ((f(z, t) - f(z_s, s)) ** 2 + 1e-6) ** 0.5 - 1e-3
    assert abs(found - expected) < 1e-4 * max(1, abs(expected))


def test_the_target_moves_by_its_average_only() -> None:
    subject = stage()
    with torch.no_grad():
        subject.module.gain.fill_(1.5)
    subject.after_update(subject.module)
    assert abs(subject.companion.gain.item() - (0.95 * 0.5 + 0.05 * 1.5)) < 1e-6
    assert not subject.companion.gain.requires_grad
