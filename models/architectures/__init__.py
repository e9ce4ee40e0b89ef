"""One module per family of networks: the class, its configuration and the inputs of one evaluation.

Nothing here imports torch or diffusers until a network is built.
"""

from __future__ import annotations

from collections.abc import Mapping

from npusim.models.architectures import autoencoder, inferred, pixart, text_encoder, unet_sd, unet_sdxl
from npusim.models.architectures.network import Architecture, InputSpec

__all__ = ["ARCHITECTURES", "Architecture", "InputSpec"]

ARCHITECTURES: Mapping[str, Architecture] = {
    **unet_sd.ARCHITECTURES,
    **unet_sdxl.ARCHITECTURES,
    **pixart.ARCHITECTURES,
    **autoencoder.ARCHITECTURES,
    **inferred.ARCHITECTURES,
    **text_encoder.ARCHITECTURES,
}
