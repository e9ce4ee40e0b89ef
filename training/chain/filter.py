"""Records that are too small to learn from, or whose caption does not say what the picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from npusim.training.chain.step import Item, Outcome, set_aside


class Agreement(Protocol):
    """How well captions describe pictures."""

    @property
    def name(self) -> str:
        """As settings record it."""

    def agree(self, shown: Sequence[Any], captions: Sequence[str]) -> NDArray[np.float64]:
        """One value per PIL picture and caption: [N]."""


@dataclass(frozen=True, slots=True)
class SizeFilter:
    """By size: no model, no decoding.

    min_side: pixels; the paper drops pictures under 300. max_aspect: longer side over shorter.
    """

    min_side: int = 300
    max_aspect: float | None = None
    name: str = "filter"
    reads: Literal["record", "picture"] = "record"

    def settings(self) -> dict[str, JsonValue]:
        """As variant.json records it."""
        return {"min_side": self.min_side, "max_aspect": self.max_aspect}

    def apply(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item."""
        return [self._outcome(item) for item in items]

    def _outcome(self, item: Item) -> Outcome:
        width, height = item.record.width, item.record.height
        short, long = min(width, height), max(width, height)
        if short < self.min_side:
            return set_aside("too small", f"{width} x {height}: the shorter side is under {self.min_side} px")
        if self.max_aspect is not None and long > self.max_aspect * short:
            return set_aside(
                "too long", f"{width} x {height}: the longer side is over {self.max_aspect} times the shorter"
            )
        return Outcome()


@dataclass(frozen=True, slots=True)
class AgreementFilter:
    """By size, then by how well the caption describes the picture."""

    size: SizeFilter
    agreement: Agreement
    least: float
    name: str = "filter"
    reads: Literal["record", "picture"] = "picture"

    def settings(self) -> dict[str, JsonValue]:
        """As variant.json records it."""
        return {**self.size.settings(), "agreement": self.agreement.name, "least": self.least}

    def apply(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item."""
        outcomes = self.size.apply(items)
        large = [position for position, outcome in enumerate(outcomes) if outcome.cause is None]
        if large:
            shown = [items[position].picture for position in large]
            values = self.agreement.agree(shown, [items[position].record.caption for position in large])
            for position, value in zip(large, values.tolist(), strict=True):
                outcomes[position] = self._judged(value)
        return outcomes

    def _judged(self, value: float) -> Outcome:
        score = round(value, 4)
        if value < self.least:
            reason = f"picture and caption agree to {score}, at least {self.least} is asked for ({self.agreement.name})"
            return set_aside("caption disagrees", reason, agreement=score)
        return Outcome(details={"agreement": score})
