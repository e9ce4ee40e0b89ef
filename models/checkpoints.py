"""From a zoo name, or a local checkpoint, to an ONNX file with weights: what `npusim models build` does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from npusim.errors import BadInputError, OutputError
from npusim.models import onnx_export, weight_files, zoo
from npusim.models.architectures import Architecture
from npusim.models.custom import CUSTOM, custom_architecture
from npusim.models.onnx_export import Dtype, Exporter, Spelling
from npusim.models.weight_files import Checkpoint

_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "UNet2DConditionModel": ("unet",),
    "PixArtTransformer2DModel": ("transformer",),
    "AutoencoderKL": ("vae",),
    "AutoencoderTiny": ("vae",),
    "CLIPTextModel": ("text_encoder",),
}
_ALIASES: Mapping[str, frozenset[str]] = {
    "PixArtTransformer2DModel": frozenset({"Transformer2DModel"}),  # its name before diffusers 0.28
    "CLIPTextModel": frozenset({"CLIPModel"}),
}
_NO_CHANGE_OF_GRAPH = frozenset(
    {"sample_size", "dropout", "force_upcast", "upcast_attention", "scaling_factor", "shift_factor"}
    | {"latents_mean", "latents_std", "latent_magnitude", "latent_shift", "projection_dim"}
)
_NAMES_SHOWN = 3


def build(
    name: str,
    *,
    out: Path | str,
    weights: Path | str = "random",
    seed: int = 0,
    exporter: Exporter = "dynamo",
    opset: int | None = None,
    dtype: Dtype = "fp32",
) -> Path:
    """Write a network as ONNX with weights, and return the file's path.

    Args:
        name: A zoo name, or `custom` for whatever network the checkpoint's own configuration describes.
        out: The `.onnx` file to write, or a folder for `<name>.onnx`. Large weights go beside it, into
            `<file>.onnx.data`. Files of these names are replaced, each as a whole.
        weights: `random`, or a checkpoint: a folder as `save_pretrained` writes it, a pipeline's folder, or a
            safetensors file with the library's tensor names.
        seed: Of the random weights.
        exporter: `dynamo` or `legacy`.
        opset: As the exporter allows; its usual one by default.
        dtype: Of weights and activations, `fp32` or `fp16`.

    Raises:
        BadInputError: An unknown name or option; a checkpoint that is missing, incomplete, pickled, hostile
            or of another architecture.
        OutputError: `out` cannot be written.
        MissingExtraError: torch, diffusers or safetensors is not installed.
    """
    spelling = onnx_export.spelling_of(exporter, opset, dtype)
    target = _target(name, Path(out))
    if str(weights) == "random":
        if name == CUSTOM:
            raise BadInputError("--weights: 'custom' takes its network from a checkpoint; give its folder")
        architecture = zoo.architecture(name)
        network = onnx_export.seeded_network(architecture, dtype=dtype, seed=seed)
    else:
        architecture, network = load(name, Path(weights), dtype=dtype)
    return _export_aside(network, architecture, spelling, target)


def load(name: str, path: Path, *, dtype: Dtype = "fp32") -> tuple[Architecture, Any]:
    """The architecture and the torch module of a local checkpoint, with its weights.

    A zoo network is built from the zoo's own configuration: no constructor sees the checkpoint's.

    Args:
        name: A zoo name or `custom`.
        path: As `weights` of `build`.
        dtype: What the weights are converted to.
    """
    architecture, checkpoint = _find(name, path)
    expected = _expected_shapes(architecture, checkpoint)
    names = _require_same_tensors(expected, architecture.parts, name, checkpoint)
    network = onnx_export.seeded_network(architecture, distinct=False)
    stored = weight_files.read_tensors(checkpoint)
    network.load_state_dict({key: stored[names[key]] for key in names}, strict=False)
    return architecture, onnx_export.cast(network, dtype)


def _find(name: str, path: Path) -> tuple[Architecture, Checkpoint]:
    if name == CUSTOM:
        folders = tuple(folder for known in _FOLDERS.values() for folder in known)
        checkpoint = weight_files.find_checkpoint(path, folders)
        return custom_architecture(checkpoint), checkpoint
    architecture = zoo.architecture(name)
    checkpoint = weight_files.find_checkpoint(path, _FOLDERS[architecture.class_name])
    if checkpoint.config is not None:
        where = str(checkpoint.path / weight_files.CONFIG_NAME)
        _require_same_class(architecture, checkpoint.config, name, where)
        _require_same_config(architecture, checkpoint.config, name, where)
    return architecture, checkpoint


def _require_same_class(architecture: Architecture, config: Mapping[str, Any], name: str, where: str) -> None:
    found = weight_files.class_names(config)
    allowed = {architecture.class_name} | _ALIASES.get(architecture.class_name, frozenset())
    if not allowed & set(found):
        raise BadInputError(
            f"{where}: describes {_listed(found) or 'no class'}; "
            f"'{name}' is a {architecture.class_name}; give a checkpoint of that class"
        )


def _require_same_config(
    architecture: Architecture, config: Mapping[str, Any], name: str, where: str
) -> None:
    """Every key that shapes the zoo network must say the same in the checkpoint, where it has it."""
    for key, wanted in _effective_config(architecture).items():
        found = config.get(key)
        if found is not None and key not in _NO_CHANGE_OF_GRAPH and not _equal(found, wanted):
            raise BadInputError(
                f"{where}: '{key}' is {_shown(found)}; '{name}' has "
                f"{_shown(wanted)}; give a checkpoint of '{name}', or build 'custom' from this one"
            )


def _effective_config(architecture: Architecture) -> Mapping[str, Any]:
    if architecture.library == "transformers":
        return {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, **architecture.config}
    return dict(_meta_network(architecture).config)


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(_equal, found, wanted))
    if not found and not wanted:
        return True  # an absent feature is written as null, false or zero
    return bool(found == wanted)


def _meta_network(architecture: Architecture) -> Any:
    """The network without memory for its weights."""
    torch = onnx_export.require_torch()
    with torch.device("meta"):
        return architecture.build()


def _expected_shapes(architecture: Architecture, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the network stores."""
    try:
        state = _meta_network(architecture).state_dict()
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AttributeError) as error:
        raise BadInputError(
            f"{checkpoint.path / weight_files.CONFIG_NAME}: {architecture.class_name} refuses this "
            f"configuration ({type(error).__name__}: {str(error)[:200]}); save the checkpoint again"
        ) from error
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _require_same_tensors(
    expected: Mapping[str, tuple[int, ...]],
    parts: tuple[str, ...],
    name: str,
    checkpoint: Checkpoint,
) -> dict[str, str]:
    """The stored name of each expected tensor; some versions of transformers write a prefix.

    What is run as `parts` of its class needs their tensors only: a decoder may ship without its encoder.
    """
    stored = weight_files.tensor_shapes(checkpoint)
    prefix = "" if expected.keys() & stored.keys() else "text_model."
    names = {key: prefix + key for key in expected}
    needed = [key for key in expected if not parts or key.partition(".")[0] in parts]
    missing = sorted(key for key in needed if names[key] not in stored)
    if missing:
        raise BadInputError(
            f"{checkpoint.path}: {len(missing)} of the {len(needed)} tensors of '{name}' are missing "
            f"({_listed(missing)}); the checkpoint is incomplete or of another architecture; "
            f"give one of '{name}'"
        )
    surplus = sorted(stored.keys() - set(names.values()) - {"text_model.embeddings.position_ids"})
    if surplus:
        raise BadInputError(
            f"{checkpoint.path}: has {len(surplus)} tensors that '{name}' has not ({_listed(surplus)}); "
            f"it is of another architecture; give a checkpoint of '{name}'"
        )
    names = {key: own for key, own in names.items() if own in stored}
    for key, own in names.items():
        if stored[own] != expected[key]:
            raise BadInputError(
                f"{checkpoint.path}: tensor '{own}' has shape {list(stored[own])}; '{name}' has "
                f"{list(expected[key])}; it is of another architecture; give a checkpoint of '{name}'"
            )
    return names


def _target(name: str, out: Path) -> Path:
    if name != CUSTOM:
        zoo.card(name)
    path = out if out.suffix == ".onnx" else out / f"{name}.onnx"
    if path.is_dir():
        raise OutputError(
            f"--out: {path} is a folder; give a .onnx file or a folder to write {name}.onnx into"
        )
    return path


def _export_aside(network: Any, architecture: Architecture, spelling: Spelling, target: Path) -> Path:
    """Export into a temporary folder beside `target`, then move the finished files, weights first."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".npusim-build-", dir=target.parent) as folder:
            written = onnx_export.export(network, architecture, spelling, Path(folder) / target.name)
            data = Path(f"{written}.data")
            if data.exists():
                os.replace(data, f"{target}.data")
            os.replace(written, target)
    except OSError as error:
        raise OutputError(
            f"--out: {target} cannot be written ({error.strerror or error}); choose another place"
        ) from error
    return target


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(repr(str(name)[:80]) for name in names[:_NAMES_SHOWN])
    return shown + (", ..." if len(names) > _NAMES_SHOWN else "")


def _shown(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)[:80]
