"""Inception Score, FID and CLIP score of a set of pictures, each only where the user gave the network that defines it."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        """`is`, `fid`, `clip_score`: a number, or "not computed" where its network (or the captions) are not there."""
        found: dict[str, Any] = dict.fromkeys(("is", "fid", "clip_score"), NOT_COMPUTED)
        if self.inception is not None:
            features, chances = self.inception.read(pictures)
            parts = np.array_split(chances, min(SPLITS, len(chances)))
            found["is"] = round(float(np.mean([inception_score([part]) for part in parts])), 4)
            if self.reference is not None:
                found["fid"] = round(frechet_distance(features, self.reference), 4)
        if self.clip is not None and captions is not None:
            found["clip_score"] = round(float(self.clip.score(pictures, captions).mean()), 5)
        return found

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
