"""A network that is not in the zoo, from a checkpoint's own configuration: same classes, other extents.

The configuration is all of a checkpoint that reaches a constructor, so its values are bounded first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from npusim.errors import BadInputError
from npusim.models import weight_files
from npusim.models.architectures import Architecture, autoencoder, text_encoder
from npusim.models.architectures.network import InputSpec
from npusim.models.architectures.pixart import pixart
from npusim.models.architectures.unet_sd import latent_unet
from npusim.models.architectures.unet_sdxl import sdxl_unet
from npusim.models.weight_files import CONFIG_NAME, Checkpoint, class_names

CUSTOM = "custom"  # the name that stands for "what the checkpoint says"
NUMBER_MAX = 1 << 20  # no extent of a network is larger
LAYERS_MAX = 512  # nor is one deeper
_LIST_MAX = 64
_TEXT_MAX = 200

Config = Mapping[str, Any]


def custom_architecture(checkpoint: Checkpoint) -> Architecture:
    """The architecture that a checkpoint's configuration describes.

    Raises:
        BadInputError: No configuration, a class that is not one of the zoo's, or a value out of bounds.
    """
    if checkpoint.config is None:
        raise BadInputError(
            f"--weights: {checkpoint.path} has no configuration; 'custom' needs a folder with {CONFIG_NAME}"
        )
    where = str(checkpoint.path / CONFIG_NAME)
    found = next((name for name in class_names(checkpoint.config) if name in _FAMILIES), None)
    if found is None:
        raise BadInputError(
            f"{where}: describes none of {', '.join(_FAMILIES)}; give a checkpoint of one of these classes"
        )
    config = {key: value for key, value in checkpoint.config.items() if not key.startswith("_")}
    for key, value in config.items():
        _require_bounded(where, key, value)
    try:
        built = _FAMILIES[found](config)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise BadInputError(
            f"{where}: not a configuration of {found} ({type(error).__name__}: {str(error)[:_TEXT_MAX]}); "
            "save the checkpoint again"
        ) from error
    return _with_text_tokens(built, checkpoint)


def _with_text_tokens(built: Architecture, checkpoint: Checkpoint) -> Architecture:
    """A U-Net takes as many tokens as the text encoder beside it writes; without one, CLIP's 77."""
    beside = weight_files.neighbour_config(checkpoint, "text_encoder") or {}
    tokens = beside.get("max_position_embeddings")
    if tokens is None or built.class_name != "UNet2DConditionModel":
        return built
    if type(tokens) is not int or not 0 < tokens <= NUMBER_MAX:
        raise BadInputError(
            f"{checkpoint.path.parent / 'text_encoder' / CONFIG_NAME}: 'max_position_embeddings' is "
            f"{str(tokens)[:_TEXT_MAX]}; a whole number from 1 to {NUMBER_MAX} is allowed; correct it"
        )
    inputs = tuple(
        replace(spec, shape=(1, tokens, spec.shape[2])) if spec.name == "encoder_hidden_states" else spec
        for spec in built.inputs
    )
    return replace(built, inputs=inputs)


def _require_bounded(where: str, key: str, value: Any, depth: int = 0) -> None:
    maximum = LAYERS_MAX if "layers" in key else NUMBER_MAX
    if isinstance(value, list):
        bounded = len(value) <= _LIST_MAX and depth < 3
        for element in value if bounded else ():
            _require_bounded(where, key, element, depth + 1)
    elif isinstance(value, str):
        bounded = len(value) <= _TEXT_MAX
    elif isinstance(value, int | float):
        bounded = (0 if isinstance(value, int) else -maximum) <= value <= maximum
    else:
        bounded = value is None or key in _FREE_OBJECTS
    if not bounded:
        raise BadInputError(
            f"{where}: '{key[:_TEXT_MAX]}' is {str(value)[:_TEXT_MAX]}; numbers up to {maximum}, "
            "short texts and short lists are allowed; correct the configuration"
        )


_FREE_OBJECTS = frozenset(
    {"task_specific_params", "id2label", "label2id"}
)  # transformers writes, nobody reads


def _unet(config: Config) -> Architecture:
    config = {"sample_size": 64, "cross_attention_dim": 1280, **_given(config)}
    if config.get("addition_embed_type") != "text_time":
        return latent_unet(config)
    return sdxl_unet(config)


def _pixart(config: Config) -> Architecture:
    config = _given(config)
    side = int(config.get("sample_size", 128))
    conditions = bool(config.get("use_additional_conditions", side == 128))
    known = pixart(side, micro_conditions=conditions, text_channels=int(config.get("caption_channels", 4096)))
    return replace(known, config={**known.config, **config})


def _autoencoder(config: Config) -> Architecture:
    """The decoder: an autoencoder's other half is built by zoo name only."""
    known = autoencoder.ARCHITECTURES["sd-vae-decoder"]
    return _decoder(known, config, levels=len(config.get("block_out_channels", (64,))))


def _tiny_autoencoder(config: Config) -> Architecture:
    known = autoencoder.ARCHITECTURES["taesd-decoder"]
    config = {
        key: value for key, value in config.items() if key != "block_out_channels"
    }  # computed by the class
    return _decoder(known, config, levels=len(config.get("decoder_block_out_channels", (64,) * 4)))


def _decoder(known: Architecture, config: Config, levels: int) -> Architecture:
    side = max(int(config.get("sample_size") or 512) >> (levels - 1), 1)
    latent = InputSpec(
        name=known.inputs[0].name, shape=(1, int(config.get("latent_channels", 4)), side, side)
    )
    return replace(known, config=_given(config), inputs=(latent,))


def _text_encoder(config: Config) -> Architecture:
    known = text_encoder.ARCHITECTURES["clip-text-encoder"]
    tokens = InputSpec(
        name="input_ids", shape=(1, int(config.get("max_position_embeddings", 77))), dtype="int64"
    )
    read = {key: value for key, value in config.items() if key in text_encoder.CONFIG_KEYS}
    return replace(known, config=read, inputs=(tokens,))


def _given(config: Config) -> dict[str, Any]:
    """Without null values: the class's default holds. Lists become tuples, as the classes write them."""
    return {
        key: _tuples(value) for key, value in config.items() if value is not None or key == "mid_block_type"
    }


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) and not any(isinstance(v, list) for v in value) else value


_FAMILIES: Mapping[str, Callable[[Config], Architecture]] = {
    "UNet2DConditionModel": _unet,
    "PixArtTransformer2DModel": _pixart,
    "AutoencoderKL": _autoencoder,
    "AutoencoderTiny": _tiny_autoencoder,
    "CLIPTextModel": _text_encoder,
}
