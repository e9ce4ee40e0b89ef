"""IS, FID and CLIP score of pictures in a folder, whatever drew them: the paper's evaluation on COCO's captions, for example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from npusim.errors import BadInputError
from npusim.training.chain.pictures import SUFFIXES, UnusablePictureError, load
from npusim.training.data.source import captioned
from npusim.training.metrics.measures import Measures, Tally

BATCH = 32
SUFFIXES_READ = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
Item = tuple[Path, str | None]


def listed(folder: Path) -> list[Item]:
    """Pictures with captions, as metadata.jsonl lists them; without that file every picture in the folder, by name, without captions.

    Raises:
        BadInputError: no such folder, no picture in it, or a listing that is none.
    """
    if (folder / "metadata.jsonl").is_file():
        return list(captioned(folder))
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder; give a folder of pictures")
    items: list[Item] = [(p, None) for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES_READ]
    if not items:
        raise BadInputError(f"{folder}: holds no pictures; give one with {', '.join(SUFFIXES)} files")
    return items


def tally_folder(folder: Path, measures: Measures, say: Callable[[str], None]) -> Tally:
    """Read every picture once, in batches of one size.

    Raises:
        BadInputError: a picture cannot be read: a figure of the rest would be another one.
    """
    tally, items = Tally(measures), listed(folder)
    done = 0
    for _, same in groupby(map(_loaded, items), key=lambda pair: pair[0].shape):
        while batch := list(islice(same, BATCH)):
            captions = [caption for _, caption in batch if caption is not None]
            pictures = torch.from_numpy(np.stack([picture for picture, _ in batch]))
            tally.add(pictures, captions if len(captions) == len(batch) else None)
            done += len(batch)
            if done % (32 * BATCH) == 0:
                say(f"{folder}: {done:,} of {len(items):,} pictures")
    return tally


def _loaded(item: Item) -> tuple[Any, str | None]:
    """[3, H, W] float32, -1 to 1, and its caption."""
    try:
        values = np.asarray(load(item[0]), np.float32)
    except UnusablePictureError as error:
        raise BadInputError(f"{item[0]}: {error.reason}; remove it, or draw it again") from error
    return values.transpose(2, 0, 1) / np.float32(127.5) - np.float32(1), item[1]


def measure_folder(
    pictures: Path, reference: Path | None, measures: Measures, say: Callable[[str], None]
) -> dict[str, Any]:
    """IS, FID against the pictures of `reference`, and CLIP score, with the number of pictures.

    Raises:
        BadInputError: a folder or a picture cannot be used.
    """
    if reference is not None and measures.inception is not None:
        real = tally_folder(reference, replace(measures, clip=None), say)
        measures = replace(measures, reference=np.concatenate(real.features))
    found = tally_folder(pictures, measures, say)
    return {"pictures": len(listed(pictures)), **found.figures()}
