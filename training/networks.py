"""Diffusion networks of Stable Diffusion's architecture at any size, and the noise schedule they share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from npusim.training import text
from npusim.training.config import Schedule, UNetSize


def unet_config(size: UNetSize) -> dict[str, Any]:
    """Arguments of UNet2DConditionModel. Source: SD v1's unet/config.json, widths apart."""
    levels = len(size.channels)
    return {
        "sample_size": size.sample,
        "in_channels": size.latent_channels,
        "out_channels": size.latent_channels,
        "down_block_types": ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        "block_out_channels": size.channels,
        "layers_per_block": size.layers_per_block,
        "cross_attention_dim": size.cross_dim,
        "attention_head_dim": size.heads,
        "norm_num_groups": size.norm_groups,
    }


def build_unet(config: dict[str, Any]) -> Any:
    """A UNet2DConditionModel of this configuration with fresh weights."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**config)


def noise_schedule(schedule: Schedule) -> Any:
    """diffusers' DDPMScheduler with SD v1's settings: scaled-linear betas, epsilon prediction."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=schedule.train_steps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )


class Conditioned(nn.Module):  # type: ignore[misc]  # torch's stubs are skipped, see pyproject.toml
    """A text encoder and a U-Net as one module: both train together and wrap as one under `accelerate`."""

    def __init__(self, unet: Any, text_encoder: Any) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, noisy: Any, t: Any, tokens: Any) -> Any:
        """Predict the noise. noisy: [N, C, h, w]; t: [N]; tokens: [N, T]. Returns [N, C, h, w]."""
        return self.unet(noisy, t, text.encode(self.text_encoder, tokens)).sample


def alphas_digest(scheduler: Any) -> str:
    """A short name of a noise schedule's values: two schedules may be paired only if these agree."""
    import hashlib

    return hashlib.sha256(scheduler.alphas_cumprod.to(torch.float32).numpy().tobytes()).hexdigest()[:16]


def weights_digest(module: Any) -> str:
    """A short name of a network's exact weights."""
    import hashlib

    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
