"""U-Nets of the Stable Diffusion 1 and 2 family and those that BK-SDM cuts out of it.

Source: the published configurations of the checkpoints; BK-SDM (arXiv:2305.15798) for the blocks removed;
LCM (arXiv:2310.04378) for the time condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npusim.models.architectures.network import Architecture, InputSpec

_ATTENTION_DOWN = "CrossAttnDownBlock2D"
_ATTENTION_UP = "CrossAttnUpBlock2D"

LCM_GUIDANCE_CHANNELS = 256  # width of the embedding of the guidance scale (LCM)

SD_V1: Mapping[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # diffusers' name for what is the number of heads here
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (_ATTENTION_DOWN,) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + (_ATTENTION_UP,) * 3,
    "layers_per_block": 2,
}
SD_V2: Mapping[str, Any] = {
    **SD_V1,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
BK_SDM_BASE: Mapping[str, Any] = {**SD_V1, "layers_per_block": 1}
BK_SDM_SMALL: Mapping[str, Any] = {**BK_SDM_BASE, "mid_block_type": None}
BK_SDM_TINY: Mapping[str, Any] = {
    **BK_SDM_SMALL,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": (_ATTENTION_DOWN,) * 3,
    "up_block_types": (_ATTENTION_UP,) * 3,
}


def latent_unet(config: Mapping[str, Any]) -> Architecture:
    """A U-Net over a latent of `sample_size` squared, conditioned on 77 text tokens, batch 1.

    With `time_cond_proj_dim` (LCM) the embedding of the guidance scale is one more input.
    """
    side, text_width = config["sample_size"], config["cross_attention_dim"]
    inputs = [
        InputSpec(name="sample", shape=(1, config.get("in_channels", 4), side, side)),
        InputSpec(name="timestep", shape=(1,), dtype="int64"),
        InputSpec(name="encoder_hidden_states", shape=(1, 77, text_width)),
    ]
    if guidance_channels := config.get("time_cond_proj_dim"):
        inputs.append(InputSpec(name="timestep_cond", shape=(1, guidance_channels)))
    return Architecture(
        library="diffusers", class_name="UNet2DConditionModel", config=config, inputs=tuple(inputs)
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    "sd-v1.5": latent_unet(SD_V1),
    "sd-v1.5-lcm": latent_unet({**SD_V1, "time_cond_proj_dim": LCM_GUIDANCE_CHANNELS}),
    "bk-sdm-base": latent_unet(BK_SDM_BASE),
    "bk-sdm-small": latent_unet(BK_SDM_SMALL),
    "bk-sdm-tiny": latent_unet(BK_SDM_TINY),
    "edgefusion": latent_unet({**BK_SDM_TINY, "time_cond_proj_dim": LCM_GUIDANCE_CHANNELS}),
    "sd-turbo": latent_unet(SD_V2),
}
