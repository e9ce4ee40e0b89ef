"""The text encoder of Stable Diffusion 1: CLIP ViT-L/14's text half.

Source: CLIP (arXiv:2103.00020) and the published configuration of Stable Diffusion 1's text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping

from npusim.models.architectures.network import Architecture, InputSpec

ARCHITECTURES: Mapping[str, Architecture] = {
    "clip-text-encoder": Architecture(
        library="transformers",
        class_name="CLIPTextModel",
        config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
        },
        inputs=(InputSpec(name="input_ids", shape=(1, 77), dtype="int64"),),
        output="last_hidden_state",
    ),
}
