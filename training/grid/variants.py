"""The five data variants of the paper and their unions, in small, from one crawl and one teacher.

L-orig: centre crops of what was found, captions as found. L-pp: near copies and small pictures dropped, the best of three crops.
L-pps: the same pictures, captions read from them after cropping. synt: drawn by the teacher for captions by quota.
synt-half: its first half. synt-cur: that half curated by rule. L-pps+synt, L-pps+synt-cur: unions.

Where the paper's people removed or corrected by hand, a rule decides here: a picture that the classifier does not read as its
caption says is removed. No person is imitated, and nothing is removed by hand from L-pp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from npusim.errors import BadInputError
from npusim.training import classifier
from npusim.training.chain.pictures import UnusablePictureError, load
from npusim.training.data.source import captioned
from npusim.training.data.world import Labels, World
from npusim.training.grid.crawl import Bytes, Found, to_floats

SMALLEST = 300 / 512
"""Of the resolution: smaller pictures are dropped. Source: the paper drops pictures under 300 px and trains at 512."""
SAME = 0.999
"""Cosine of two thumbnails from which one is a copy of the other. Ours."""


@dataclass(frozen=True, slots=True)
class Records:
    """Pictures [N, 3, H, W] with captions; labels [N, A]: what each shows, as far as it is known, for the report alone."""

    pictures: Bytes
    captions: list[str]
    labels: Labels

    def take(self, rows: NDArray[np.int64]) -> Records:
        """These rows."""
        return Records(self.pictures[rows], [self.captions[i] for i in rows], self.labels[rows])

    def plus(self, other: Records) -> Records:
        """The union."""
        pictures = np.concatenate([self.pictures, other.pictures])
        return Records(
            pictures, [*self.captions, *other.captions], np.concatenate([self.labels, other.labels])
        )


def read_records(folder: Path, world: World) -> Records:
    """A variant that the user made: an imagefolder, its pictures cut to the world's square.

    Raises:
        BadInputError: no listing, or a picture that cannot be read.
    """
    from PIL import ImageOps

    listed, side = captioned(folder), world.resolution
    pictures = np.empty((len(listed), 3, side, side), np.uint8)
    for row, (path, _) in enumerate(listed):
        try:
            square = ImageOps.fit(load(path), (side, side))
        except UnusablePictureError as error:
            raise BadInputError(f"{path}: {error.reason}; remove its line from metadata.jsonl") from error
        pictures[row] = np.asarray(square, np.uint8).transpose(2, 0, 1)
    unknown = np.full((len(listed), len(world.attributes)), -1)
    return Records(pictures, [caption for _, caption in listed], unknown)


@dataclass(frozen=True, slots=True)
class Reader:
    """The attribute classifier as the chain's only critic: it scores crops, writes captions, and rejects."""

    network: Any
    world: World

    def read(self, pictures: Bytes) -> tuple[Labels, NDArray[np.float64]]:
        """Labels [N, A], and the mean over attributes of the log-probability of what was read [N]."""
        labels, sure = [], []
        ends = np.cumsum([len(a.values) for a in self.world.attributes])[:-1]
        for part in np.array_split(pictures, max(1, len(pictures) // 256)):
            seen, _, chances = classifier.read(self.network, torch.from_numpy(to_floats(part)), self.world)
            best = [head.max(axis=1) for head in np.split(chances.numpy(), ends, axis=1)]
            labels.append(seen.numpy())
            sure.append(np.log(np.stack(best)).mean(axis=0))
        return np.concatenate(labels), np.concatenate(sure)


def cropped(found: Found, start: NDArray[np.int64]) -> Bytes:
    """Squares of the shorter side that begin at column `start` [N]."""
    side = found.wide.shape[2]
    rows = np.arange(len(start))[:, None]
    columns = start[:, None] + np.arange(side)
    return np.asarray(found.wide.transpose(0, 3, 1, 2)[rows, columns].transpose(0, 2, 3, 1))


def as_found(found: Found) -> Records:
    """L-orig: centre crops."""
    start = np.full(len(found.captions), (found.wide.shape[3] - found.wide.shape[2]) // 2)
    return Records(cropped(found, start), found.captions, found.labels)


def unique(wide: Bytes, same: float = SAME) -> NDArray[np.int64]:
    """Rows of the first of each group of near copies: thumbnails of 8 rows, centred, cosine of at least `same`."""
    n, c, h, w = wide.shape
    step = h // 8
    small = wide.reshape(n, c, 8, step, w // step, step).mean(axis=(3, 5)).reshape(n, -1)
    small -= small.mean(axis=1, keepdims=True)
    small = (small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)).astype(np.float32)
    kept = np.zeros(n, bool)
    for first in range(0, n, 512):
        rows = np.arange(first, min(first + 512, n))
        fresh = ~(small[rows] @ small[:first][kept[:first]].T >= same).any(axis=1)
        block = np.triu(small[rows] @ small[rows].T >= same, 1)
        for i, row in enumerate(rows):
            kept[row] = fresh[i] and not (block[: i + 1, i] & kept[rows[: i + 1]]).any()
    return np.flatnonzero(kept)


def cleaned(found: Found, reader: Reader) -> tuple[Records, dict[str, int]]:
    """L-pp: one of each group of copies, no small ones, the crop that the reader is surest about (ties to the centre)."""
    rows = unique(found.wide)
    large = rows[found.short_side[rows] >= SMALLEST * found.wide.shape[2]]
    spare = found.wide.shape[3] - found.wide.shape[2]
    starts = (spare // 2, 0, spare)
    sure = np.stack([reader.read(cropped(found, np.full(len(found.captions), s))[large])[1] for s in starts])
    best = np.zeros(len(found.captions), np.int64)
    best[large] = np.asarray(starts)[sure.argmax(axis=0)]
    counts = {
        "copies dropped": len(found.captions) - len(rows),
        "of them copies": int((np.bincount(found.parent)[found.parent] > 1).sum())
        - int((np.bincount(found.parent) > 1).sum()),
        "small dropped": len(rows) - len(large),
        "crops off the centre": int((best[large] != starts[0]).sum()),
    }
    return Records(cropped(found, best), found.captions, found.labels).take(large), counts


def recaptioned(records: Records, reader: Reader, rng: np.random.Generator) -> Records:
    """L-pps: captions that the classifier reads from the cropped pictures."""
    return Records(
        records.pictures, reader.world.captions(reader.read(records.pictures)[0], rng), records.labels
    )


def by_quota(world: World, rng: np.random.Generator, count: int) -> Labels:
    """Labels in which each value of each attribute is asked for about equally often."""
    drawn = world.draw_labels(rng, 8 * count)
    room = [np.full(len(a.values), -(-count // len(a.values))) for a in world.attributes]
    kept: list[int] = []
    spare: list[int] = []
    for row, values in enumerate(drawn):
        fits = all(left[value] > 0 for left, value in zip(room, values, strict=True))
        (kept if fits and len(kept) < count else spare).append(row)
        if fits:
            for left, value in zip(room, values, strict=True):
                left[value] -= 1
    return np.asarray(drawn[(kept + spare)[:count]])


def synthetic(
    world: World, rng: np.random.Generator, count: int, draw: Callable[[list[str]], Bytes]
) -> Records:
    """synt: what the teacher draws for captions by quota. labels: what was asked for."""
    labels = by_quota(world, rng, count)
    captions = world.captions(labels, rng)
    return Records(draw(captions), captions, labels)


def curated_by_rule(records: Records, reader: Reader, allowed_wrong: int = 0) -> Records:
    """synt-cur: pictures of which the classifier reads at most so many attributes otherwise than was asked. A rule, not a hand."""
    seen, _ = reader.read(records.pictures)
    return records.take(np.flatnonzero((seen != records.labels).sum(axis=1) <= allowed_wrong))


def faults(records: Records, reader: Reader, rng: np.random.Generator) -> dict[str, float]:
    """Share of records whose caption, in full, is what the classifier reads from the picture; and the number of captions."""
    if not records.captions:
        return {"records": 0}
    seen, _ = reader.read(records.pictures)
    right = [
        set(a.split()) == set(b.split())
        for a, b in zip(reader.world.captions(seen, rng), records.captions, strict=True)
    ]
    return {"records": len(records.captions), "caption as read": round(float(np.mean(right)), 4)}
