"""Duplicates: one picture of each group of near copies stays, the largest (the first of equals).

Records of equal SHA-256 are joined; then records whose perceptual hashes differ in at most `distance` bits, if an embedding is
given only those whose embeddings agree too. The paper cites a method for texts and does not say how pictures were compared: this is
our choice.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from npusim.errors import BadInputError
from npusim.progress import counter
from npusim.training.chain import pictures
from npusim.training.chain.hashes import (
    SIDE,
    Groups,
    differing_bits,
    near_pairs,
    perceptual_hashes,
    thumbnail,
)
from npusim.training.chain.log import Log, read_lines
from npusim.training.chain.record import Record
from npusim.training.chain.step import Application, Outcome, Work, checked, fill, set_aside
from npusim.training.chain.stream import stream
from npusim.training.chain.variant import Builder, Variant, inside

NAME = "dedup"
HASHES = "hashes.jsonl"
"""In the variant's folder: hash and embedding of each kept record of the parent, null if it cannot be read."""

MOST_BITS = 16
"""Ours: beyond it so many unrelated pictures agree that comparing them takes the square of their number."""

NEIGHBOURS = 32
"""Ours: of equal hashes each is compared with the first and with so many others, as larger sets would take the square of their
number."""


class Embedder(Protocol):
    """Pictures to unit vectors; near copies have a cosine near 1."""

    @property
    def name(self) -> str:
        """As settings record it."""

    @property
    def side(self) -> int:
        """Pixels of the shorter side that it needs."""

    @property
    def parallel(self) -> bool:
        """Whether it may be sent to worker processes."""

    def embed(self, shown: Sequence[Any]) -> NDArray[np.float32]:
        """PIL pictures to [N, D]."""


@dataclass(frozen=True, slots=True)
class ThumbnailEmbedder:
    """Colour at 8 x 8, centred and scaled: no weights. Tells apart what a hash of luminance does not."""

    name: str = "thumbnail"
    side: int = 32
    parallel: bool = True

    def embed(self, shown: Sequence[Any]) -> NDArray[np.float32]:
        """PIL pictures to [N, 192]."""
        from PIL import Image

        small = [np.asarray(one.resize((8, 8), Image.Resampling.BOX), np.float32).ravel() for one in shown]
        rows = np.stack(small)
        rows -= rows.mean(axis=1, keepdims=True)
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """What counts as the same picture."""

    distance: int = 8
    """Bits that two perceptual hashes may differ in. Ours: pictures made 20 % brighter differ in up to 8 where much of them saturates;
    without an embedder 4 is safer."""
    embedder: Embedder | None = field(default_factory=ThumbnailEmbedder)
    cosine: float = 0.98
    """Of the embeddings, if there is an embedder. Ours, for thumbnails."""

    def settings(self) -> dict[str, JsonValue]:
        """As variant.json records it."""
        name = self.embedder.name if self.embedder else None
        return {"distance": self.distance, "embedder": name, "cosine": self.cosine if name else None}


@dataclass(frozen=True, slots=True)
class Measure:
    """Hash and embedding of each record's picture as a line of JSON; null where it cannot be read."""

    folder: Path
    embedder: Embedder | None
    max_pixels: int

    def __call__(self, records: Sequence[Record]) -> list[str]:
        """One line per record."""
        shown: dict[int, Any] = {}
        for position, record in enumerate(records):
            try:
                shown[position] = self._reduced(record)
            except pictures.UnusablePictureError:
                continue  # it is set aside with its reason when the variant is written
        lines = ["null"] * len(records)
        if shown:
            hashes = perceptual_hashes(np.stack([thumbnail(one) for one in shown.values()])).tolist()
            vectors = (
                self.embedder.embed(list(shown.values())) if self.embedder else np.zeros((len(hashes), 0))
            )
            for position, value, vector in zip(shown, hashes, vectors, strict=True):
                packed = base64.b64encode(vector.astype(np.float16).tobytes()).decode()
                lines[position] = json.dumps([f"{value:016x}", packed])
        return lines

    def _reduced(self, record: Record) -> Any:
        """The picture, decoded no larger than needed."""
        path = inside(self.folder, record.file)
        if path is None:
            raise pictures.UnusablePictureError("outside", record.file)
        side = max(4 * SIDE, self.embedder.side if self.embedder else 0)
        with pictures.opened(path, self.max_pixels) as image:
            image.draft("RGB", (side, side))
            return image.convert("RGB")


