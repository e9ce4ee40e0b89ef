"""Curation by hand: one record at a time, accepted, rejected, or with its caption corrected.

OUT/decisions.jsonl is append-only; undoing appends too. What stands is what reading it from the start leaves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from npusim.errors import BadInputError
from npusim.training.chain.log import Log, read_lines
from npusim.training.chain.make import LONGEST_CAPTION
from npusim.training.chain.record import Record
from npusim.training.chain.step import Application, Outcome, Work, checked, fill, set_aside
from npusim.training.chain.variant import MANIFEST, Builder, Variant, inside
from npusim.training.pages.server import RefusedError

NAME = "curate"
DECISIONS = "decisions.jsonl"
CAUSES = {
    "artefact": "artefact",
    "caption": "not as the caption says",
    "quality": "poor quality",
    "other": "rejected",
}
"""What a person may reject a record for; the first is what the plain key means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """How a variant is reviewed.

    blind: in random order, without saying where records are from. sample: so many records, drawn by the seed.
    """

    blind: bool = False
    sample: int | None = None
    seed: int = 0

    def settings(self) -> dict[str, JsonValue]:
        """As variant.json records it."""
        return {"by": "person", "blind": self.blind, "sample": self.sample, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about one record: accept, edit or reject."""

    kind: str
    caption: str | None = None
    cause: str | None = None


@dataclass(slots=True)
class Queue:
    """The parent's kept records by their place in its manifest file: 16 bytes of memory each.

    starts: where each kept record's line begins [N]; order: which are reviewed, in which order [M].
    """

    parent: Variant
    starts: NDArray[np.int64]
    order: NDArray[np.int64]

    @classmethod
    def of(cls, parent: Variant, review: Review) -> Queue:
        """Raises BadInputError: a sample larger than the variant."""
        count = parent.finished.kept
        if review.sample is not None and not 1 <= review.sample <= count:
            raise BadInputError(f"--sample {review.sample}: {parent.name} has {count:,} records")
        rng = np.random.default_rng(review.seed)
        order = rng.permutation(count)[: review.sample] if review.blind or review.sample else np.arange(count)
        return cls(parent, np.fromiter(_kept_starts(parent), np.int64, count), np.asarray(order, np.int64))

    def record(self, position: int) -> Record:
        """What is reviewed at this position."""
        with (self.parent.folder / MANIFEST).open("rb") as file:
            file.seek(int(self.starts[self.order[position]]))
            return Record.model_validate_json(file.readline())


def _kept_starts(parent: Variant) -> Iterator[int]:
    start = 0
    for _, line in read_lines(parent.folder / MANIFEST):
        if Record.model_validate_json(line).kept:
            yield start
        start += len(line)


@dataclass(slots=True)
class Curation:
    """The page's state: decisions so far, in the queue's order."""

    queue: Queue
    review: Review
    log: Log
    stack: list[Decision] = field(default_factory=list)
    finished: bool = False

    @property
    def assets(self) -> dict[str, str]:
        """The page's files."""
        return {
            "/": "curate.html",
            "/page.css": "page.css",
            "/common.js": "common.js",
            "/curate.js": "curate.js",
        }

    @property
    def total(self) -> int:
        """Records to review."""
        return len(self.queue.order)

    def counts(self) -> dict[str, int]:
        """Decisions by kind."""
        kinds = [decision.kind for decision in self.stack]
        return {kind: kinds.count(kind) for kind in ("accept", "edit", "reject")}

    def state(self) -> dict[str, Any]:
        """What is to be decided now."""
        position = len(self.stack)
        last = self.stack[-1].kind if self.stack else None
        shown = {
            "position": position,
            "total": self.total,
            "counts": self.counts(),
            "last": last,
            "blind": self.review.blind,
            "causes": CAUSES,
            "finished": self.finished,
        }
        if position == self.total:
            return shown | {"record": None}
        record = self.queue.record(position)
        facts = {"caption": record.caption}
        if not self.review.blind:
            asked = ", ".join(f"{name}: {value}" for name, value in record.attributes.items())
            facts |= {"from": record.step, "source": record.caption_source, "attributes": asked}
        return shown | {"record": facts}

    def picture(self, name: str) -> Path | None:
        """The picture at a position of the queue."""
        if not name.isascii() or not name.isdigit() or int(name) >= self.total:
            return None
        return inside(self.queue.parent.folder, self.queue.record(int(name)).file)

    def act(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """accept, edit, reject, undo or finish, at a position that must be the current one."""
        kind, position = wanted.get("do"), wanted.get("position")
        if self.finished:
            raise RefusedError("this review is finished")
        if position != len(self.stack):
            raise RefusedError(
                "this record was decided already, perhaps in another window; here is the next one"
            )
        if kind == "undo":
            self._undo()
        elif kind == "finish":
            self.finished = True
        elif kind in ("accept", "edit", "reject"):
            self._decide(self._decision(kind, wanted))
        else:
            raise RefusedError("choose accept, edit, reject, undo or finish")
        return self.state()

    def _decision(self, kind: str, wanted: dict[str, Any]) -> Decision:
        if len(self.stack) == self.total:
            raise RefusedError("every record is decided")
        if kind == "accept":
            return Decision("accept")
        if kind == "reject":
            cause = wanted.get("cause", "artefact")
            if cause not in CAUSES:
                raise RefusedError(f"a record is rejected for one of {', '.join(CAUSES)}")
            return Decision("reject", cause=cause)
        caption = wanted.get("caption")
        said = " ".join(caption.split()) if isinstance(caption, str) else ""
        if not said or len(said) > LONGEST_CAPTION:
            raise RefusedError(f"a caption has 1 to {LONGEST_CAPTION:,} characters")
        same = said == self.queue.record(len(self.stack)).caption
        return Decision("accept") if same else Decision("edit", caption=said)

    def _decide(self, decision: Decision) -> None:
        position = len(self.stack)
        row = {"position": position, "id": self.queue.record(position).id, "decision": decision.kind}
        extra = {"caption": decision.caption, "cause": decision.cause}
        self._write(row | {key: value for key, value in extra.items() if value is not None})
        self.stack.append(decision)

    def _undo(self) -> None:
        if not self.stack:
            raise RefusedError("there is nothing to undo")
        self._write({"undo": len(self.stack) - 1})
        self.stack.pop()

    def _write(self, row: Mapping[str, Any]) -> None:
        """One line, on the disk before the page shows the next record."""
        self.log.append(json.dumps({**row, "time": datetime.now(UTC).isoformat(timespec="seconds")}))
        self.log.flush()


def replay(path: Path) -> list[Decision]:
    """The decisions that stand after reading the log from the start.

    Raises:
        BadInputError: a line that no review wrote.
    """
    stack: list[Decision] = []
    for number, line in read_lines(path) if path.is_file() else ():
        try:
            row = json.loads(line)
            if "undo" in row:
                stack.pop()
            else:
                stack.append(Decision(row["decision"], row.get("caption"), row.get("cause")))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BadInputError(
                f"{path}, line {number}: is no decision; restore the file from a copy"
            ) from error
    return stack


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Records of the child from (record, its decision or None, whether it was in the sample)."""

    apply: Application

    def __call__(self, items: Sequence[tuple[Record, Decision | None, bool]]) -> list[Record]:
        """One record per item."""
        return [self.apply.record(r, _outcome(r, decision, drawn)) for r, decision, drawn in items]


def _outcome(record: Record, decision: Decision | None, drawn: bool) -> Outcome:
    if not drawn:
        return set_aside("not in the sample", "it was not drawn for review")
    if decision is None:
        return set_aside("not reviewed", "the review was finished before it")
    if decision.kind == "reject":
        cause = CAUSES.get(decision.cause or "", "rejected")
        return set_aside(cause, f"rejected by hand: {cause}")
    if decision.kind == "edit":
        details: dict[str, JsonValue] = {"before": record.caption, "edited": True}
        return Outcome(caption=decision.caption, caption_source="person", details=details)
    return Outcome()


def publish(builder: Builder, queue: Queue, stack: Sequence[Decision]) -> Variant:
    """Write the curated variant from the decisions that stand.

    Raises:
        BadInputError: nothing was accepted.
    """
    decided = dict(zip(queue.order.tolist(), stack, strict=False))
    drawn = np.zeros(queue.parent.finished.kept, np.bool_)
    drawn[queue.order] = True
    items = (
        (record, decided.get(position), bool(drawn[position]))
        for position, record in enumerate(queue.parent.kept())
    )
    parent = queue.parent
    verdicts = Verdicts(Application(NAME, parent.folder, builder.folder, builder.settings_digest))
    fill(builder, verdicts, items, parent.finished.kept, Work(quiet=True))
    return checked(builder.finish())
