"""When each network of a pipeline runs: one evaluation after the other, with what launches and loads cost between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

Loads = Literal["never", "once", "always"]
What = Literal["load", "launch", "evaluation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One network's share of a picture, in integer picoseconds.

    Attributes:
        count: evaluations per picture; None for one in every denoising step.
        evaluation_ps: of one evaluation, as simulated.
        launch_ps: of submitting one evaluation.
        load_ps: of bringing the weights into DRAM once.
        loads: whether that happens never, once per picture or before every evaluation.
    """

    name: str
    count: int | None
    evaluation_ps: int
    launch_ps: int
    load_ps: int
    loads: Loads

    def evaluations(self, steps: int) -> int:
        """Evaluations per picture of so many denoising steps."""
        return steps if self.count is None else self.count

    def load_count(self, steps: int) -> int:
        """How often the weights are loaded."""
        return {"never": 0, "once": 1, "always": self.evaluations(steps)}[self.loads]

    def total_ps(self, steps: int) -> int:
        """All its evaluations, launches and loads."""
        return (
            self.evaluations(steps) * (self.evaluation_ps + self.launch_ps)
            + self.load_count(steps) * self.load_ps
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that takes time: of which part, in which of its evaluations (from 0)."""

    part: int
    what: What
    evaluation: int
    start_ps: int
    end_ps: int


def total_ps(parts: Sequence[Part], steps: int) -> int:
    """Latency of a picture: the sum of its parts."""
    return sum(part.total_ps(steps) for part in parts)


def events(parts: Sequence[Part], steps: int) -> list[Event]:
    """Everything that takes time, in order and without gaps; neighbours that run in every step take turns."""
    found: list[Event] = []
    now = 0
    for index, evaluation in _order(parts, steps):
        part = parts[index]
        spans: list[tuple[What, int]] = [("launch", part.launch_ps), ("evaluation", part.evaluation_ps)]
        if part.loads == "always" or (part.loads == "once" and evaluation == 0):
            spans.insert(0, ("load", part.load_ps))
        for what, length in spans:
            found.append(
                Event(part=index, what=what, evaluation=evaluation, start_ps=now, end_ps=now + length)
            )
            now += length
    return found


def _order(parts: Sequence[Part], steps: int) -> Iterator[tuple[int, int]]:
    """(part, its evaluation) in the order in which they run."""
    for every_step, group in groupby(range(len(parts)), key=lambda i: parts[i].count is None):
        members = list(group)
        if every_step:
            yield from ((i, step) for step in range(steps) for i in members)
        else:
            yield from ((i, n) for i in members for n in range(parts[i].evaluations(steps)))
