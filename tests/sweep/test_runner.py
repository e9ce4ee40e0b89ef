"""What is sent to the engine and what comes back, with an engine in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from npusim.sweep.evaluate import Outcome, Task, evaluate_batch, version
from npusim.sweep.run import Runner
from npusim.sweep.space import LoadedNetwork, Space, open_space
from npusim.sweep.spec import Spec
from npusim.sweep.store import STORE, Store

Batch = tuple[LoadedNetwork, Sequence[Task]]


class Here:
    """Computes every batch at once, and counts; breaks where it is told to."""

    slots = 1

    def __init__(self, broken: str = "") -> None:
        self.computed: list[str] = []
        self.broken = broken

    def outcomes(
        self, batch: Callable[[], Batch | None], idle: Callable[[], None]
    ) -> Iterator[list[Outcome]]:
        while (given := batch()) is not None:
            network, tasks = given
            self.computed += [t.key for t in tasks]
            idle()
            good = [t for t in tasks if t.key != self.broken]
            yield evaluate_batch(version(), network.graph, good) + [
                Outcome(task=t, row=None, error="broke") for t in tasks if t not in good
            ]


def space_of(folder: Path, **axes: Any) -> Space:
    spec = {
        "name": "s",
        "networks": ["net.onnx", "other.onnx"],
        "npu": "toy",
        "axes": {"tiles": "sram", **axes},
    }
    return open_space(Spec.model_validate(spec), folder)


def runner(folder: Path, engine: Any) -> Runner:
    store = Store(folder / STORE)
    store.begin("s", "spec", "code", ["vector_engine.lanes"])
    return Runner(store=store, start=lambda: engine, sweep="s")


def test_points_of_one_key_are_computed_once_and_all_have_the_row(folder: Path) -> None:
    """Two NPUs of another name but the same content, and each point asked for twice."""
    engine = Here()
    made = runner(folder, engine)
    (folder / "again.toml").write_bytes((Path(__file__).parents[2] / "npusim/presets/toy.toml").read_bytes())
    points = list(space_of(folder, npu=["toy", str(folder / "again.toml")]))
    rows = made.rows([*points, *points])
    assert len(engine.computed) == len(set(engine.computed)) == 2
    assert [r["model"] for r in rows if r] == ["net", "net", "other", "other"] * 2
    assert made.store.count("s") == 4
    assert made.progress.computed == 2
    assert made.progress.twice == 0


def test_a_point_that_breaks_is_named_not_stored_and_tried_again(folder: Path) -> None:
    points = list(space_of(folder, **{"vector_engine.lanes": [2, 4]}))
    made = runner(folder, Here(broken=points[1].key))
    assert [r is None for r in made.rows(points)] == [False, True, False, False]
    assert made.progress.crashed == {points[1].key: "broke"}
    made.store.close()
    again = runner(folder, engine := Here())
    assert None not in again.rows(points)
    assert engine.computed == [points[1].key]


def test_what_a_dead_client_claimed_is_taken_over_and_a_living_one_is_left_alone(folder: Path) -> None:
    points = list(space_of(folder))
    first, second = Store(folder / STORE), Store(folder / STORE)
    keys = [p.key for p in points]
    assert first.claim(keys) == set(keys)
    assert second.claim(keys) == set()
    with second._writing():
        second.db.execute("update owners set pid = 99999999 where owner = ?", (first.owner,))
    assert second.claim(keys) == set(keys)
    with first._writing():
        first.db.execute(
            "update owners set host = 'elsewhere', seen = seen - 1000 where owner = ?", (second.owner,)
        )
    assert first.claim(keys) == set(keys)
