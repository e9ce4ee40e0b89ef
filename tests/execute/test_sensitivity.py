"""Errors of layers: what is predicted is what is executed; what was measured is kept; a killed measurement goes on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npusim.api import load_graph
from npusim.calibrate import seeded_inputs
from npusim.errors import BadInputError
from npusim.graph import Graph
from npusim.precisions import bound_together
from npusim.sensitivity import run
from npusim.sensitivity.errors import predicted_share, ranked, sqnr_db
from npusim.sensitivity.run import Measuring, measure
from npusim.sensitivity.subject import Inputs
from npusim.sensitivity.walk import Walk, blocks
from npusim.weights import Weights, open_weights

from .conftest import NETWORKS

Network = tuple[Graph, Weights, list[Inputs]]


def network(folder: Path, name: str = "geglu") -> Network:
    model = NETWORKS[name](folder / f"{name}.onnx")
    graph = load_graph(model)
    return graph, open_weights(model, graph), list(seeded_inputs(graph, timesteps=(999, 259)))


def drawn(graph: Graph, options: tuple[str, ...], seed: int) -> dict[str, str]:
    """2 to 4 of the options, each taken more or less often."""
    choice = random.Random(seed)
    taken = choice.sample(options, choice.choice([2, 3, 4]))
    often = [choice.random() ** 2 + 0.02 for _ in taken]
    return {n: p for names in bound_together(graph) for p in choice.choices(taken, often) for n in names}


@pytest.mark.parametrize("name", ["geglu", "group_norm_skip", "cross_attention"])
def test_noise_of_uniform_precisions_is_predicted(tmp_path: Path, name: str) -> None:
    graph, weights, inputs = network(tmp_path, name)
    subject, found = measure(graph, weights, inputs, Measuring(cache=tmp_path))
    for option in found.options:
        uniform = dict.fromkeys(found.layers, option)
        predicted, executed = predicted_share(graph, found, uniform), subject.measured_share(uniform)
        assert sqnr_db(predicted) == pytest.approx(sqnr_db(executed), abs=2.5), option
    worst = [name for name, _ in ranked(found, "w8a8")]
    assert sorted(worst) == sorted(x.name for x in graph.layers)


def test_one_layer_alone_loses_what_was_measured(tmp_path: Path) -> None:
    graph, weights, inputs = network(tmp_path)
    subject, found = measure(graph, weights, inputs, Measuring(cache=tmp_path))
    for names in bound_together(graph):
        alone = dict.fromkeys(found.layers, "w16a16") | dict.fromkeys(names, "w8a8")
        predicted, executed = predicted_share(graph, found, alone), subject.measured_share(alone)
        assert sqnr_db(predicted) == pytest.approx(sqnr_db(executed), abs=2.5), names


def test_a_stopped_measurement_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, weights, inputs = network(tmp_path)
    _, whole = measure(graph, weights, inputs, Measuring(cache=tmp_path / "whole"))
    seen: list[range] = []
    inner = Walk.measure

    def stopping(walk: Walk, block: range) -> Any:
        seen.append(block)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return inner(walk, block)

    monkeypatch.setattr(Walk, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        measure(graph, weights, inputs, Measuring(cache=tmp_path / "stopped"))
    _, resumed = measure(graph, weights, inputs, Measuring(cache=tmp_path / "stopped"))
    assert (
        len(seen) == len(blocks(graph)) * len(inputs) + 1
    )  # nothing was measured twice but the stopped block
    np.testing.assert_array_equal(resumed.own, whole.own)
    assert resumed.cast == whole.cast


def test_measured_errors_are_kept_until_something_they_depend_on_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, weights, inputs = network(tmp_path)
    measure(graph, weights, inputs, Measuring(cache=tmp_path))
    measured: list[int] = []
    monkeypatch.setattr(run, "_one_set", lambda subject, store, number, done, walk: measured.append(number))
    measure(graph, weights, inputs, Measuring(cache=tmp_path))
    assert not measured
    for changed in (inputs[:1], [{k: v + 1 for k, v in one.items()} for one in inputs]):
        with pytest.raises(
            BadInputError, match="is no readable"
        ):  # nothing was measured, so nothing can be read
            measure(graph, weights, changed, Measuring(cache=tmp_path))
    assert measured


def test_several_processes_measure_the_same(tmp_path: Path) -> None:
    graph, weights, inputs = network(tmp_path)
    _, one = measure(graph, weights, inputs, Measuring(cache=tmp_path / "one"))
    _, two = measure(graph, weights, inputs, Measuring(cache=tmp_path / "two", processes=2))
    np.testing.assert_array_equal(one.own, two.own)
    assert one.cast == two.cast


def test_blocks_of_several_layers_cost_little_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, weights, inputs = network(tmp_path)
    monkeypatch.setattr("npusim.sensitivity.walk.SMALL_MACS", 0)
    assert [i for b in blocks(graph) for i in b] == list(range(len(graph.layers)))
    assert len(blocks(graph)) < len(graph.layers)
    subject, found = measure(graph, weights, inputs, Measuring(cache=tmp_path))
    uniform = dict.fromkeys(found.layers, "w8a16")
    assert sqnr_db(predicted_share(graph, found, uniform)) == pytest.approx(
        sqnr_db(subject.measured_share(uniform)), abs=2.5
    )


def test_no_inputs_are_refused(tmp_path: Path) -> None:
    graph, weights, _ = network(tmp_path)
    with pytest.raises(BadInputError, match="give at least one set"):
        measure(graph, weights, [], Measuring(cache=tmp_path))
