"""The large teacher, trained from nothing: a U-Net and its text encoder, on the noise-prediction loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from npusim.training.config import TeacherStage
from npusim.training.data.source import Source, batch_on
from npusim.training.draw import Draw


def noised(scheduler: Any, latents: Any, generator: Any) -> tuple[Any, Any, Any]:
    """Forward diffusion at uniform times. latents: [N, C, h, w]. Returns noise, t [N], and noisy latents.

    Numbers are drawn on the CPU, so that one seed means one curve on every device.
    """
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    t = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), generator=generator).to(
        latents.device
    )
    return noise, t, scheduler.add_noise(latents, noise, t)


def min_snr_weights(alphas_cumprod: Any, t: Any, gamma: float) -> Any:
    """min(1, gamma / SNR(t)) for noise prediction; t: [N]. Source: Hang et al. 2023, equation 11.

    Low noise has large errors that teach only texture; without this, what the caption alone can say (where things are) is
    learned last in a small world.
    """
    alpha = alphas_cumprod.to(t.device)[t]
    return (gamma * (1 - alpha) / alpha).clamp(max=1.0)


class TeacherTraining:
    """Stage `teacher` (see `loop.Stage`).

    Source: Rombach et al. 2022, equation 3, with classifier-free guidance's dropout.
    """

    name = "teacher"
    companion = None
    frozen: tuple[Any, ...] = ()

    def __init__(
        self, settings: TeacherStage, module: Any, scheduler: Any, source: Source, empty: Any
    ) -> None:
        """Take the networks over.

        Args:
            settings: of the stage.
            module: `networks.Conditioned`.
            scheduler: the noise schedule.
            source: of latents and tokens.
            empty: token row of the empty caption, [1, T].
        """
        self.training, self.module = settings.training, module
        self._dropout, self._min_snr = settings.caption_dropout, settings.min_snr
        self._scheduler, self._source, self._empty = scheduler, source, empty

    def losses(self, module: Any, draw: Draw) -> Mapping[str, Any]:
        """Mean squared error of the predicted noise, with some captions emptied."""
        generator = draw.torch()
        latents, tokens = batch_on(module, self._source, draw, self.training.batch)
        dropped = torch.rand(len(tokens), generator=generator) < self._dropout
        tokens = torch.where(dropped[:, None].to(tokens.device), self._empty.to(tokens.device), tokens)
        noise, t, noisy = noised(self._scheduler, latents, generator)
        errors = (module(noisy, t, tokens).float() - noise.float()).square().mean(dim=(1, 2, 3))
        if self._min_snr is None:
            return {"loss": errors.mean()}
        weights = min_snr_weights(self._scheduler.alphas_cumprod, t, self._min_snr)
        return {"loss": (weights * errors).mean(), "task": errors.mean()}

    def after_update(self, module: Any) -> None:
        """Nothing follows this network."""
