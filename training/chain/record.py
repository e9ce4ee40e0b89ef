"""A record: what a variant's manifest says about one picture, kept or set aside, on one JSON line."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, JsonValue

UNSPECIFIED = "given"
"""Source of a caption that came with the picture."""


class Record(BaseModel):
    """One line of manifest.jsonl.

    Attributes:
        id: 16 hex digits; a function of the step, its settings and the parent, so that a repeated run repeats it.
        file: The picture, relative to the variant's folder. Of a record that was set aside: relative to the parent's
            folder (or the source's), where the picture still lies.
        sha256: Of the file's bytes.
        width, height: Pixels; 0 if unknown.
        caption: What the picture is trained with.
        caption_source: Who wrote it: `given`, `drawn labels`, a model's name, `person` ...
        parent: id of the record that this one was made of; None where the chain begins.
        step: The verb that made it.
        settings: Digest of the step's settings; variant.json has them in full.
        attributes: Attribute -> value, where they are known (drawn from a world, asked for by a quota).
        details: What the step found out: crop box, scores, perceptual hash, whose duplicate ...
        cause: None if the record is kept, else a short code; `stats` counts by it.
        reason: The same as a sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    file: str
    sha256: str | None = None
    width: int = 0
    height: int = 0
    caption: str = ""
    caption_source: str = UNSPECIFIED
    parent: str | None = None
    step: str
    settings: str
    attributes: dict[str, str] = {}
    details: dict[str, JsonValue] = {}
    cause: str | None = None
    reason: str | None = None

    @property
    def kept(self) -> bool:
        """Whether the record is part of the variant."""
        return self.cause is None


def record_id(*parts: object) -> str:
    """The first 16 hex digits of the SHA-256 of these parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
