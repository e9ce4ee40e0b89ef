"""A local CLIP as the chain's reader: it embeds pictures, scores crops, and compares captions with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from npusim.training.chain.filter import AgreementFilter, SizeFilter
from npusim.training.chain.readers import tensor_of
from npusim.training.chain.step import Item, Outcome
from npusim.training.metrics.clip import ClipScorer


@dataclass(frozen=True, slots=True)
class ClipReader:
    """Cosines of pictures with captions and with one another."""

    clip: ClipScorer
    name: str
    side: int
    parallel: bool = False

    @classmethod
    def of(cls, folder: Path) -> ClipReader:
        """From a CLIPModel's local folder."""
        clip = ClipScorer(folder)
        return cls(clip, f"CLIP {folder.name}", clip.side)

    def embed(self, shown: Sequence[Any]) -> NDArray[np.float32]:
        """PIL pictures to unit vectors [N, D]."""
        return self.clip.embed(tensor_of(shown, self.side))

    def agree(self, shown: Sequence[Any], captions: Sequence[str]) -> NDArray[np.float64]:
        """The cosine of each picture with its caption: [N]."""
        return self.clip.score(tensor_of(shown, self.side), list(captions))

    def score(self, crops: Sequence[Any], captions: Sequence[str]) -> NDArray[np.float64]:
        """The same, of crops."""
        return self.agree(crops, captions)


@dataclass(frozen=True, slots=True)
class ClipJudge:
    """An automatic judge, not a person: removes records whose caption and picture agree too little."""

    reader: ClipReader
    least: float
    name: str = "curate"
    reads: Literal["record", "picture"] = "picture"

    def settings(self) -> dict[str, JsonValue]:
        """As variant.json records it."""
        return {"by": f"automatic judge: {self.reader.name}", "least": self.least}

    def apply(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item."""
        return AgreementFilter(SizeFilter(min_side=0), self.reader, self.least).apply(items)
