"""Preference between two sets of pictures of the same captions: blind, sides balanced, one participant at a time.

STUDY/study.json       the pairs, and which set is a and which b
STUDY/answers.jsonl    append-only; undoing appends too
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from npusim.errors import BadInputError, OutputError
from npusim.training import checkpoints
from npusim.training.chain.log import Log, read_lines
from npusim.training.chain.variant import LISTING, inside
from npusim.training.metrics.preference import Answer, Outcome
from npusim.training.pages.server import RefusedError

STUDY, ANSWERS = "study.json", "answers.jsonl"
Side = Literal["a", "b"]


class Pair(BaseModel):
    """Two pictures of one caption; files relative to their sets' folders."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    caption: str
    a: str
    b: str


class Study(BaseModel):
    """study.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    a: str
    b: str
    seed: int
    pairs: tuple[Pair, ...]


def _listed(folder: Path) -> Iterator[tuple[str, str]]:
    """Caption and file of each line of an imagefolder's listing whose picture lies in the folder."""
    for number, line in read_lines(folder / LISTING):
        try:
            row = json.loads(line)
            caption, name = str(row["text"]), str(row["file_name"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"{folder / LISTING}, line {number}: needs file_name and text") from error
        path = inside(folder, name)
        if path is not None and path.is_file():
            yield caption, name


def pair_up(a: Path, b: Path, count: int | None, seed: int) -> Study:
    """Pairs of equal captions, the k-th of one set with the k-th of the other, in random order.

    Raises:
        BadInputError: a set is no imagefolder, or no caption is in both.
    """
    of_b: dict[str, deque[str]] = defaultdict(deque)
    for caption, name in _listed(b):
        of_b[caption].append(name)
    pairs = [
        Pair(caption=caption, a=name, b=of_b[caption].popleft())
        for caption, name in _listed(a)
        if of_b.get(caption)
    ]
    if not pairs:
        raise BadInputError(
            f"{a} and {b}: have no caption in common; give two imagefolders of pictures of the same captions"
        )
    if count is not None and count > len(pairs):
        raise BadInputError(f"--pairs {count}: the two sets have {len(pairs):,} captions in common")
    order = np.random.default_rng(seed).permutation(len(pairs))[:count]
    return Study(a=str(a.resolve()), b=str(b.resolve()), seed=seed, pairs=tuple(pairs[i] for i in order))


def open_study(out: Path, wanted: Study | None = None) -> Study:
    """The study in a folder; begun with the wanted one if it holds none.

    Raises:
        BadInputError: there is none, it cannot be read, or it is another one.
        OutputError: the folder holds something else.
    """
    path = out / STUDY
    if not path.is_file():
        if wanted is None:
            raise BadInputError(
                f"{out}: holds no {STUDY}; begin one: npusim train prefer A B --out {out} --participant NAME"
            )
        if out.is_dir() and any(out.iterdir()):
            raise OutputError(f"{out}: holds other files; choose an empty or new folder with --out")
        checkpoints.write_json(path, wanted.model_dump())
        return wanted
    try:
        found = Study.model_validate(checkpoints.read_json(path))
    except ValidationError as error:
        raise BadInputError(
            f"{path}: is no study ({error.errors()[0]['msg']}); restore it from a copy"
        ) from error
    if wanted is not None and wanted != found:
        raise BadInputError(
            f"{path}: is a study of {found.a} and {found.b} ({len(found.pairs):,} pairs, seed {found.seed}); leave the two "
            "sets out to go on with it, or choose another --out"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the log: an answer, or the undoing of the participant's last one."""

    participant: str
    pair: int
    left: Side
    preferred: Outcome
    undo: bool


def _rows(path: Path) -> Iterator[_Row]:
    for number, line in read_lines(path) if path.is_file() else ():
        try:
            row = json.loads(line)
            if row.get("undo"):
                yield _Row(row["participant"], 0, "a", "tie", True)
            else:
                yield _Row(row["participant"], int(row["pair"]), row["left"], row["preferred"], False)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInputError(
                f"{path}, line {number}: is no answer; restore the file from a copy"
            ) from error


def standing(out: Path) -> dict[str, list[Answer]]:
    """Each participant's answers that were not undone, in order.

    Raises:
        BadInputError: a line that no study wrote.
    """
    found: dict[str, list[Answer]] = defaultdict(list)
    for row in _rows(out / ANSWERS):
        if not row.undo:
            found[row.participant].append(Answer(row.participant, row.pair, row.left, row.preferred))
        elif found[row.participant]:
            found[row.participant].pop()
    return found


def presentation(study: Study, participant: str) -> list[tuple[int, Side]]:
    """In which order a participant sees the pairs, and which set is on the left: each on the left in half of them.

    A function of the study and the participant's name.
    """
    key = hashlib.sha256(f"{study.seed} {participant}".encode()).digest()[:8]
    rng = np.random.default_rng(int.from_bytes(key, "big"))
    count = len(study.pairs)
    first = int(rng.integers(2))  # an odd number of pairs cannot be balanced: chance decides
    sides = rng.permutation((np.arange(count) + first) % 2)
    return [(int(i), "b" if side else "a") for i, side in zip(rng.permutation(count), sides, strict=True)]


@dataclass(slots=True)
class Preference:
    """The page's state for one participant. Nothing that it sends says which set a picture is from."""

    study: Study
    participant: str
    log: Log
    answers: list[Answer]
    order: list[tuple[int, Side]] = field(init=False)
    finished: bool = False

    def __post_init__(self) -> None:
        """Lay out the pairs; answers must be to the first of them."""
        self.order = presentation(self.study, self.participant)
        asked = [pair for pair, _ in self.order[: len(self.answers)]]
        if [answer.pair for answer in self.answers] != asked:
            raise BadInputError(
                f"{self.log.path}: {self.participant}'s answers are not to this study's pairs in its order"
            )

    @property
    def assets(self) -> dict[str, str]:
        """The page's files."""
        return {
            "/": "prefer.html",
            "/page.css": "page.css",
            "/common.js": "common.js",
            "/prefer.js": "prefer.js",
        }

    def state(self) -> dict[str, Any]:
        """What is to be compared now."""
        position = len(self.answers)
        done = position == len(self.order)
        return {
            "position": position,
            "total": len(self.order),
            "participant": self.participant,
            "caption": None if done else self.study.pairs[self.order[position][0]].caption,
            "finished": self.finished,
        }

    def picture(self, name: str) -> Path | None:
        """`12/left`: the picture on that side at that position."""
        number, _, side = name.partition("/")
        if not number.isascii() or not number.isdigit() or int(number) >= len(self.order):
            return None
        if side not in ("left", "right"):
            return None
        pair, left = self.order[int(number)]
        shown = left if side == "left" else _other(left)
        folder, files = (self.study.a, self.study.b), (self.study.pairs[pair].a, self.study.pairs[pair].b)
        return inside(Path(folder[shown == "b"]), files[shown == "b"])

    def act(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """left, right, tie, undo or finish, at a position that must be the current one."""
        kind = wanted.get("do")
        if self.finished:
            raise RefusedError("this study is finished")
        if wanted.get("position") != len(self.answers):
            raise RefusedError(
                "this pair was answered already, perhaps in another window; here is the next one"
            )
        if kind == "undo":
            self._undo()
        elif kind == "finish":
            self.finished = True
        elif kind in ("left", "right", "tie"):
            self._answer(kind)
        else:
            raise RefusedError("choose left, right, tie, undo or finish")
        return self.state()

    def _answer(self, kind: str) -> None:
        if len(self.answers) == len(self.order):
            raise RefusedError("every pair is answered")
        pair, left = self.order[len(self.answers)]
        preferred: Outcome = "tie" if kind == "tie" else left if kind == "left" else _other(left)
        self._write({"pair": pair, "left": left, "preferred": preferred})
        self.answers.append(Answer(self.participant, pair, left, preferred))

    def _undo(self) -> None:
        if not self.answers:
            raise RefusedError("there is nothing to undo")
        self._write({"undo": True})
        self.answers.pop()

    def _write(self, row: dict[str, Any]) -> None:
        """One line, on the disk before the page shows the next pair."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.log.append(json.dumps({"participant": self.participant, **row, "time": now}))
        self.log.flush()


def _other(side: Side) -> Side:
    return "b" if side == "a" else "a"
