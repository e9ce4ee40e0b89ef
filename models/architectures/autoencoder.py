"""Image encoders and decoders between a 512x512 image and its 64x64 latent.

Source: the published configuration of Stable Diffusion's autoencoder; TAESD's (madebyollin/taesd).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npusim.models.architectures.network import Architecture, InputSpec

SD_VAE: Mapping[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}

_LATENT = InputSpec(name="latent_sample", shape=(1, 4, 64, 64))
_IMAGE = InputSpec(name="sample", shape=(1, 3, 512, 512))

ARCHITECTURES: Mapping[str, Architecture] = {
    "sd-vae-decoder": Architecture(
        library="diffusers",
        class_name="AutoencoderKL",
        config=SD_VAE,
        inputs=(_LATENT,),
        output="sample",
        parts=("post_quant_conv", "decoder"),
    ),
    "sd-vae-encoder": Architecture(
        library="diffusers",
        class_name="AutoencoderKL",
        config=SD_VAE,
        inputs=(_IMAGE,),
        output="latent_parameters",  # mean and log-variance, 4 channels each
        parts=("encoder", "quant_conv"),
    ),
    "taesd-decoder": Architecture(
        library="diffusers",
        class_name="AutoencoderTiny",
        config={},  # the class's defaults are TAESD
        inputs=(_LATENT,),
        output="sample",
        parts=("decoder",),
    ),
}
