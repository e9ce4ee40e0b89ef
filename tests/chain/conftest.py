"""Small picture sets, good and bad."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npusim.training.chain.make import make_from_folder
from npusim.training.chain.step import Work
from npusim.training.chain.variant import Variant

QUIET = Work(quiet=True)


def scene(seed: int, width: int = 96, height: int = 80) -> Any:
    """A picture with structure at every scale: smooth noise under rectangles."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
    values = np.asarray(picture).copy()
    for _ in range(4):
        x, y = rng.integers(0, width - 12), rng.integers(0, height - 12)
        values[y : y + rng.integers(6, 30), x : x + rng.integers(6, 30)] = rng.integers(0, 256, 3)
    return Image.fromarray(values)


def write_folder(folder: Path, pictures: Mapping[str, Any], rows: list[Any] | None = None) -> Path:
    """An imagefolder of these pictures; `rows` instead of one line per picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(folder / name)
    lines = rows if rows is not None else [{"file_name": name, "text": f"a {name}"} for name in pictures]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def begun(tmp_path: Path) -> Callable[..., Variant]:
    """Function that makes the first variant of so many scenes."""

    def make(count: int = 12, name: str = "L-orig", **size: int) -> Variant:
        pictures = {f"{name}{i}.png": scene(i + 1000 * len(name), **size) for i in range(count)}
        source = write_folder(tmp_path / f"{name} source", pictures)
        return make_from_folder(source, tmp_path / name, QUIET)

    return make
