"""The attribute classifier of a run as the chain's reader: it scores crops, writes captions, and judges records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from npusim.errors import BadInputError
from npusim.training import checkpoints, classifier
from npusim.training.chain.recaption import labels_of, named, sentences
from npusim.training.chain.record import Record
from npusim.training.chain.step import Item, Outcome, set_aside
from npusim.training.config import preset
from npusim.training.data.world import Labels, World
from npusim.training.run import Run, load_classifier


def finished_run(folder: Path, stage: str) -> Run:
    """A run's folder, read with the preset that it was made with.

    Raises:
        BadInputError: no run, or the stage is not finished.
    """
    path = folder / "run.json"
    facts = checkpoints.read_json(path)
    try:
        run = Run(preset=preset(facts["preset"]), out=folder, seed=int(facts["seed"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"{path}: is no run's record (preset and seed are needed)") from error
    if not run.finished(stage):
        raise BadInputError(
            f"{folder}: its stage {stage} is not finished; run: npusim train {stage} --out {folder}"
        )
    return run


def tensor_of(shown: Sequence[Any], side: int) -> Any:
    """PIL pictures as [N, 3, side, side], -1 to 1: centre squares, resized."""
    from PIL import Image, ImageOps

    fitted = [ImageOps.fit(one, (side, side), Image.Resampling.BICUBIC) for one in shown]
    rows = np.stack([np.asarray(one, np.float32) for one in fitted])
    return torch.from_numpy(rows.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1))


@dataclass(frozen=True, slots=True)
class ClassifierReader:
    """Reads a world's attributes from pictures."""

    world: World
    network: Any
    name: str

    @classmethod
    def of(cls, folder: Path) -> ClassifierReader:
        """From a run's folder."""
        run = finished_run(folder, "classifier")
        name = f"attribute classifier of {run.preset.name} (seed {run.seed})"
        return cls(run.world(), load_classifier(run), name)

    @property
    def side(self) -> int:
        """Pixels of the pictures that it reads."""
        return self.world.resolution

    def read(self, shown: Sequence[Any]) -> tuple[Labels, NDArray[np.float64]]:
        """Labels [N, A] and the probability of each [N, A]."""
        pictures = tensor_of(shown, self.world.resolution)
        seen, _, chances = classifier.read(self.network, pictures, self.world)
        ends = np.cumsum([len(a.values) for a in self.world.attributes])[:-1]
        best = [head.max(axis=1) for head in np.split(chances.double().numpy(), ends, axis=1)]
        return np.asarray(seen.numpy()), np.stack(best, axis=1)

    def score(self, crops: Sequence[Any], captions: Sequence[str]) -> NDArray[np.float64]:
        """Of each crop, the mean logarithm of the probability of what is read in it: [N]."""
        return np.asarray(np.log(np.maximum(self.read(crops)[1], 1e-12)).mean(axis=1))

    def caption(self, shown: Sequence[Any], records: Sequence[Record]) -> list[str | None]:
        """What is read, as the world's sentences."""
        return list(sentences(self.world, self.read(shown)[0], records))


@dataclass(frozen=True, slots=True)
class AttributeJudge:
    """An automatic judge, not a person: removes pictures in which an attribute cannot be read, corrects captions of others.

    sure: probability that the least certain attribute needs. correct: write what is read where it differs from what was asked
    for; else such a record is removed.
    """

    reader: ClassifierReader
    sure: float = 0.8
    correct: bool = True
    name: str = "curate"
    reads: Literal["record", "picture"] = "picture"

    def settings(self) -> dict[str, JsonValue]:
        """As variant.json records it."""
        return {"by": f"automatic judge: {self.reader.name}", "sure": self.sure, "correct": self.correct}

    def apply(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item."""
        seen, chances = self.reader.read([item.picture for item in items])
        return [self._judged(item, *row) for item, *row in zip(items, seen, chances, strict=True)]

    def _judged(self, item: Item, seen: NDArray[np.int64], chances: NDArray[np.float64]) -> Outcome:
        world, least = self.reader.world, int(np.argmin(chances))
        if chances[least] < self.sure:
            attribute = world.attributes[least].name
            reason = f"{attribute} cannot be read ({chances[least]:.2f}, {self.sure:.2f} is asked for)"
            return set_aside("artefact", reason, read=dict(named(world, seen.tolist())))
        asked = labels_of(world, item.record.attributes)
        if asked is None or asked == seen.tolist():
            return Outcome()
        wrong = [a.name for a, x, y in zip(world.attributes, asked, seen.tolist(), strict=True) if x != y]
        read: dict[str, JsonValue] = dict(named(world, seen.tolist()))
        if not self.correct:
            return set_aside("not as asked", f"{', '.join(wrong)}: not what the caption says", read=read)
        caption = sentences(world, seen[None], [item.record])[0]
        details: dict[str, JsonValue] = {"before": item.record.caption, "edited": True, "wrong": list(wrong)}
        return Outcome(caption=caption, caption_source=self.reader.name, details={**details, "read": read})
