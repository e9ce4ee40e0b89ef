"""PixArt-alpha: a diffusion transformer over 2x2 patches of the latent, conditioned on 120 tokens of T5.

Source: PixArt-alpha (arXiv:2310.00426) and its published configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npusim.models.architectures.network import Architecture, InputSpec

PIXART_ALPHA: Mapping[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_layers": 28,
    "in_channels": 4,
    "out_channels": 8,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "patch_size": 2,
    "norm_type": "ada_norm_single",
}
TEXT_TOKENS = 120


def pixart(side: int, *, micro_conditions: bool, text_channels: int = 4096) -> Architecture:
    """The transformer over a latent of `side` squared, batch 1; the text mask is left out (all tokens count).

    Args:
        side: Rows and columns of the latent.
        micro_conditions: Whether the image's resolution and aspect ratio are inputs (the 1024 model).
        text_channels: Width of the text encoder's tokens.
    """
    inputs = [
        InputSpec(name="sample", shape=(1, 4, side, side), argument="hidden_states"),
        InputSpec(name="encoder_hidden_states", shape=(1, TEXT_TOKENS, text_channels)),
        InputSpec(name="timestep", shape=(1,), dtype="int64"),
    ]
    if micro_conditions:
        inputs += [
            InputSpec(name="resolution", shape=(1, 2), argument="added_cond_kwargs.resolution"),
            InputSpec(name="aspect_ratio", shape=(1, 1), argument="added_cond_kwargs.aspect_ratio"),
        ]
    return Architecture(
        library="diffusers",
        class_name="PixArtTransformer2DModel",
        config={
            **PIXART_ALPHA,
            "caption_channels": text_channels,
            "sample_size": side,
            "use_additional_conditions": micro_conditions,
        },
        inputs=tuple(inputs),
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    "pixart-alpha-512": pixart(64, micro_conditions=False),
    "pixart-alpha-1024": pixart(128, micro_conditions=True),
}
