"""Sampled search proposes the same points whoever computes them, and finds what a full grid finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from npusim.sweep.evaluate import DONE, INFEASIBLE, Cell
from npusim.sweep.search import search
from npusim.sweep.space import Point, Space, open_space
from npusim.sweep.spec import Spec

AXES = {
    "sram.sram_bytes": {"range": {"from": 100_000, "to": 1_000_000, "steps": 10}},
    "vector_engine.lanes": {"range": {"from": 1, "to": 20, "steps": 20}},
    "tiles": ["none", "sram", "auto"],
}


def space_of(method: str, **fields: Any) -> Space:
    asked = {"method": method, "trials": 60, "batch": 12, "seed": 7}
    spec = {
        "name": "t",
        "networks": ["taesd-decoder", "clip-text-encoder"],
        "npu": "toy",
        "axes": AXES,
        "search": asked,
    }
    return open_space(Spec.model_validate(spec | fields), Path())


def valley(point: Point) -> Mapping[str, Cell]:
    """A made-up machine: fastest with 600,000 bytes and 15 lanes, tiled by `sram`; the smallest SRAM does not do."""
    sram, lanes = int(point.axes["sram.sram_bytes"]), int(point.axes["vector_engine.lanes"])
    latency = 1 + abs(sram - 600_000) / 1e5 + abs(lanes - 15) + (point.axes["tiles"] != "sram")
    return {"status": INFEASIBLE if sram == 100_000 else DONE, "latency_ms": latency, "energy_mj": 1 + lanes}


def proposed(space: Space) -> tuple[list[int], list[Mapping[str, Cell]]]:
    numbers: list[int] = []
    rows: list[Mapping[str, Cell]] = []

    def compute(points: Sequence[Point]) -> list[Mapping[str, Cell]]:
        numbers.extend(p.number for p in points)
        rows.extend(map(valley, points))
        return [valley(p) for p in points]

    search(space, compute)
    return numbers, rows


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("method", ["random", "tpe", "nsga2"])
def test_proposals_depend_on_the_seed_only_and_every_network_gets_each(method: str) -> None:
    space = space_of(method)
    numbers, _ = proposed(space)
    assert len(numbers) == 2 * 60
    assert [n + space.choices for n in numbers[0::2]] == numbers[1::2]
    assert numbers == proposed(space)[0]
    assert (
        numbers
        != proposed(space_of(method, search={"method": method, "trials": 60, "batch": 12, "seed": 8}))[0]
    )


def test_tpe_comes_nearer_to_the_best_point_than_chance() -> None:
    def best(method: str, seed: int) -> float:
        asked = {"method": method, "trials": 60, "batch": 6, "seed": seed}
        _, rows = proposed(space_of(method, objectives=["latency_ms"], search=asked))
        return min(float(r["latency_ms"] or 0) for r in rows if r["status"] == DONE)

    assert sum(best("tpe", s) for s in range(5)) < sum(best("random", s) for s in range(5))
