"""Where a chain begins: an imagefolder of the user's becomes the first variant (the paper's L-orig)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npusim.errors import BadInputError
from npusim.training.chain import pictures
from npusim.training.chain.record import UNSPECIFIED, Record, record_id
from npusim.training.chain.step import Work, checked, fill
from npusim.training.chain.variant import LISTING, Builder, Variant, file_sha256, inside, link, picture_name

NAME = "make"
LONGEST_CAPTION = 10_000
"""Characters; ours. Longer ones are no captions."""

Line = tuple[int, bytes]
"""Number from 1, and the line."""


class _RefusedError(Exception):
    """A line or its picture cannot be used."""

    def __init__(self, cause: str, reason: str) -> None:
        super().__init__(reason)
        self.cause, self.reason = cause, reason


@dataclass(frozen=True, slots=True)
class Intake:
    """Lines of metadata.jsonl to records: path, caption and picture checked, the picture linked."""

    source: Path
    out: Path
    settings: str
    max_pixels: int = pictures.MAX_PIXELS

    def __call__(self, lines: Sequence[Line]) -> list[Record]:
        """One record per line."""
        return [self._record(number, line) for number, line in lines]

    def _record(self, number: int, line: bytes) -> Record:
        named, caption = "", ""
        base = {"step": NAME, "settings": self.settings}
        try:
            named, caption = _read(number, line)
            made = Record(
                id=record_id(NAME, self.settings, number, named), file=named, caption=caption, **base
            )
            return self._with_picture(made)
        except (_RefusedError, pictures.UnusablePictureError) as error:
            return Record(
                id=record_id(NAME, self.settings, number, named),
                file=named,
                caption=caption,
                cause=error.cause,
                reason=error.reason,
                details={"line": number},
                **base,
            )

    def _with_picture(self, record: Record) -> Record:
        path = inside(self.source, record.file)
        if path is None:
            raise _RefusedError("outside", f"file_name {record.file!r} is not inside {self.source.name}")
        if not record.caption:
            raise _RefusedError("no caption", f"{record.file} has no caption")
        upright = _check(path, self.max_pixels)
        suffix = pictures.suffix_for(path) if upright.picture is not None else path.suffix.lower()
        name = picture_name(record.id, suffix)
        if upright.picture is None:
            link(path, self.out / name)
        else:
            pictures.save(upright.picture, self.out / name)
        found = {"file": name, "sha256": file_sha256(self.out / name), "caption_source": UNSPECIFIED}
        details = {"source": record.file}
        return record.model_copy(
            update={**found, "width": upright.width, "height": upright.height, "details": details}
        )


@dataclass(frozen=True, slots=True)
class _Checked:
    """Size, and the picture itself if it had to be turned."""

    width: int
    height: int
    picture: Any = None


def _check(path: Path, max_pixels: int) -> _Checked:
    """Decode the whole picture: damage shows here, not in training."""
    with pictures.opened(path, max_pixels) as image:
        image.load()
        (width, height), turned = image.size, pictures.turned(image)
    if not turned:
        return _Checked(width, height)
    upright = pictures.load(path, max_pixels)
    return _Checked(upright.width, upright.height, upright)


def _read(number: int, line: bytes) -> tuple[str, str]:
    """file_name and text of a line; a caption may be empty.

    Raises:
        _RefusedError: the line is not JSON with a file_name.
    """
    try:
        row = json.loads(line)
        named, caption = row["file_name"], row.get("text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _RefusedError(
            "malformed line", f"line {number} of {LISTING} is not JSON with file_name and text"
        ) from error
    if not isinstance(named, str) or not isinstance(caption, str | None):
        raise _RefusedError(
            "malformed line", f"line {number} of {LISTING}: file_name and text must be strings"
        )
    caption = " ".join((caption or "").split())
    if len(caption) > LONGEST_CAPTION:
        raise _RefusedError(
            "malformed line", f"line {number} of {LISTING}: a caption of {len(caption):,} characters"
        )
    return named, caption


def _lines(listing: Path) -> Iterator[Line]:
    """Lines that are not blank; the last one may lack its newline."""
    try:
        with listing.open("rb") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except OSError as error:
        raise BadInputError(
            f"{listing}: cannot be read ({error.strerror}); --from takes an imagefolder: pictures and a {LISTING} with "
            "file_name and text per line"
        ) from error


def make_from_folder(source: Path, out: Path, work: Work) -> Variant:
    """The first variant from an imagefolder with metadata.jsonl.

    Raises:
        BadInputError: no listing, an empty one, or nothing usable in it.
    """
    listing = source / LISTING
    total = sum(1 for _ in _lines(listing))
    if not total:
        raise BadInputError(f"{listing}: holds no lines, so there is nothing to make a variant of")
    settings = {"from": source.resolve().name, "listing_sha256": file_sha256(listing)}
    with Builder(out, NAME, {**settings, "max_pixels": work.max_pixels}) as builder:
        intake = Intake(source, out, builder.settings_digest, work.max_pixels)
        fill(builder, intake, _lines(listing), total, work)
        return checked(builder.finish())
