"""L-orig in small: pictures as a crawler might find them, with the faults that the chain of variants removes.

Shares are our assumptions, each chosen to be visible; only the share of records that survive cleaning (119.9 of 212.8 thousand) is
the paper's. Nothing of this imitates LAION itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npusim.training.data.world import Labels, World

Bytes = NDArray[np.uint8]
"""[N, 3, H, W], as a file would hold them."""

COPIES = 0.30
"""Share of records that show an earlier picture again, a little brighter or darker."""
SMALL = 0.15
"""Share that were enlarged from a quarter of the size: below the paper's limit of 300 px for 512."""
WRONG_CAPTION = 0.25
"""Share whose caption says one to three attributes wrongly."""
SHORT_CAPTION = 0.25
"""Share whose caption lost about half of its words."""
OFF_CENTRE = 0.40
"""Share whose subject lies at one end of the longer side, so that a centre crop cuts or moves it."""


@dataclass(frozen=True, slots=True)
class Found:
    """Records before any cleaning.

    wide: [N, 3, H, 3 H / 2]; short_side: pixels before enlargement [N]; captions: as found; labels: what the picture shows [N, A];
    parent: the record that a copy repeats, else itself [N]. The chain reads wide, short_side and captions alone; labels and parent
    serve to report what it did.
    """

    wide: Bytes
    short_side: NDArray[np.int64]
    captions: list[str]
    labels: Labels
    parent: NDArray[np.int64]


def to_bytes(pictures: NDArray[np.float32]) -> Bytes:
    """-1 to 1 as 0 to 255."""
    return np.asarray(np.clip(np.rint((pictures + 1) * 127.5), 0, 255), np.uint8)


def to_floats(pictures: Bytes) -> NDArray[np.float32]:
    """0 to 255 as -1 to 1."""
    return np.asarray(pictures, np.float32) / np.float32(127.5) - np.float32(1)


def crawl(world: World, rng: np.random.Generator, count: int) -> Found:
    """Find `count` records."""
    labels = world.draw_labels(rng, count)
    own = np.arange(count)
    famous = np.maximum(1, count // 20)
    copies = (rng.random(count) < COPIES) & (own >= famous)
    parent = np.where(copies, rng.integers(0, famous, count), own)
    labels = labels[parent]
    pictures = np.concatenate(
        [to_bytes(world.render(labels[part], rng)) for part in np.array_split(own, -(-count // 512))]
    )[parent]
    small = (rng.random(count) < SMALL)[parent]
    pictures[small] = _enlarged(pictures[small], 4)
    wide = _widened(pictures, rng, parent)
    shade = np.where(copies, rng.uniform(0.97, 1.03, count), 1.0)[:, None, None, None]
    wide = np.asarray(np.clip(np.rint(wide * shade), 0, 255), np.uint8)
    side = np.where(small, world.resolution // 4, world.resolution)
    return Found(wide, side, _captions(world, labels, rng), labels, parent)


def _enlarged(pictures: Bytes, factor: int) -> Bytes:
    """The mean of each block of factor x factor pixels, in all of its pixels."""
    n, c, h, w = pictures.shape
    blocks = pictures.reshape(n, c, h // factor, factor, w // factor, factor).mean(axis=(3, 5))
    return np.asarray(np.rint(blocks), np.uint8).repeat(factor, axis=2).repeat(factor, axis=3)


def _widened(pictures: Bytes, rng: np.random.Generator, parent: NDArray[np.int64]) -> Bytes:
    """Half a width of ground beside each picture: left, right, or half on each side."""
    extra = pictures.shape[3] // 2
    off, left = rng.random(len(pictures)) < OFF_CENTRE, rng.random(len(pictures)) < 0.5
    before = np.where(off, np.where(left, 0, extra), extra // 2)[parent]
    wide = np.empty((*pictures.shape[:3], pictures.shape[3] + extra), np.uint8)
    for start in np.unique(before):
        rows = before == start
        edges = ((0, 0), (0, 0), (0, 0), (int(start), int(extra - start)))
        wide[rows] = np.pad(pictures[rows], edges, mode="edge")
    return wide


def _captions(world: World, labels: Labels, rng: np.random.Generator) -> list[str]:
    """What stands beside the pictures: right, partly wrong, or short."""
    count = len(labels)
    kind = rng.random(count)
    said = labels.copy()
    others = world.draw_labels(rng, count)
    for row in np.flatnonzero(kind < WRONG_CAPTION):
        columns = rng.choice(labels.shape[1], rng.integers(1, 4), replace=False)
        said[row, columns] = others[row, columns]
    captions = world.captions(said, rng)
    short = (kind >= WRONG_CAPTION) & (kind < WRONG_CAPTION + SHORT_CAPTION)
    return [_shortened(c, rng) if s else c for c, s in zip(captions, short, strict=True)]


def _shortened(caption: str, rng: np.random.Generator) -> str:
    words = caption.split()
    kept = rng.random(len(words)) < 0.5
    kept[rng.integers(len(words))] = True
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)
