"""Real networks at full size, with seeded weights from the zoo's builder, against onnxruntime in FP32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from npusim.api import load_graph, profile
from npusim.calibrate import choose_scales, measure_ranges, seeded_inputs
from npusim.deployment import run_onnxruntime
from npusim.execute.formats import numbers_for
from npusim.execute.measure import closeness
from npusim.execute.run import execute
from npusim.execute.untiled import execute_untiled
from npusim.models.checkpoints import build
from npusim.scheduler.problem import Infeasible
from npusim.weights import open_weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["taesd-decoder", "clip-text-encoder", "bk-sdm-tiny"])
def test_fp32_agrees_with_onnxruntime_in_a_random_order(tmp_path: Path, name: str) -> None:
    model = build(name, out=tmp_path / "model.onnx")
    graph = load_graph(model)
    inputs = next(seeded_inputs(graph))
    reference = run_onnxruntime(model, inputs)
    found = profile(graph, precision="fp32", tiles="auto")
    assert not isinstance(found, Infeasible)
    numbers = numbers_for(graph, found.plan, open_weights(model, graph))
    outputs = execute(graph, found.plan, found.program, numbers, inputs, order="random", seed=1)
    for output, values in outputs.items():
        assert closeness(values, reference[output]).relative_error < 1e-4


def test_w8a16_of_bk_sdm_tiny_is_the_same_tiled_and_untiled_and_close_to_fp32(tmp_path: Path) -> None:
    model = build("bk-sdm-tiny", out=tmp_path / "model.onnx")
    graph = load_graph(model)
    weights = open_weights(model, graph)
    inputs = next(seeded_inputs(graph))
    found = profile(graph, precision="w8a16", tiles="auto")
    assert not isinstance(found, Infeasible)
    scales = choose_scales(graph, found.plan, measure_ranges(graph, weights, [inputs]))
    numbers = numbers_for(graph, found.plan, weights, scales)
    outputs = execute(graph, found.plan, found.program, numbers, inputs)
    whole = execute_untiled(graph, numbers, inputs)
    reference = run_onnxruntime(model, inputs)
    for output, values in outputs.items():
        np.testing.assert_array_equal(values, whole[output])
        assert closeness(values, reference[output]).sqnr_db > 30
