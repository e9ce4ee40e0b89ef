"""One square of each picture: the centre or an extreme of the longer side, whichever a scorer likes best.

Source: EdgeFusion, data section: "best of centre crop and the two extremes", chosen by a model. Ties go to the centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from npusim.training.chain.step import Item, Outcome

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""
PLACES = ("centre", "start", "end")


class Scorer(Protocol):
    """Which of several crops shows most of what the picture is about."""

    @property
    def name(self) -> str:
        """As settings record it."""

    @property
    def side(self) -> int:
        """Pixels of the squares that it looks at: larger crops are shrunk to this."""

    def score(self, crops: Sequence[Any], captions: Sequence[str]) -> NDArray[np.float64]:
        """One value per PIL picture, [N]; more is better. `captions`: of the pictures that they were cut from."""


@dataclass(frozen=True, slots=True)
class GradientEnergy:
    """Mean squared difference of neighbouring pixels: no model; detail is taken for content."""

    name: str = "gradient energy"
    side: int = 64

    def score(self, crops: Sequence[Any], captions: Sequence[str]) -> NDArray[np.float64]:
        """One value per crop."""
        return np.asarray([self._energy(crop) for crop in crops], np.float64)

    def _energy(self, crop: Any) -> float:
        grey = np.asarray(crop.convert("L"), np.float32)
        down, right = np.diff(grey, axis=0), np.diff(grey, axis=1)
        return float(np.mean(down * down) if down.size else 0) + float(
            np.mean(right * right) if right.size else 0
        )


def boxes(width: int, height: int) -> dict[str, Box]:
    """The squares of the shorter side at the centre, the start and the end of the longer one; equal ones once."""
    side = min(width, height)
    spare_x, spare_y = width - side, height - side
    corners = ((spare_x // 2, spare_y // 2), (0, 0), (spare_x, spare_y))
    places: dict[Box, str] = {}
    for place, (x, y) in zip(PLACES, corners, strict=True):
        places.setdefault((x, y, x + side, y + side), place)
    return {place: box for box, place in places.items()}


@dataclass(frozen=True, slots=True)
class Crop:
    """Squares, resized to `size` pixels if that is given and they are larger."""

    scorer: Scorer
    size: int | None = None
    name: str = "crop"
    reads: Literal["record", "picture"] = "picture"

    def settings(self) -> dict[str, JsonValue]:
        """As variant.json records it."""
        return {"scorer": self.scorer.name, "size": self.size}

    def apply(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item; all crops of a batch are scored at once."""
        candidates = [boxes(*item.picture.size) for item in items]
        crops, captions, ends = [], [], [0]
        for item, places in zip(items, candidates, strict=True):
            if len(places) > 1:
                crops += self._candidates(item.picture, list(places.values()))
                captions += [item.record.caption] * len(places)
            ends.append(len(crops))
        scores = self.scorer.score(crops, captions) if crops else np.zeros(0)
        return [
            self._outcome(item, places, scores[ends[i] : ends[i + 1]])
            for i, (item, places) in enumerate(zip(items, candidates, strict=True))
        ]

    def _candidates(self, picture: Any, places: list[Box]) -> list[Any]:
        """What the scorer sees of each square: the picture is shrunk once, then cut."""
        from PIL import Image

        short = min(picture.size)
        side = min(self.scorer.side, short)
        width, height = (max(side, round(length * side / short)) for length in picture.size)
        small = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
        corners = [
            (
                min(width - side, round(box[0] * side / short)),
                min(height - side, round(box[1] * side / short)),
            )
            for box in places
        ]
        return [small.crop((x, y, x + side, y + side)) for x, y in corners]

    def _outcome(self, item: Item, places: dict[str, Box], scores: NDArray[np.float64]) -> Outcome:
        chosen = int(np.argmax(scores)) if len(scores) else 0  # the first of equals: the centre
        place, box = list(places.items())[chosen]
        details: dict[str, JsonValue] = {"box": list(box), "place": place}
        if len(scores):
            details["scores"] = [round(float(score), 4) for score in scores]
        picture = item.picture.crop(box) if len(places) > 1 or box[2:] != item.picture.size else None
        if self.size is not None and box[2] - box[0] > self.size:
            picture = self._resized(picture if picture is not None else item.picture, self.size)
            details["resized_to"] = self.size
        return Outcome(picture=picture, details=details)

    def _resized(self, picture: Any, size: int) -> Any:
        from PIL import Image

        return picture.resize((size, size), Image.Resampling.LANCZOS)