def _measured(
    parent: Variant, out: Path, likeness: Likeness, work: Work, table: IO[bytes]
) -> tuple[NDArray[np.uint64], NDArray[np.float16]]:
    """Hashes [N] and embeddings [N, D] of the kept records; goes on where a killed run stopped.

    An unreadable one gets a random hash and a vector of zeros. Embeddings are mapped from `table`.
    """
    total, embedder = parent.finished.kept, likeness.embedder
    measure = Measure(parent.folder, embedder, work.max_pixels)
    with Log(out / HASHES) as log, counter("hash", total, done=log.count, quiet=work.quiet) as advance:
        parallel = total - log.count > 256 and (embedder is None or embedder.parallel)
        records = islice(parent.kept(), log.count, None)
        for lines in stream(measure, records, workers=work.workers if parallel else 1):
            for line in lines:
                log.append(line)
            log.flush()
            advance(len(lines))
    hashes, width = np.random.default_rng(0).integers(0, 1 << 64, total, np.uint64), 0
    for position, (_, row_line) in enumerate(read_lines(out / HASHES)):
        row = json.loads(row_line)
        if row is not None:
            packed = base64.b64decode(row[1])
            hashes[position], width = int(row[0], 16), len(packed)
            table.seek(position * width)
            table.write(packed)
    table.truncate(max(1, total * width))
    table.flush()
    shape = (total, width // 2)
    vectors = np.memmap(table, np.float16, "r", shape=shape) if width else np.zeros((total, 0), np.float16)
    return hashes, vectors


def _equal_pairs(keys: NDArray[np.uint64], neighbours: int) -> Iterator[NDArray[np.int64]]:
    """Pairs of positions with equal keys: each with the first, and with the next `neighbours` of them. Arrays [M, 2]."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    yield np.stack([order[np.repeat(starts, lengths)], order], axis=1)
    for step in range(1, neighbours + 1):
        same = np.flatnonzero(ordered[step:] == ordered[:-step])
        if not len(same):
            return
        yield np.stack([order[same], order[same + step]], axis=1)


def _candidates(hashes: NDArray[np.uint64], likeness: Likeness) -> Iterator[NDArray[np.int64]]:
    """Pairs of positions whose hashes are near enough: arrays [M, 2]."""
    yield from _equal_pairs(hashes, NEIGHBOURS if likeness.embedder else 0)
    values, first = np.unique(hashes, return_index=True)
    for pairs in near_pairs(values, likeness.distance):
        yield first[pairs]


def _agreeing(
    vectors: NDArray[np.float16], pairs: NDArray[np.int64], likeness: Likeness
) -> NDArray[np.int64]:
    """The pairs [M, 2] whose embeddings agree; all of them without an embedder."""
    if likeness.embedder is None:
        return pairs
    found = [pairs[:0]]
    for start in range(0, len(pairs), 4096):
        part = pairs[start : start + 4096]
        a, b = (vectors[part[:, side]].astype(np.float32) for side in (0, 1))
        found.append(part[(a * b).sum(axis=1) >= likeness.cosine])
    return np.concatenate(found)


def _first_bytes(parent: Variant) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
    """Of every kept record 64 bits of its SHA-256 (of its id if unknown), its id, and its pixels: [N] each."""
    total = parent.finished.kept
    sums, names, sizes = np.zeros(total, np.uint64), np.zeros(total, np.uint64), np.zeros(total, np.int64)
    for position, record in enumerate(parent.kept()):
        sums[position] = int((record.sha256 or record.id)[:16], 16)
        names[position] = int(record.id, 16)
        sizes[position] = record.width * record.height
    return sums, names, sizes


def _keepers(roots: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each group the largest member, the first of equals, for every member: [N]."""
    order = np.lexsort((np.arange(len(roots)), -sizes, roots))
    grouped = roots[order]
    starts = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]])
    lengths = np.diff(np.r_[starts, len(grouped)])
    keeper = np.empty_like(roots)
    keeper[order] = np.repeat(order[starts], lengths)
    return keeper


@dataclass(frozen=True, slots=True)
class Verdict:
    """Writes records of the child from (record, hash, id of the one that is kept instead or None, bits between them)."""

    apply: Application

    def __call__(self, items: Sequence[tuple[Record, str, str | None, int]]) -> list[Record]:
        return [self._record(*item) for item in items]

    def _record(self, record: Record, value: str, keeper: str | None, bits: int) -> Record:
        if keeper is None:
            return self.apply.record(record, Outcome(details={"perceptual_hash": value}))
        same = f"the same picture as {keeper} ({bits} bits of the perceptual hash differ)"
        found = set_aside("duplicate", same, duplicate_of=keeper, bits=bits, perceptual_hash=value)
        return self.apply.record(record, found)


def dedup(parent: Variant, out: Path, likeness: Likeness, work: Work) -> Variant:
    """The variant without near copies.

    Raises:
        BadInputError: a distance or cosine that makes no sense.
    """
    if not 0 <= likeness.distance <= MOST_BITS:
        raise BadInputError(f"--distance {likeness.distance}: of 64 bits 0 to {MOST_BITS} may differ")
    if not -1 <= likeness.cosine <= 1:
        raise BadInputError(f"--cosine {likeness.cosine}: a cosine lies between -1 and 1")
    with Builder(out, NAME, likeness.settings(), [parent]) as builder:
        if builder.card.finished is None:
            with tempfile.TemporaryFile(dir=out) as table:
                hashes, vectors = _measured(parent, out, likeness, work, table)
                names, keepers = _groups(parent, hashes, vectors, likeness)
            verdict = Verdict(Application(NAME, parent.folder, out, builder.settings_digest))
            items = _judged(parent, hashes, names, keepers)
            fill(builder, verdict, items, parent.finished.kept, replace(work, workers=1))
        return checked(builder.finish())


def _groups(
    parent: Variant, hashes: NDArray[np.uint64], vectors: NDArray[np.float16], likeness: Likeness
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Every record's id, and the position of the one that is kept for it: [N] each."""
    sums, names, sizes = _first_bytes(parent)
    groups = Groups(len(sums))
    for pairs in _equal_pairs(sums, 0):
        groups.join(pairs)
    for pairs in _candidates(hashes, likeness):
        groups.join(_agreeing(vectors, pairs, likeness))
    return names, _keepers(groups.roots(), sizes)


def _judged(
    parent: Variant, hashes: NDArray[np.uint64], names: NDArray[np.uint64], keepers: NDArray[np.int64]
) -> Iterator[tuple[Record, str, str | None, int]]:
    """What `Verdict` needs of each kept record of the parent."""
    bits = differing_bits(hashes, hashes[keepers])
    for position, record in enumerate(parent.kept()):
        keeper = int(keepers[position])
        other = None if keeper == position else f"{int(names[keeper]):016x}"
        yield record, f"{int(hashes[position]):016x}", other, int(bits[position])
