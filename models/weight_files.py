"""Weights of a local checkpoint: safetensors only, found, checked and read without trusting its files.

Pickles are never opened, no hub is contacted, and no file outside the checkpoint's folder is read, but for the
configuration of the text encoder beside a U-Net in a pipeline's folder. (A
snapshot in the Hugging Face cache links into its own repository's blobs: that counts as inside.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npusim.errors import BadInputError, MissingExtraError

CONFIG_NAME = "config.json"
JSON_BYTES_MAX = 16 << 20
_STEMS = ("diffusion_pytorch_model", "model")  # as diffusers and transformers name them
_PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
_WHERE = "--weights"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files have been found but not read.

    Attributes:
        path: What the user gave, for messages.
        files: The safetensors files that hold the weights, each inside the checkpoint's folder.
        config: The parsed configuration; None for a lone safetensors file.
    """

    path: Path
    files: tuple[Path, ...]
    config: Mapping[str, Any] | None


def find_checkpoint(path: Path, folders: tuple[str, ...] = ()) -> Checkpoint:
    """The files of a checkpoint: a safetensors file, or a folder as `save_pretrained` writes it.

    Args:
        path: File or folder. A pipeline's folder (with model_index.json) is searched in `folders`.
        folders: Subfolders of a pipeline that may hold the network, first match wins (`unet`, `vae`).

    Raises:
        BadInputError: Nothing there, pickled weights only, an incomplete or hostile folder.
    """
    if path.is_file():
        return Checkpoint(path, (_safetensors_file(path),), None)
    if not path.is_dir():
        raise BadInputError(
            f"{_WHERE}: {path} does not exist; give a safetensors file or a folder with {CONFIG_NAME} "
            "and safetensors weights"
        )
    if (path / "model_index.json").is_file() and not (path / CONFIG_NAME).is_file():
        path = _network_folder(path, folders)
    config_path = _inside(path, CONFIG_NAME)
    if not config_path.is_file():
        held = sorted(p.parent.name for p in path.glob(f"*/{CONFIG_NAME}"))
        raise BadInputError(
            f"{_WHERE}: {path} has no {CONFIG_NAME}; give a folder written by save_pretrained"
            + (f", such as its own {', '.join(held)}" if held else "")
        )
    return Checkpoint(path, _weight_files(path), read_json(config_path))


def neighbour_config(checkpoint: Checkpoint, folder: str) -> Mapping[str, Any] | None:
    """The configuration of another network of the same pipeline (`text_encoder`), or None where there is none."""
    if checkpoint.config is None:
        return None
    path = _resolved(checkpoint.path).parent / folder
    if not (path / CONFIG_NAME).is_file():
        return None
    return read_json(_inside(path, CONFIG_NAME))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from `path`. Raises BadInputError for anything else, NaN and Infinity included."""
    if (size := path.stat().st_size) > JSON_BYTES_MAX:
        raise BadInputError(
            f"{path}: {size} bytes; a configuration has at most {JSON_BYTES_MAX}; is this the file?"
        )
    try:
        parsed = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadInputError(
            f"{path}: not readable as JSON ({_first_line(error)}); save the checkpoint again"
        ) from error
    if not isinstance(parsed, dict):
        raise BadInputError(
            f"{path}: holds a {type(parsed).__name__}; a JSON object is needed; save it again"
        )
    return parsed


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a configuration names: diffusers' `_class_name` or transformers' `architectures`."""
    named = config.get("_class_name") or config.get("architectures") or ()
    return tuple(str(one) for one in (named if isinstance(named, list | tuple) else [named]))


def tensor_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every stored tensor, from the files' headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, opened in _open_all(checkpoint):
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            if name in shapes:
                raise BadInputError(f"{path}: tensor {name!r} is stored twice; save the checkpoint again")
            shapes[name] = tuple(opened.get_slice(name).get_shape())
    return shapes


