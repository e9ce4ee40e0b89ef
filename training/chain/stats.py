"""What a variant holds: counts by cause, sizes, captions, coverage of attributes, lineage; and whether its files are whole."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npusim.training.chain.record import Record
from npusim.training.chain.variant import MANIFEST, Variant, file_sha256, inside, read_card, read_manifest

_MOST_WORDS = 200_000
"""Ours: so many different words are counted, then no new ones, so that memory stays bounded."""


@dataclass(slots=True)
class Tally:
    """Running sums over records; memory grows with what is different, not with how many there are."""

    kept: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    sources: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    coverage: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    edited: int = 0

    def add(self, record: Record) -> None:
        """Count one record."""
        if record.cause is not None:
            self.causes[record.cause] += 1
            self.examples.setdefault(record.cause, record.reason or "")
            return
        self.kept += 1
        self.sources[record.caption_source] += 1
        said = record.caption.split()
        self.lengths[len(said)] += 1
        for word in said:
            if word in self.words or len(self.words) < _MOST_WORDS:
                self.words[word] += 1
        self.sizes[min(record.width, record.height)] += 1
        for attribute, value in record.attributes.items():
            self.coverage[attribute][value] += 1
        self.edited += bool(record.details.get("edited"))


def tally(folder: Path) -> Tally:
    """Sums over a variant's manifest, finished or not."""
    found = Tally()
    for record in read_manifest(folder / MANIFEST):
        found.add(record)
    return found


def statistics(folder: Path) -> dict[str, Any]:
    """All figures of a variant as plain values.

    Raises:
        BadInputError: no variant.
    """
    card, sums = read_card(folder), tally(folder)
    total = sums.kept + sums.causes.total()
    return {
        "variant": folder.resolve().name,
        "step": card.step,
        "settings": card.settings,
        "finished": card.finished is not None,
        "kept": sums.kept,
        "set_aside": dict(sums.causes.most_common()),
        "examples": sums.examples,
        "removal_rate": sums.causes.total() / total if total else 0.0,
        "edit_rate": sums.edited / total if total else 0.0,
        "caption_sources": dict(sums.sources.most_common()),
        "caption_words": _quantiles(sums.lengths),
        "different_words": len(sums.words),
        "shorter_side_pixels": _quantiles(sums.sizes),
        "coverage": {name: dict(sorted(counts.items())) for name, counts in sorted(sums.coverage.items())},
        "lineage": lineage(folder),
    }


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    """Least, median and largest value of a histogram."""
    if not counts:
        return {}
    ordered, half, seen = sorted(counts), (counts.total() + 1) // 2, 0
    for value in ordered:
        seen += counts[value]
        if seen >= half:
            break
    return {"least": ordered[0], "median": value, "largest": ordered[-1]}


def lineage(folder: Path) -> list[dict[str, Any]]:
    """The variant and all it was made of, nearest first; `found` is False for a parent that is gone or was changed."""
    rows: list[dict[str, Any]] = []
    waiting: list[tuple[Path, str | None]] = [(folder, None)]
    while waiting:
        place, wanted = waiting.pop(0)
        if any(row["folder"] == str(place) for row in rows):
            continue
        if not (place / "variant.json").is_file():
            rows.append({"folder": str(place), "step": "?", "kept": 0, "set_aside": 0, "found": False})
            continue
        card = read_card(place)
        done = card.finished
        counts = {"kept": done.kept if done else 0, "set_aside": done.set_aside if done else 0}
        same = wanted is None or (done is not None and done.manifest_sha256 == wanted)
        rows.append({"folder": str(place), "step": card.step, **counts, "found": same})
        variant = Variant(place, card)
        waiting += list(
            zip(variant.parents(), (parent.manifest_sha256 for parent in card.parents), strict=True)
        )
    return rows


def damaged(variant: Variant) -> list[str]:
    """Read every kept picture again: a sentence for each that is missing or is not the one recorded."""
    found = []
    for record in variant.kept():
        path = inside(variant.folder, record.file)
        if path is None or not path.is_file():
            found.append(f"{record.file}: is missing")
        elif record.sha256 and file_sha256(path) != record.sha256:
            found.append(f"{record.file}: is not the file that was recorded (its SHA-256 differs)")
    return found
