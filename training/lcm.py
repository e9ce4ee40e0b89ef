"""Stage 2: latent consistency distillation with a teacher of another architecture.

Source: Luo et al. 2023 (LCM), algorithm 1, and diffusers' example train_lcm_distill_sd_wds.py. EdgeFusion's
change: the large model gives only the guided step along its ODE, without gradient; the consistency target is
the student's own moving average, so the shapes of teacher and student never need to agree.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from npusim.errors import BadInputError
from npusim.training import text
from npusim.training.config import LcmStage, Schedule
from npusim.training.data.source import Source, batch_on
from npusim.training.draw import Draw

COND_KEY = "time_embedding.cond_proj.weight"


def _column(values: Any) -> Any:
    """[N] -> [N, 1, 1, 1], to scale latents."""
    return values[:, None, None, None]


def guidance_embedding(w: Any, dim: int) -> Any:
    """Sine and cosine rows of 1000 w. w: [N].

    Returns [N, dim]. Source: LCM's released code (VDM's timestep embedding).
    """
    half = dim // 2
    rates = torch.exp(
        torch.arange(half, dtype=torch.float32, device=w.device)
        * (-torch.log(torch.tensor(10000.0)) / (half - 1))
    )
    angles = 1000.0 * w[:, None].float() * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def boundary_scalings(t: Any, sigma_data: float, timestep_scaling: float) -> tuple[Any, Any]:
    """c_skip and c_out at integer times t [N].

    (1, 0) at t = 0, so that f(z, 0) = z. Source: LCM, equation 9.
    """
    scaled = t.float() * timestep_scaling
    c_skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    return c_skip, scaled / (scaled**2 + sigma_data**2).sqrt()


def predict_x0(eps: Any, z: Any, alpha: Any, sigma: Any) -> Any:
    """x0 = (z - sigma eps) / alpha. All [N, C, h, w], alpha and sigma [N]."""
    return (z - _column(sigma) * eps) / _column(alpha)


def pseudo_huber(x: Any, y: Any, c: float) -> Any:
    """mean(sqrt((x - y)^2 + c^2) - c), in float32."""
    return (((x.float() - y.float()) ** 2 + c**2).sqrt() - c).mean()


class DdimSolver:
    """One deterministic DDIM step between neighbours of a coarse grid of times.

    Source: LCM section 4.3 with k = T / points.

    With T = 1000 and 50 points the grid is t = 19, 39, ..., 999 and each step goes to max(t - 20, 0).
    """

    def __init__(self, alphas_cumprod: Any, points: int) -> None:
        self.skip = len(alphas_cumprod) // points
        self.times = torch.arange(1, points + 1) * self.skip - 1
        self.previous_times = (self.times - self.skip).clamp(min=0)
        self._alphas = alphas_cumprod[self.previous_times]

    def step(self, x0: Any, eps: Any, index: Any) -> Any:
        """z at the previous time: sqrt(a') x0 + sqrt(1 - a') eps. index: [N] into the grid."""
        alpha = self._alphas.to(x0.device)[index.to(x0.device)]
        return _column(alpha.sqrt()) * x0 + _column((1 - alpha).sqrt()) * eps


def add_guidance_input(student: Any, cond_dim: int) -> Any:
    """The same U-Net with LCM's guidance embedding, whose one weight is zero: step 0 equals stage 1.

    Raises:
        BadInputError: the weights differ from the new network's in anything else.
    """
    from npusim.training.networks import build_unet

    config = {k: v for k, v in student.config.items() if not k.startswith("_")}
    network = build_unet({**config, "time_cond_proj_dim": cond_dim})
    missing, unexpected = network.load_state_dict(student.state_dict(), strict=False)
    if missing != [COND_KEY] or unexpected:
        raise BadInputError(
            f"student U-Net: exactly {COND_KEY} may be new, found missing {missing[:3]} "
            f"and unexpected {unexpected[:3]}; "
            "start from a U-Net without a guidance embedding"
        )
    with torch.no_grad():
        network.time_embedding.cond_proj.weight.zero_()
    return network


class ConsistencyDistillation:
    """Stage `lcm` (see `loop.Stage`)."""

    name = "lcm"

    def __init__(
        self,
        settings: LcmStage,
        schedule: Schedule,
        networks: tuple[Any, Any, Any],
        scheduler: Any,
        source: Source,
        empty: Any,
    ) -> None:
        """Take the networks over.

        Args:
            settings: of the stage.
            schedule: gives the solver's grid.
            networks: student (with guidance input), teacher, text encoder.
            scheduler: the noise schedule that all of them share.
            source: of latents and tokens.
            empty: token row of the empty caption, [1, T].
        """
        self.settings, self.training = settings, settings.training
        self.module, self._teacher, self._text = networks
        self.frozen = (self._teacher, self._text)
        self.companion = copy.deepcopy(self.module).requires_grad_(False)
        self._alpha = scheduler.alphas_cumprod.sqrt()
        self._sigma = (1 - scheduler.alphas_cumprod).sqrt()
        self._solver = DdimSolver(scheduler.alphas_cumprod, schedule.ddim_points)
        self._scheduler, self._source, self._empty = scheduler, source, empty

    def consistency(self, network: Any, z: Any, t: Any, condition: Any, w_rows: Any) -> Any:
        """f(z, t) = c_skip z + c_out x0(z, t).

        z: [N, C, h, w]; t: [N]; condition: [N, T, D]; w_rows: [N, cond_dim].
        """
        eps = network(z, t, condition, timestep_cond=w_rows).sample.float()
        c_skip, c_out = boundary_scalings(t, self.settings.sigma_data, self.settings.timestep_scaling)
        return _column(c_skip) * z + _column(c_out) * self._x0(eps, z, t)

    def _x0(self, eps: Any, z: Any, t: Any) -> Any:
        return predict_x0(eps, z, self._alpha.to(z.device)[t], self._sigma.to(z.device)[t])

    def guided_step(self, z: Any, index: Any, condition: Any, empty: Any, w: Any) -> Any:
        """The teacher's step along its guided ODE: cond + w (cond - uncond), on x0 and on noise.

        No gradient.
        """
        t = self._solver.times.to(z.device)[index]
        both = self._teacher(
            torch.cat([z, z]), torch.cat([t, t]), torch.cat([condition, empty])
        ).sample.float()
        cond, uncond = both.chunk(2)
        x0_cond, x0_uncond = self._x0(cond, z, t), self._x0(uncond, z, t)
        scale = _column(w)
        return self._solver.step(
            x0_cond + scale * (x0_cond - x0_uncond), cond + scale * (cond - uncond), index
        )

    def losses(self, module: Any, draw: Draw) -> Mapping[str, Any]:
        """Distance of the student at t to its moving average at the teacher's previous point."""
        generator = draw.torch()
        latents, tokens = batch_on(module, self._source, draw, self.training.batch)
        count, device = len(latents), latents.device
        index = torch.randint(0, len(self._solver.times), (count,), generator=generator).to(device)
        low, high = self.settings.w_range
        w = (low + (high - low) * torch.rand(count, generator=generator)).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        t, previous = self._solver.times.to(device)[index], self._solver.previous_times.to(device)[index]
        z = self._scheduler.add_noise(latents, noise, t)
        w_rows = guidance_embedding(w, self.settings.cond_dim)
        with torch.no_grad():
            condition = text.encode(self._text, tokens)
            empty = text.encode(self._text, self._empty.to(device)).expand_as(condition)
            z_previous = self.guided_step(z, index, condition, empty, w)
            target = self.consistency(self.companion, z_previous, previous, condition, w_rows)
        return {
            "loss": pseudo_huber(
                self.consistency(module, z, t, condition, w_rows), target, self.settings.huber_c
            )
        }

    def after_update(self, module: Any) -> None:
        """Move the target: target <- mu target + (1 - mu) student."""
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.companion.parameters()), list(module.parameters()), 1 - self.settings.target_ema
            )
