"""The text encoder of Stable Diffusion 1: CLIP ViT-L/14's text half.

Source: CLIP (arXiv:2103.00020) and the published configuration of Stable Diffusion 1's text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping

from npusim.models.architectures.network import Architecture, InputSpec

CONFIG_KEYS = frozenset(  # what of a checkpoint's configuration shapes the network
    {
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "projection_dim",
        "vocab_size",
        "max_position_embeddings",
        "hidden_act",
        "layer_norm_eps",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    }
)

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
