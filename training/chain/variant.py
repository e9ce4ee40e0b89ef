"""A variant: a folder with a manifest, its pictures, and a listing that trainers read.

VARIANT/variant.json     the step, its settings, the parents, and (once finished) the counts
VARIANT/manifest.jsonl   one record per line, kept and set aside, in the parent's order; append-only
VARIANT/pictures/        the kept records' pictures, hard links where a step left them as they were
VARIANT/metadata.jsonl   file_name and text of the kept ones: an imagefolder, what `npusim train kd --data` reads
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from npusim.errors import BadInputError, OutputError
from npusim.files import write_aside
from npusim.training import checkpoints
from npusim.training.chain.log import Log, read_lines
from npusim.training.chain.record import Record
from npusim.training.config import digest

CARD, MANIFEST, LISTING = "variant.json", "manifest.jsonl", "metadata.jsonl"
SCHEMA = 1


class Parent(BaseModel):
    """Which variant a step read, as it was then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    """Relative to the child's folder, so that both can be moved together."""
    manifest_sha256: str


class Finished(BaseModel):
    """Counts of a finished variant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: int
    set_aside: int
    manifest_sha256: str


class Card(BaseModel):
    """variant.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    step: str
    settings: dict[str, JsonValue]
    settings_digest: str
    parents: tuple[Parent, ...] = ()
    finished: Finished | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant's folder and card."""

    folder: Path
    card: Card

    @property
    def name(self) -> str:
        """The folder's name, such as L-pp."""
        return self.folder.resolve().name

    @property
    def finished(self) -> Finished:
        """The counts of a variant that `open_variant` returned."""
        assert self.card.finished is not None
        return self.card.finished

    def records(self) -> Iterator[Record]:
        """All records in order.

        Raises:
            BadInputError: a line is not a record.
        """
        yield from read_manifest(self.folder / MANIFEST)

    def kept(self) -> Iterator[Record]:
        """The records that are part of the variant."""
        return (record for record in self.records() if record.kept)

    def parents(self) -> list[Path]:
        """The parents' folders."""
        return [Path(os.path.normpath(self.folder / parent.folder)) for parent in self.card.parents]


def read_manifest(path: Path) -> Iterator[Record]:
    """The records of a manifest.

    Raises:
        BadInputError: names the line that is not a record.
    """
    for number, line in read_lines(path):
        try:
            yield Record.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the line"
            raise BadInputError(
                f"{path}, line {number}: not a record of a manifest ({where}: {first['msg']}); "
                "restore the file from a copy or make the variant again"
            ) from error


def inside(folder: Path, name: str) -> Path | None:
    """Where a file that a listing names lies, or None if that is outside the folder (by `..`, root or link)."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts:
        return None
    path = folder / pure
    place = os.path.realpath(path) if path.is_symlink() else _real(path.parent)
    return path if os.path.join(place, "").startswith(_real(folder)) else None


@lru_cache(maxsize=4096)
def _real(folder: Path) -> str:
    """The folder's place, links followed, with a slash at its end."""
    return os.path.join(os.path.realpath(folder), "")


