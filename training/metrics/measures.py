"""Inception Score, FID and CLIP score of a set of pictures, each only where the user gave the network that defines it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from npusim.training.metrics.statistics import frechet_distance, inception_score

NOT_COMPUTED = "not computed"
SPLITS = 10
"""Parts of the set whose Inception Scores are averaged. Source: Salimans et al. 2016."""


@dataclass(frozen=True, slots=True)
class Measures:
    """What was given: FID's Inception, a CLIP model, and the features of the pictures that FID compares with."""

    inception: Any = None
    clip: Any = None
    reference: Any = None

    def against(self, pictures: Any) -> Measures:
        """The same, with these real pictures [N, 3, H, W] as FID's reference."""
        return self if self.inception is None else replace(self, reference=self.inception.read(pictures)[0])

    def figures(self, pictures: Any, captions: list[str] | None) -> dict[str, Any]:
        """`is`, `fid`, `clip_score` of pictures [N, 3, H, W]: see `Tally.figures`."""
        tally = Tally(self)
        tally.add(pictures, captions)
        return tally.figures()

    def names(self) -> tuple[str, ...]:
        """Which figures can be computed with what was given."""
        return (("is", "fid") if self.inception is not None else ()) + (
            ("clip_score",) if self.clip is not None else ()
        )

    def missing(self) -> str:
        """A sentence on what was not computed and how to have it, empty if all was."""
        wanted = {"IS and FID": ("--inception", self.inception), "CLIP score": ("--clip", self.clip)}
        absent = [
            f"{name}: {NOT_COMPUTED} (give {option})" for name, (option, had) in wanted.items() if had is None
        ]
        return "; ".join(absent)


NOTHING = Measures()


@dataclass(slots=True)
class Tally:
    """What the networks say of a set that comes in parts: memory grows by 12 kB a picture, whatever its size."""

    measures: Measures
    features: list[Any] = field(default_factory=list)
    chances: list[Any] = field(default_factory=list)
    cosines: list[Any] = field(default_factory=list)

    def add(self, pictures: Any, captions: list[str] | None) -> None:
        """Read pictures [N, 3, H, W], -1 to 1; without captions there is no CLIP score."""
        if self.measures.inception is not None:
            features, chances = self.measures.inception.read(pictures)
            self.features.append(np.asarray(features, np.float32))
            self.chances.append(np.asarray(chances, np.float32))
        if self.measures.clip is not None and captions is not None:
            self.cosines.append(self.measures.clip.score(pictures, captions))

    def figures(self) -> dict[str, Any]:
        """`is`, `fid`, `clip_score`: a number, or "not computed" where its network, the reference or the captions are not there."""
        found: dict[str, Any] = dict.fromkeys(("is", "fid", "clip_score"), NOT_COMPUTED)
        if self.chances:
            chances = np.concatenate(self.chances)
            parts = np.array_split(chances, min(SPLITS, len(chances)))
            found["is"] = round(float(np.mean([inception_score([part]) for part in parts])), 4)
        if self.features and self.measures.reference is not None:
            found["fid"] = round(frechet_distance(np.concatenate(self.features), self.measures.reference), 4)
        if self.cosines:
            found["clip_score"] = round(float(np.concatenate(self.cosines).mean()), 5)
        return found


def given(inception: Path | None, clip: Path | None) -> Measures:
    """Load what the user gave.

    Raises:
        BadInputError: one of them cannot be used.
    """
    from npusim.training.metrics.clip import ClipScorer
    from npusim.training.metrics.inception import load_inception

    return Measures(
        inception=load_inception(inception) if inception is not None else None,
        clip=ClipScorer(clip) if clip is not None else None,
    )
