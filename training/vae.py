"""The autoencoder: AutoencoderKL over pixel-unshuffled pictures; all convolutions are at latent size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from npusim.training.config import VaeSize


def build_vae(size: VaeSize, resolution: int) -> Any:
    """An AutoencoderKL of this size with fresh weights.

    With `patch` p it sees [N, 3 p p, H / p, W / p]; its last convolution followed by depth-to-space is the
    cheap decoder.
    """
    from diffusers import AutoencoderKL

    levels = len(size.channels)
    planes = 3 * size.patch**2
    return AutoencoderKL(
        in_channels=planes,
        out_channels=planes,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.channels,
        layers_per_block=size.layers_per_block,
        latent_channels=size.latent_channels,
        norm_num_groups=size.norm_groups,
        sample_size=resolution // size.patch,
        scaling_factor=size.scaling_factor or 1.0,
        mid_block_add_attention=size.patch == 1,
    )


def encode(vae: Any, pictures: Any, patch: int) -> Any:
    """Scaled latents [N, C, h, w] of pictures [N, 3, H, W]: the posterior's mean times the scaling factor."""
    planes = functional.pixel_unshuffle(pictures, patch)
    return vae.encode(planes).latent_dist.mode() * vae.config.scaling_factor


def decode(vae: Any, latents: Any, patch: int) -> Any:
    """Pictures [N, 3, H, W], about -1 to 1, of scaled latents [N, C, h, w]."""
    planes = vae.decode(latents / vae.config.scaling_factor).sample
    return functional.pixel_shuffle(planes, patch)


def reconstruction_losses(vae: Any, pictures: Any, patch: int) -> Mapping[str, Any]:
    """Mean squared error of the round trip.

    (An L1 loss collapsed to the background in the project's prototype.)
    """
    planes = vae(
        functional.pixel_unshuffle(pictures, patch)
    ).sample  # forward encodes to the mean and decodes
    return {"loss": functional.mse_loss(functional.pixel_shuffle(planes, patch), pictures)}


def measure_scaling(vae: Any, pictures: Any, patch: int) -> float:
    """1 / standard deviation of the unscaled latents of these pictures (SD's rule for its scaling factor)."""
    with torch.no_grad():
        return float(vae.config.scaling_factor / encode(vae, pictures, patch).std())
