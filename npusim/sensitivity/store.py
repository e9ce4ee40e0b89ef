"""Measured errors on disk: one file per set of inputs and block, under a key of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import npusim
from npusim.errors import OutputError
from npusim.files import write_aside
from npusim.graph import Graph
from npusim.scales import read_npz
from npusim.sensitivity.subject import Inputs, ScaleTable
from npusim.sensitivity.walk import BlockErrors
from npusim.weights import Weights

Array = npt.NDArray[Any]
#: Source files whose change makes measured errors stale.
_CODE = ("execute", "sensitivity", "quantize.py", "calibrate.py", "precisions.py", "weights.py")


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/npusim/sensitivity`, or under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "npusim" / "sensitivity"


@cache
def code_digest() -> str:
    """Hash of the code that measures."""
    root, found = Path(npusim.__file__).parent, hashlib.sha256()
    for name in _CODE:
        place = root / name
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            found.update(file.name.encode())
            found.update(file.read_bytes())
    return found.hexdigest()


def key_of(
    graph: Graph, weights: Weights, inputs: Sequence[Inputs], options: Sequence[str], method: str
) -> str:
    """Hash of layers, weights, inputs, options and code: equal keys have equal errors."""
    found = hashlib.sha256(f"{code_digest()} {method} {' '.join(options)}".encode())
    for layer in graph.layers:
        found.update(repr((layer.name, layer.op, layer.operands, layer.output, sorted(layer.attributes.items(), key=str),
                           layer.epilogue)).encode())  # fmt: skip
    for tensor in graph.of_kind("weight"):
        found.update(tensor.name.encode())
        found.update(np.ascontiguousarray(weights[tensor.name]).data)
    for one in inputs:
        for name in sorted(one):
            values = np.ascontiguousarray(one[name], dtype=np.float64)
            found.update(f"{name} {values.shape}".encode())
            found.update(values.tobytes())
    return found.hexdigest()[:24]


class Store:
    """The folder of one key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def scales(self) -> ScaleTable | None:
        """The scale table, if it is there."""
        file = self.folder / "scales.json"
        try:
            table: ScaleTable = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return table

    def keep_scales(self, table: ScaleTable) -> None:
        """Write the scale table."""
        text = json.dumps(table, indent=1)
        write_aside(self.folder / "scales.json", lambda path: path.write_text(text, "utf-8"))

    def file(self, number: int, block: range) -> Path:
        """Where the errors of one block on one set of inputs are."""
        return self.folder / f"set-{number}-layers-{block.start}-{block.stop}.npz"

    def has(self, number: int, block: range) -> bool:
        """Whether a block was measured on a set of inputs."""
        return self.file(number, block).is_file()

    def keep(self, number: int, block: range, found: BlockErrors) -> None:
        """Write what was measured."""
        rows = [("cast", layer, t, k, v) for (layer, t), e in found.cast.items() for k, v in e.items()]
        rows += [("stored", "", t, k, v) for t, e in found.stored.items() for k, v in e.items()]
        table = np.asarray([r[:4] for r in rows], dtype=np.str_).reshape(-1, 4)
        values = np.asarray([r[4] for r in rows], dtype=np.float64)
        layers = np.asarray(found.layers, dtype=np.str_)
        write_aside(
            self.file(number, block),
            lambda path: _save(path, layers=layers, own=found.own, keys=table, shares=values),
        )

    def load(self, number: int, block: range) -> BlockErrors:
        """Read what was measured.

        Raises:
            OutputError: the file is damaged.
        """
        file = self.file(number, block)
        try:
            arrays = read_npz(file)
            cast: dict[tuple[str, str], dict[str, float]] = {}
            stored: dict[str, dict[str, float]] = {}
            for (what, layer, tensor, kind), share in _rows(arrays):
                target = (
                    cast.setdefault((layer, tensor), {}) if what == "cast" else stored.setdefault(tensor, {})
                )
                target[kind] = share
            return BlockErrors(
                layers=tuple(arrays["layers"].tolist()), own=arrays["own"], cast=cast, stored=stored
            )
        except (KeyError, ValueError) as error:
            raise OutputError(
                f"{file}: is damaged ({error}); delete it, and the block is measured again"
            ) from error


def _rows(arrays: Mapping[str, Array]) -> Iterator[tuple[list[str], float]]:
    yield from zip(arrays["keys"].tolist(), arrays["shares"].tolist(), strict=True)


def _save(path: Path, **arrays: Array) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
