"""Programs compute what onnxruntime computes, whatever the tiling, the policy, the order and the size of the SRAM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npusim.calibrate import choose_scales, measure_ranges
from npusim.execute.measure import closeness
from npusim.execute.order import Order
from npusim.execute.run import execute
from npusim.execute.untiled import execute_untiled

from .conftest import NETWORKS, Case

Cases = Callable[[str], Case]

#: Enough for the smallest pieces of every network, far too little for whole layers.
TIGHT = {
    "self_attention": 3072,
    "self_attention_batch2": 3072,
    "group_norm_skip": 6144,
    "early_statistics": 6144,
    "grouped": 4096,
    "conv_silu_conv": 6144,
}


def tight(name: str, tiles: str = "auto") -> int:
    """Bytes of SRAM; three attention tiles need more than the many that `auto` would choose."""
    return 10240 if tiles == "3" else TIGHT.get(name, 2048)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("tiles", ["none", "sram", "auto", "3"])
@pytest.mark.parametrize("policy", ["serial", "decoupled"])
@pytest.mark.parametrize("little", [False, True])
def test_fp32_agrees_with_onnxruntime(cases: Cases, name: str, tiles: str, policy: str, little: bool) -> None:
    case = cases(name)
    sram = tight(name, tiles) if little else 65536
    plan, program = case.plan(tiles=tiles, policy=policy, sram_bytes=sram)
    outputs = execute(case.graph, plan, program, case.numbers(plan), case.inputs)
    for output, values in outputs.items():
        assert closeness(values, case.reference[output]).relative_error < 1e-5, output


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["w8a16", "w8a8", "w16a16", "fp16"])
def test_tiled_equals_untiled_exactly_in_integers(cases: Cases, name: str, precision: str) -> None:
    case = cases(name)
    plan, program = case.plan(precision=precision, tiles="auto", sram_bytes=tight(name))
    scales = choose_scales(case.graph, plan, measure_ranges(case.graph, case.weights, [case.inputs]))
    numbers = case.numbers(plan, scales)
    tiled = execute(case.graph, plan, program, numbers, case.inputs)
    whole = execute_untiled(case.graph, numbers, case.inputs)
    for output, values in tiled.items():
        if precision.startswith("w"):
            np.testing.assert_array_equal(values, whole[output])
        floor: dict[str, Any] = {"w8a8": 15, "w8a16": 30, "w16a16": 60, "fp16": 45}
        assert closeness(values, case.reference[output]).sqnr_db > floor[precision]


@pytest.mark.parametrize("name", NETWORKS)
def test_any_order_that_the_dependencies_allow_gives_the_same_bits(cases: Cases, name: str) -> None:
    case = cases(name)
    plan, program = case.plan(sram_bytes=tight(name))
    numbers = case.numbers(plan)
    serial = execute(case.graph, plan, program, numbers, case.inputs, order="serial")
    orders: list[tuple[Order, int]] = [("random", seed) for seed in range(20)] + [("parallel", 0)] * 5
    for order, seed in orders:
        shuffled = execute(case.graph, plan, program, numbers, case.inputs, order=order, seed=seed)
        for output, values in serial.items():
            np.testing.assert_array_equal(values, shuffled[output])
