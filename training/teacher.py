"""The large teacher, trained from nothing: a U-Net and its text encoder, on the noise-prediction loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

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
        self._dropout = settings.caption_dropout
        self._scheduler, self._source, self._empty = scheduler, source, empty

    def losses(self, module: Any, draw: Draw) -> Mapping[str, Any]:
        """Mean squared error of the predicted noise, with some captions emptied."""
        generator = draw.torch()
        latents, tokens = batch_on(module, self._source, draw, self.training.batch)
        dropped = torch.rand(len(tokens), generator=generator) < self._dropout
        tokens = torch.where(dropped[:, None].to(tokens.device), self._empty.to(tokens.device), tokens)
        noise, t, noisy = noised(self._scheduler, latents, generator)
        return {"loss": functional.mse_loss(module(noisy, t, tokens).float(), noise.float())}

    def after_update(self, module: Any) -> None:
        """Nothing follows this network."""
