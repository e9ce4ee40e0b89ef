"""The U-Net of Stable Diffusion XL and its distilled relative SSD-1B.

Source: SDXL (arXiv:2307.01952) and its published configuration; SSD-1B (arXiv:2401.02677), whose blocks are
inferred: as remembered from the published configuration, held up by its published 1.3 B parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npusim.models.architectures.network import Architecture, InputSpec

SDXL: Mapping[str, Any] = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),  # diffusers' name for what are numbers of heads here
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SSD_1B: Mapping[str, Any] = {
    **SDXL,
    "transformer_layers_per_block": [0, 2, 4],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 0],
    "mid_block_type": "UNetMidBlock2D",
}


def sdxl_unet(config: Mapping[str, Any]) -> Architecture:
    """A U-Net over a latent of `sample_size` squared, conditioned on text, pooled text and the image's size.

    The pooled text's width is what the class's projection leaves beside the six numbers of the size.
    """
    side, text_width = config["sample_size"], config["cross_attention_dim"]
    pooled_width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return Architecture(
        library="diffusers",
        class_name="UNet2DConditionModel",
        config=config,
        inputs=(
            InputSpec(name="sample", shape=(1, config.get("in_channels", 4), side, side)),
            InputSpec(name="timestep", shape=(1,), dtype="int64"),
            InputSpec(name="encoder_hidden_states", shape=(1, 77, text_width)),
            InputSpec(name="text_embeds", shape=(1, pooled_width), argument="added_cond_kwargs.text_embeds"),
            InputSpec(name="time_ids", shape=(1, 6), argument="added_cond_kwargs.time_ids"),
        ),
    )


ARCHITECTURES: Mapping[str, Architecture] = {"sdxl": sdxl_unet(SDXL), "ssd-1b": sdxl_unet(SSD_1B)}
