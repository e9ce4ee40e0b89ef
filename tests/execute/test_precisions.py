"""Several precisions in one network: casts are layers, what is timed is what is run, and plans find their way back."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from npusim.api import load_graph, profile
from npusim.calibrate import choose_scales, measure_ranges, seeded_inputs
from npusim.deployment import quantize_directory, run_directory, run_onnxruntime
from npusim.errors import BadInputError
from npusim.execute.formats import KeptNumbers, numbers_for
from npusim.execute.measure import closeness
from npusim.execute.run import execute
from npusim.execute.untiled import execute_untiled
from npusim.export.registry import export
from npusim.export.source import open_source
from npusim.graph import Graph
from npusim.precisions import bound_together, check_precisions, tensor_dtypes, with_casts
from npusim.results import Profile
from npusim.weights import open_weights

from .conftest import NETWORKS

INTEGERS = ("w8a16", "w8a8", "w16a16")


def drawn(graph: Graph, options: tuple[str, ...], seed: int) -> dict[str, str]:
    """A random precision for each set of layers that must share one."""
    choice = random.Random(seed)
    return {n: p for names in bound_together(graph) for p in [choice.choice(options)] for n in names}


def planned(model: Path, options: tuple[str, ...], seed: int) -> Profile:
    graph = load_graph(model)
    found = profile(graph, npu="toy", precision=drawn(graph, options, seed))
    assert isinstance(found, Profile)
    return found


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_mixed_integers_are_the_same_tiled_in_any_order_and_untiled(tmp_path: Path, name: str) -> None:
    model = NETWORKS[name](tmp_path / "model.onnx")
    for seed in range(2):
        found = planned(model, INTEGERS, seed)
        weights = open_weights(model, found.graph)
        inputs = list(seeded_inputs(found.graph, timesteps=(3,)))
        scales = choose_scales(found.graph, found.plan, measure_ranges(found.graph, weights, inputs))
        numbers = KeptNumbers(numbers_for(found.graph, found.plan, weights, scales))
        whole = execute_untiled(found.graph, numbers, inputs[0])
        for order in ("serial", "random"):
            tiled = execute(
                found.graph, found.plan, found.program, numbers, inputs[0], order=order, seed=seed
            )
            for output, values in whole.items():
                np.testing.assert_array_equal(tiled[output], values)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_operand_is_stored_in_its_readers_type_and_no_cast_is_idle(tmp_path: Path, name: str) -> None:
    graph = load_graph(NETWORKS[name](tmp_path / "model.onnx"))
    mixed, precisions = with_casts(graph, drawn(graph, (*INTEGERS, "fp16"), 1))
    dtypes, made = tensor_dtypes(mixed, precisions), {x.output: x for x in mixed.layers}
    casts = {x.output for x in mixed.layers} - {x.output for x in graph.layers}
    read = {t for x in mixed.layers for t in x.reads()}
    assert casts <= read
    for layer in mixed.layers:
        for tensor in layer.reads():
            if mixed.tensors[tensor].kind == "weight" or dtypes[tensor] == "int32":
                continue
            assert (dtypes[tensor] == dtypes[layer.output]) != (layer.output in casts), layer.name
            assert made.get(tensor, layer).output == tensor or mixed.tensors[tensor].kind == "input"


def test_one_precision_for_every_layer_by_name_is_that_precision(tmp_path: Path) -> None:
    graph = load_graph(NETWORKS["self_attention"](tmp_path / "model.onnx"))
    named = profile(graph, npu="toy", precision=dict.fromkeys((x.name for x in graph.layers), "w8a8"))
    plain = profile(graph, npu="toy", precision="w8a8")
    assert isinstance(named, Profile)
    assert isinstance(plain, Profile)
    assert named.plan == plain.plan
    assert named.summary == plain.summary


def test_a_mixed_run_directory_is_quantized_run_and_exported_like_any_other(tmp_path: Path) -> None:
    model = NETWORKS["group_norm_skip"](tmp_path / "model.onnx")
    found = planned(model, INTEGERS, 1)
    run = found.save(tmp_path / "run")
    assert found.summary["precision"] == "mixed"
    assert sum(found.summary["precisions"].values()) == len(found.plan.layers) > len(load_graph(model).layers)
    quantize_directory(run, model)
    result = run_directory(run, model, verify=True)
    (close,) = result.closeness.values()
    assert close.sqnr_db > 20
    export(open_source(run, str(model)), "onnx-qdq", tmp_path / "mixed.onnx")
    inputs = next(seeded_inputs(result.deployment.graph))
    outputs = run_onnxruntime(tmp_path / "mixed.onnx", inputs)
    for name, values in outputs.items():
        assert closeness(values, result.outputs[name]).sqnr_db > close.sqnr_db + 10


def test_assignments_that_cannot_be_are_refused_with_a_sentence(tmp_path: Path) -> None:
    graph = load_graph(NETWORKS["self_attention"](tmp_path / "model.onnx"))
    whole = dict.fromkeys((x.name for x in graph.layers), "w8a16")
    softmax = next(x.name for x in graph.layers if x.op == "softmax")
    for given, sentence in (
        ({**whole, "nowhere": "w8a8"}, "has no layer 'nowhere'"),
        ({softmax: "w8a16"}, "has none; give one to every layer"),
        ({**whole, softmax: "w8a8"}, "give them one precision"),
        ({**whole, softmax: "int4"}, "allowed are w8a16"),
    ):
        with pytest.raises(BadInputError, match=sentence):
            check_precisions(graph, given)
