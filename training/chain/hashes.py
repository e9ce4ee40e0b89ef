"""A 64-bit perceptual hash, and all pairs of hashes that differ in few bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
"""[N]: 64 bits per picture."""

SIDE = 32
"""Pixels of the thumbnail that is transformed."""

_ONE = np.uint64(1)
_MOST_WAITING = 1 << 20


def thumbnail(image: Any) -> NDArray[np.float32]:
    """Luminance of a PIL picture at 32 x 32, [32, 32] float32."""
    from PIL import Image

    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def _basis() -> NDArray[np.float32]:
    """The first 8 rows of the DCT-II of 32 points, [8, 32]."""
    n, k = np.arange(SIDE) + 0.5, np.arange(8)[:, None]
    return np.asarray(np.cos(np.pi / SIDE * n * k), np.float32)


def perceptual_hashes(thumbnails: NDArray[np.float32]) -> Hashes:
    """Bits of the 8 x 8 lowest DCT coefficients: which are above the median of the 63 that are not the mean.

    thumbnails: [N, 32, 32]. Source: the pHash of Zauner 2010, section 3.2.2 (there a 7 x 7 mean filter comes first; here box
    averaging does).
    """
    basis = _basis()
    low = (basis @ thumbnails @ basis.T).reshape(len(thumbnails), 64)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
    weights = _ONE << np.arange(64, dtype=np.uint64)
    return np.asarray((bits * weights).sum(axis=1, dtype=np.uint64))


def differing_bits(a: Hashes, b: Hashes) -> NDArray[np.int64]:
    """Hamming distance of each pair. a, b: [N]."""
    x = a ^ b
    x = x - ((x >> _ONE) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    with np.errstate(over="ignore"):
        return np.asarray((x * np.uint64(0x0101010101010101)) >> np.uint64(56), np.int64)


def near_pairs(hashes: Hashes, distance: int) -> Iterator[NDArray[np.int64]]:
    """Pairs of different hashes at most `distance` bits apart, in arrays [M, 2]; a pair may come more than once.

    Cut into `distance + 2` bands of bits, two such hashes agree in full in at least two (pigeonhole principle), so only hashes that
    share two bands are compared. Source: Manku et al. 2007, section 3. Memory is O(N).
    """
    for low, high in combinations(_bands(distance + 2), 2):
        key = low.of(hashes) << np.uint64(high.bits) | high.of(hashes)
        order = np.argsort(key, kind="stable")
        sorted_key, sorted_hashes = key[order], hashes[order]
        candidates = np.arange(len(hashes))
        step = 0
        while len(candidates):
            step += 1
            candidates = candidates[candidates + step < len(hashes)]
            candidates = candidates[sorted_key[candidates] == sorted_key[candidates + step]]
            near = differing_bits(sorted_hashes[candidates], sorted_hashes[candidates + step]) <= distance
            found = candidates[near]
            if len(found):
                yield np.stack([order[found], order[found + step]], axis=1)


@dataclass(frozen=True, slots=True)
class _Band:
    """A run of bits."""

    first: int
    bits: int

    def of(self, hashes: Hashes) -> Hashes:
        """These bits of each hash."""
        return (hashes >> np.uint64(self.first)) & np.uint64((1 << self.bits) - 1)


def _bands(count: int) -> list[_Band]:
    """64 bits cut into so many runs of almost equal length."""
    edges = [64 * i // count for i in range(count + 1)]
    return [_Band(first, end - first) for first, end in pairwise(edges)]


class Groups:
    """Connected members of N, joined pair by pair."""

    def __init__(self, count: int) -> None:
        self._root = np.arange(count, dtype=np.int64)
        self._waiting: list[NDArray[np.int64]] = []

    def join(self, pairs: NDArray[np.int64]) -> None:
        """Put the two of each pair in one group. pairs: [M, 2]."""
        self._waiting.append(pairs)
        if sum(map(len, self._waiting)) > _MOST_WAITING:
            self._settle()

    def roots(self) -> NDArray[np.int64]:
        """The first member of each member's group: [N]."""
        self._settle()
        return self._root

    def _settle(self) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not self._waiting:
            return
        a, b = self._root[np.concatenate(self._waiting)].T
        self._waiting.clear()
        count = len(self._root)
        edges = coo_array((np.ones(len(a), np.bool_), (a, b)), shape=(count, count))
        labels = connected_components(edges, directed=False)[1][self._root]
        _, first = np.unique(labels, return_index=True)
        self._root = np.asarray(first[labels], np.int64)
