"""Files that survive: written aside, flushed to the disk, renamed; every byte checked when read."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from npusim.errors import BadInputError, OutputError

MANIFEST = "files.json"
"""In a published folder: the CRC-32 of each of its files."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into a sentence that names the file and says what is still there."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{path}: could not be written ({reason}); what was finished before is untouched: "
            "free some space or choose another --out, then run the same command again to go on from there"
        ) from error


def _flush(path: Path) -> None:
    """Push a file's (or folder's) bytes to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON at once or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, value: str) -> None:
    """Write text at once or not at all."""
    aside = _aside(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text(value)
            _flush(aside)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read JSON that this pipeline wrote.

    Raises:
        BadInputError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"{path}: expected a JSON file of this pipeline ({error}); run the stage that makes it"
        ) from error


def _checksum(tensor: Any) -> int:
    import torch

    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def write_tensors(path: Path, tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts as one safetensors file, with a CRC-32 per tensor, at once or not at all.

    Raises:
        OutputError: the disk refused; the file that stood at `path` before still stands.
    """
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    sums = {name: _checksum(value) for name, value in plain.items()}
    aside = _aside(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(
                plain,
                aside,
                metadata={"facts": json.dumps(dict(facts), sort_keys=True), "crc32": json.dumps(sums)},
            )
            _flush(aside)
            aside.replace(path)
            _flush(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `write_tensors` wrote: tensors and facts.

    Raises:
        BadInputError: missing, truncated, altered, or not written by this pipeline.
    """
    from safetensors import SafetensorError, safe_open

    advice = "delete it to start this stage afresh, or restore it from a copy"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
    except (OSError, SafetensorError) as error:
        raise BadInputError(
            f"{path}: not a readable checkpoint (truncated or corrupt: {error}); {advice}"
        ) from error
    if "crc32" not in metadata or "facts" not in metadata:
        raise BadInputError(f"{path}: a safetensors file, but not a checkpoint of this pipeline; {advice}")
    sums = json.loads(metadata["crc32"])
    for name, value in tensors.items():
        if sums.get(name) != _checksum(value):
            raise BadInputError(
                f"{path}: tensor {name!r} is corrupt (its CRC-32 differs from the one recorded); {advice}"
            )
    return tensors, json.loads(metadata["facts"])


def publish_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Build a folder beside its place, sum it up, flush it, and rename it into place, over an older one if need be.

    Raises:
        OutputError: the disk refused; nothing that stood before is lost.
    """
    aside, old = _aside(folder), folder.with_name(f".{folder.name}.{os.getpid()}.old")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            fill(aside)
            write_json(aside / MANIFEST, _sums(aside))
            for path in sorted(aside.rglob("*")):
                _flush(path)
            if folder.exists():
                folder.replace(old)
            aside.replace(folder)
            _flush(folder.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _sums(folder: Path) -> dict[str, int]:
    """Relative path -> CRC-32 of every file below."""
    return {
        path.relative_to(folder).as_posix(): _file_sum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _file_sum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            found = zlib.crc32(chunk, found)
    return found


def check_files(folder: Path) -> None:
    """Compare a network's files with the sums that were published with it; a downloaded network has none.

    Args:
        folder: a network's folder in a published one (`final/unet`).

    Raises:
        BadInputError: names the file that is missing or differs.
    """
    manifest = folder.parent / MANIFEST
    if not manifest.is_file():
        return
    for name, wanted in read_json(manifest).items():
        path = folder.parent / name
        if not path.is_relative_to(folder):
            continue
        state = "missing" if not path.is_file() else "corrupt" if _file_sum(path) != wanted else ""
        if state:
            raise BadInputError(
                f"{path}: is {state} (its CRC-32 is not the one in {manifest}); restore it from a copy, or run its "
                "stage again with --no-resume"
            )


def load_network(kind: Any, folder: Path) -> Any:
    """Load a diffusers or transformers network from a local folder, never from a hub.

    Raises:
        BadInputError: the folder or its weights are missing, truncated, altered since they were published, or of another
            shape than its configuration.
    """
    check_files(folder)
    if not (folder / "config.json").is_file():
        raise BadInputError(
            f"{folder}: holds no config.json, so no network can be read from it; run the stage that makes it"
        )
    try:
        return kind.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    except Exception as error:  # the libraries raise many kinds here; each means the folder cannot be used
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInputError(
            f"{folder}: its weights cannot be read (truncated, corrupt or of another shape: {first})"
        ) from error
