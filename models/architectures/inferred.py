"""U-Nets whose papers do not give every block: as far as the papers fix them, the rest inferred.

SnapFusion (arXiv:2306.00980) starts from Stable Diffusion 1.5 and drops the attention of the finest level,
where it costs most; its U-Net is published as 848 M parameters, ours has 846.8 M.

MobileDiffusion (arXiv:2311.16567) keeps three levels, narrows the last one to 1024 channels and fills it with
most of the transformers, drops self-attention at 32x32 and all attention at 64x64, replaces GELU by SiLU,
narrows the feed-forward, and makes convolutions below the finest level separable. Depths are inferred from
its published size of 0.4 B; shared key and value projections and its ReLU attention are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from npusim.models.architectures.network import Architecture
from npusim.models.architectures.unet_sd import SD_V1, latent_unet

SNAPFUSION: Mapping[str, Any] = {
    **SD_V1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
MOBILE_DIFFUSION: Mapping[str, Any] = {
    **SD_V1,
    "block_out_channels": (320, 640, 1024),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 2, 4),
    "only_cross_attention": (False, True, False),
}
_FINEST_CHANNELS = 320
_FEED_FORWARD_EXPANSION = 3


def narrow_and_separate(network: Any) -> None:
    """Turn a diffusers U-Net into MobileDiffusion's blocks, in place (see the module's text)."""
    for module in list(network.modules()):
        kind = type(module).__name__
        if kind == "BasicTransformerBlock":
            _revise_transformer(module)
        elif kind == "ResnetBlock2D" and module.out_channels > _FINEST_CHANNELS:
            module.conv1 = _separable(module.conv1)
            module.conv2 = _separable(module.conv2)


def _revise_transformer(block: Any) -> None:
    from diffusers.models.attention import FeedForward

    width = block.norm1.normalized_shape[0]
    block.ff = FeedForward(width, mult=_FEED_FORWARD_EXPANSION, activation_fn="swiglu")
    if block.only_cross_attention:  # the first attention already reads the text; there is no second one
        block.attn2 = None
        block.norm2 = None


def _separable(convolution: Any) -> Any:
    """A depthwise and a pointwise convolution of the same extents as a 3x3 `convolution`."""
    from torch import nn

    channels = convolution.in_channels
    return nn.Sequential(
        nn.Conv2d(channels, channels, convolution.kernel_size, padding=convolution.padding, groups=channels),
        nn.Conv2d(channels, convolution.out_channels, 1),
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    "snapfusion-like": latent_unet(SNAPFUSION),
    "mobilediffusion-like": replace(latent_unet(MOBILE_DIFFUSION), revise=narrow_and_separate),
}