def read_card(folder: Path) -> Card:
    """The card of a variant.

    Raises:
        BadInputError: the folder is no variant.
    """
    path = folder / CARD
    if not path.is_file():
        made = "npusim train data make --from IMAGEFOLDER --out VARIANT"
        raise BadInputError(
            f"{folder}: holds no {CARD}, so it is no variant of the data chain; make one: {made}"
        )
    try:
        return Card.model_validate(checkpoints.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInputError(f"{path}: {where}: {first['msg']}; restore it from a copy") from error


def open_variant(folder: Path) -> Variant:
    """A finished variant with at least one kept record.

    Raises:
        BadInputError: no variant, not finished, or empty.
    """
    card = read_card(folder)
    if card.finished is None:
        raise BadInputError(
            f"{folder}: its step ({card.step}) is not finished; run the command that makes it again, it goes on where "
            "it stopped"
        )
    if card.finished.kept == 0:
        raise BadInputError(
            f"{folder}: is empty, all {card.finished.set_aside:,} records were set aside; "
            f"see why: npusim train data stats {folder}"
        )
    return Variant(folder, card)


class Builder:
    """Writes a variant, record by record; a killed one goes on where the manifest ends."""

    def __init__(
        self, folder: Path, step: str, settings: Mapping[str, JsonValue], parents: Sequence[Variant] = ()
    ) -> None:
        """Open the folder, new or begun by the same command.

        Raises:
            BadInputError: it holds another step's or other settings' variant, or one of another state of the parent.
            OutputError: it holds something else.
        """
        self.folder = folder
        plain = json.loads(json.dumps(dict(settings)))
        self.settings_digest = digest({"step": step, **plain})
        inputs = tuple(
            Parent(
                folder=os.path.relpath(parent.folder.resolve(), folder.resolve()),
                manifest_sha256=parent.finished.manifest_sha256,
            )
            for parent in parents
        )
        card = Card(step=step, settings=plain, settings_digest=self.settings_digest, parents=inputs)
        self.card = self._begun(card)
        self.log = Log(folder / MANIFEST)
        for path in filter(_left_over, folder.iterdir()):
            path.unlink()

    def _begun(self, wanted: Card) -> Card:
        """The card that stands there, which must be the wanted one; else the wanted one, written."""
        path = self.folder / CARD
        if not path.is_file():
            if self.folder.is_dir() and any(not _left_over(path) for path in self.folder.iterdir()):
                raise OutputError(
                    f"{self.folder}: holds other files; choose an empty or new folder with --out"
                )
            checkpoints.write_json(path, wanted.model_dump())
            return wanted
        found = read_card(self.folder)
        for key in ("step", "settings", "parents"):
            ours, theirs = getattr(wanted, key), getattr(found, key)
            if ours != theirs:
                raise BadInputError(
                    f"{self.folder}: was begun with another {key} ({_difference(theirs, ours)}); "
                    "repeat that command, or choose another --out"
                )
        return found

    @property
    def done(self) -> int:
        """Records in the manifest."""
        return self.log.count

    def add(self, record: Record) -> None:
        """Append a record; it is finished once `flush` returned."""
        self.log.append(record.model_dump_json(exclude_defaults=True))

    def flush(self) -> None:
        """Push the records so far to the disk."""
        self.log.flush()

    def finish(self) -> Variant:
        """Write the listing and the counts. Returns the finished variant."""
        self.flush()
        if self.card.finished is None:
            counts = {"kept": 0, "set_aside": 0}
            write_aside(self.folder / LISTING, lambda aside: self._list(aside, counts))
            finished = Finished(**counts, manifest_sha256=file_sha256(self.folder / MANIFEST))
            self.card = self.card.model_copy(update={"finished": finished})
            checkpoints.write_json(self.folder / CARD, self.card.model_dump())
        return Variant(self.folder, self.card)

    def _list(self, aside: Path, counts: dict[str, int]) -> None:
        with aside.open("w", encoding="utf-8") as file:
            for record in read_manifest(self.folder / MANIFEST):
                counts["kept" if record.kept else "set_aside"] += 1
                if record.kept:
                    row = {"file_name": record.file, "text": record.caption, "id": record.id}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> Builder:
        """The builder itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep what was added and release the manifest."""
        self.log.close()


def _left_over(path: Path) -> bool:
    """Whether a killed run of ours was writing it: such files are renamed when they are whole."""
    return path.name.startswith((f".{CARD}.", f".{LISTING}."))


def _difference(found: Any, wanted: Any) -> str:
    """The first thing that differs, as "found, asked for"."""
    if isinstance(found, dict):
        for key in sorted({*found, *wanted}):
            if found.get(key) != wanted.get(key):
                return f"{key}: {found.get(key)!r}, asked for {wanted.get(key)!r}"
    if isinstance(found, tuple):
        names = [[parent.folder for parent in parents] for parents in (found, wanted)]
        return (
            "the parent's manifest has changed since"
            if names[0] == names[1]
            else f"{names[0]}, asked for {names[1]}"
        )
    return f"{found}, asked for {wanted}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def picture_name(identity: str, suffix: str) -> str:
    """Where a record's picture lies in its variant: 256 folders, so that none gets too large."""
    return f"pictures/{identity[:2]}/{identity}{suffix}"


def link(source: Path, target: Path) -> None:
    """Give the picture a second name; copy it where the file system cannot.

    Raises:
        OutputError: neither works.
    """
    try:
        try:
            target.unlink()  # a killed run may have been here
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            write_aside(target, lambda aside: shutil.copyfile(source, aside))
    except OSError as error:
        raise OutputError(
            f"{target}: could not be written ({error.strerror}); records finished before are kept: free some space, then "
            "run the same command again to go on"
        ) from error
