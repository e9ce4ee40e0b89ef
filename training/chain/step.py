"""One variant to the next: each kept record of the parent becomes a record, kept or set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pydantic import JsonValue

from npusim.errors import BadInputError, OutputError
from npusim.progress import counter
from npusim.training.chain import pictures
from npusim.training.chain.record import Record, record_id
from npusim.training.chain.stream import stream
from npusim.training.chain.variant import Builder, Variant, inside, link, picture_name

T = TypeVar("T")
_PIXELS_AT_ONCE = 1 << 22
"""Of decoded pictures that a step is given together (or one larger one)."""


@dataclass(frozen=True, slots=True)
class Item:
    """A record of the parent, where its picture lies, and the picture if the step asked for it."""

    record: Record
    path: Path
    picture: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a step decided about one item; what is None stays as it was."""

    cause: str | None = None
    reason: str | None = None
    picture: Any = None
    caption: str | None = None
    caption_source: str | None = None
    details: Mapping[str, JsonValue] = field(default_factory=dict)


def set_aside(cause: str, reason: str, **details: JsonValue) -> Outcome:
    """The record is no part of the variant."""
    return Outcome(cause=cause, reason=reason, details=details)


class Step(Protocol):
    """What one verb does to each record."""

    @property
    def name(self) -> str:
        """The verb."""

    @property
    def reads(self) -> Literal["record", "picture"]:
        """Whether it needs the decoded picture."""

    def settings(self) -> dict[str, JsonValue]:
        """All that its outcomes depend on."""

    def apply(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item."""


@dataclass(frozen=True, slots=True)
class Application:
    """Outcomes to records of the child, with their pictures: what of a step does not depend on which it is."""

    step: str
    parent: Path
    child: Path
    settings: str

    def record(self, record: Record, outcome: Outcome) -> Record:
        """The child's record of the parent's."""
        made = record.model_copy(
            update={
                "id": record_id(self.step, self.settings, record.id),
                "parent": record.id,
                "step": self.step,
                "settings": self.settings,
                "caption": record.caption if outcome.caption is None else outcome.caption,
                "caption_source": outcome.caption_source or record.caption_source,
                "details": dict(outcome.details),
                "cause": outcome.cause,
                "reason": outcome.reason,
            }
        )
        if outcome.cause:
            return made
        if outcome.picture is None:
            return adopted(made, self.parent, self.child)
        name = picture_name(made.id, pictures.suffix_for(Path(record.file)))
        digest = pictures.save(outcome.picture, self.child / name)
        size = {"width": outcome.picture.width, "height": outcome.picture.height}
        return made.model_copy(update={"file": name, "sha256": digest, **size})


@dataclass(frozen=True, slots=True)
class StepWork:
    """A step on batches of a parent's records: what workers run."""

    step: Step
    apply: Application
    max_pixels: int = pictures.MAX_PIXELS

    def __call__(self, records: Sequence[Record]) -> list[Record]:
        """The child's records."""
        return [made for part in self._parts(records) for made in self._applied(part)]

    def _parts(self, records: Sequence[Record]) -> Iterator[list[Record]]:
        """The records in runs whose pictures fit in memory together."""
        part: list[Record] = []
        pixels = 0
        for record in records:
            size = record.width * record.height if self.step.reads == "picture" else 0
            if part and pixels + size > _PIXELS_AT_ONCE:
                yield part
                part, pixels = [], 0
            part.append(record)
            pixels += size
        yield part

    def _applied(self, records: Sequence[Record]) -> list[Record]:
        items, refused = [], {}
        for position, record in enumerate(records):
            try:
                items.append(self._item(record))
            except pictures.UnusablePictureError as error:
                refused[position] = set_aside(error.cause, error.reason)
        outcomes = iter(self.step.apply(items) if items else [])
        return [
            self.apply.record(record, refused.get(position) or next(outcomes))
            for position, record in enumerate(records)
        ]

    def _item(self, record: Record) -> Item:
        path = inside(self.apply.parent, record.file)
        if path is None:
            name = self.apply.parent.name
            raise pictures.UnusablePictureError(
                "outside", f"{record.file!r} is not inside {name}; only files of the variant are read"
            )
        needed = self.step.reads == "picture"
        return Item(record, path, pictures.load(path, self.max_pixels) if needed else None)


def adopted(record: Record, parent: Path, child: Path) -> Record:
    """The record with the parent's picture linked into the child, or set aside if there is none."""
    source = inside(parent, record.file)
    if source is None:
        reason = f"{record.file!r} is not inside {parent.name}; only files of the variant are read"
        return record.model_copy(update={"cause": "outside", "reason": reason})
    name = picture_name(record.id, source.suffix)
    try:
        link(source, child / name)
    except OutputError:
        if source.is_file():
            raise
        reason = f"{record.file} does not exist any more"
        return record.model_copy(update={"cause": "missing", "reason": reason})
    return record.model_copy(update={"file": name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How a step is run."""

    workers: int = 1
    max_pixels: int = pictures.MAX_PIXELS
    quiet: bool = False


def run_step(step: Step, parent: Variant, out: Path, work: Work) -> Variant:
    """Make the child variant, or go on where a killed run stopped.

    Raises:
        BadInputError: nothing is left.
        OutputError: the folder is not ours or cannot be written.
    """
    if out.resolve() == parent.folder.resolve():
        raise BadInputError(f"--out {out}: is the variant that is read; choose another folder")
    with Builder(out, step.name, step.settings(), [parent]) as builder:
        apply = Application(step.name, parent.folder, out, builder.settings_digest)
        function = StepWork(step, apply, work.max_pixels)
        fill(builder, function, parent.kept(), parent.finished.kept, work)
        return checked(builder.finish())


def fill(
    builder: Builder,
    function: Callable[[Sequence[T]], list[Record]],
    items: Iterable[T],
    total: int,
    work: Work,
) -> None:
    """Append the records of all items that the manifest does not have yet."""
    left = total - builder.done
    workers = work.workers if left > 256 else 1
    if left <= 0:
        return
    with counter(builder.card.step, total, done=builder.done, quiet=work.quiet) as advance:
        first = builder.done
        for made in stream(function, islice(items, first, None), workers=workers, first=first):
            for record in made:
                builder.add(record)
            builder.flush()
            advance(len(made))


def checked(variant: Variant) -> Variant:
    """The variant, unless nothing is in it.

    Raises:
        BadInputError: everything was set aside; says why.
    """
    if variant.finished.kept:
        return variant
    causes: dict[str, Record] = {}
    for record in variant.records():
        causes.setdefault(record.cause or "", record)
    examples = "; ".join(f"{cause}: {record.reason}" for cause, record in list(causes.items())[:3])
    raise BadInputError(
        f"{variant.folder}: nothing is left, all {variant.finished.set_aside:,} records were set aside ({examples}); "
        "change the settings and choose another --out"
    )


def described(variant: Variant) -> str:
    """One line for the screen."""
    done = variant.finished
    return f"{variant.folder}: {done.kept:,} kept, {done.set_aside:,} set aside"
