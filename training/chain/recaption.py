"""New captions, read from the pictures after they were cropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import JsonValue

from npusim.training.chain.record import Record
from npusim.training.chain.step import Item, Outcome, set_aside
from npusim.training.data.world import Labels, World


class Captioner(Protocol):
    """Writes what a picture shows."""

    @property
    def name(self) -> str:
        """As settings and caption sources record it."""

    def caption(self, shown: Sequence[Any], records: Sequence[Record]) -> list[str | None]:
        """One caption per PIL picture; None where it cannot write one."""


def labels_of(world: World, attributes: dict[str, str]) -> list[int] | None:
    """A row of labels from named values; None unless each attribute of the world has one of its values."""
    row = []
    for attribute in world.attributes:
        value = attributes.get(attribute.name)
        if value not in attribute.values:
            return None
        row.append(attribute.values.index(value))
    return row


def named(world: World, row: Sequence[int]) -> dict[str, str]:
    """Named values from a row of labels."""
    return {a.name: a.values[int(i)] for a, i in zip(world.attributes, row, strict=True)}


def sentences(world: World, labels: Labels, records: Sequence[Record]) -> list[str]:
    """One caption per row of labels; which of several sentences is a function of the record's id."""
    rngs = (np.random.default_rng(int(record.id, 16)) for record in records)
    return [world.captions(row[None], rng)[0] for row, rng in zip(labels, rngs, strict=True)]


@dataclass(frozen=True, slots=True)
class LabelCaptioner:
    """From the labels that a picture was drawn from: an oracle, which only procedural worlds have. No model."""

    world: World

    @property
    def name(self) -> str:
        """As settings record it."""
        return f"drawn labels of {self.world.name} (oracle)"

    def caption(self, shown: Sequence[Any], records: Sequence[Record]) -> list[str | None]:
        """Captions from the records' attributes; pictures are not looked at."""
        found: list[str | None] = []
        for record in records:
            row = labels_of(self.world, record.attributes)
            found.append(None if row is None else sentences(self.world, np.asarray([row]), [record])[0])
        return found


@dataclass(frozen=True, slots=True)
class Recaption:
    """Replaces captions; the one before is kept in the details."""

    captioner: Captioner
    name: str = "recaption"
    reads: Literal["record", "picture"] = "picture"

    def settings(self) -> dict[str, JsonValue]:
        """As variant.json records it."""
        return {"captioner": self.captioner.name}

    def apply(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item."""
        shown, records = [item.picture for item in items], [item.record for item in items]
        captions = self.captioner.caption(shown, records)
        return [self._outcome(record, caption) for record, caption in zip(records, captions, strict=True)]

    def _outcome(self, record: Record, caption: str | None) -> Outcome:
        said = " ".join((caption or "").split())
        if not said:
            return set_aside(
                "no caption", f"{self.captioner.name} wrote no caption for it", before=record.caption
            )
        details: dict[str, JsonValue] = {"before": record.caption, "edited": said != record.caption}
        return Outcome(caption=said, caption_source=self.captioner.name, details=details)