def read_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """Name -> torch tensor of every stored tensor. Raises BadInputError for NaN or infinite values."""
    tensors: dict[str, Any] = {}
    for path, opened in _open_all(checkpoint):
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            tensor = opened.get_tensor(name)
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise BadInputError(
                    f"{path}: tensor {name!r} has NaN or infinite values; weights must be finite; "
                    "give a checkpoint that trained without overflow"
                )
            tensors[name] = tensor
    return tensors


def _open_all(checkpoint: Checkpoint) -> Iterator[tuple[Path, Any]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "models") from error
    for path in checkpoint.files:
        try:
            with safe_open(path, framework="pt") as opened:
                yield path, opened
        except (SafetensorError, OSError) as error:
            raise BadInputError(
                f"{path}: not a complete safetensors file ({_first_line(error)}); save or download it again"
            ) from error


def _network_folder(pipeline: Path, folders: tuple[str, ...]) -> Path:
    for folder in folders:
        if (_inside(pipeline, folder) / CONFIG_NAME).is_file():
            return pipeline / folder
    raise BadInputError(
        f"{_WHERE}: {pipeline} is a pipeline without {' or '.join(folder + '/' for folder in folders)}"
        f"{CONFIG_NAME}; give the folder of the network itself"
    )


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for stem in _STEMS:
        index = _inside(folder, f"{stem}.safetensors.index.json")
        if index.is_file():
            return _shards(folder, index)
        for variant in ("", ".fp16"):
            weights = _inside(folder, f"{stem}{variant}.safetensors")
            if weights.is_file():
                return (weights,)
    pickled = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _PICKLES)
    if pickled:
        raise BadInputError(
            f"{_WHERE}: {folder} has only pickled weights ({pickled[0]}), which can run code when loaded; "
            "only safetensors are read; save it again with safe_serialization=True"
        )
    raise BadInputError(
        f"{_WHERE}: {folder} has no weights; {_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors is needed; "
        "save or download it again"
    )


def _shards(folder: Path, index: Path) -> tuple[Path, ...]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise BadInputError(
            f"{index}: 'weight_map' must map tensor names to files; save the checkpoint again"
        )
    shards = []
    for name in sorted(set(names.values())):
        shard = _inside(folder, name)
        if shard.suffix != ".safetensors":
            raise BadInputError(f"{index}: names {name!r}; only .safetensors files are read; save it again")
        if not shard.is_file():
            raise BadInputError(f"{index}: names {name!r}, which is not there; the checkpoint is incomplete")
        shards.append(shard)
    if not shards:
        raise BadInputError(f"{index}: 'weight_map' is empty; the checkpoint is incomplete; save it again")
    return tuple(shards)


def _inside(folder: Path, name: str) -> Path:
    """`folder / name`, provided that it is a plain name whose target lies inside the checkpoint."""
    if "\0" in name or "/" in name or "\\" in name or name in {"", ".", ".."}:
        raise BadInputError(
            f"{folder}: the checkpoint names the file {name!r}; only plain names inside the folder are "
            "allowed; do not trust this checkpoint"
        )
    path = folder / name
    if not _resolved(path).is_relative_to(_root(folder)):
        raise BadInputError(
            f"{path}: links outside the checkpoint's folder; only files inside it are read; "
            "copy the file into the folder if you trust it"
        )
    return path


def _root(folder: Path) -> Path:
    """Where links may lead: the folder, or the repository's folder in the Hugging Face cache around it."""
    resolved = _resolved(folder)
    for parent in resolved.parents:
        if parent.name.startswith("models--") and (parent / "blobs").is_dir():
            return parent
    return resolved


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise BadInputError(f"{path}: a link that leads nowhere; copy the real file into place") from error


def _safetensors_file(path: Path) -> Path:
    if path.suffix in _PICKLES:
        raise BadInputError(
            f"{_WHERE}: {path} is pickled, which can run code when loaded; only safetensors are read; "
            "convert it with a tool you trust"
        )
    if path.suffix != ".safetensors":
        raise BadInputError(
            f"{_WHERE}: {path} is not a .safetensors file; give one, or a checkpoint's folder"
        )
    return path


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
