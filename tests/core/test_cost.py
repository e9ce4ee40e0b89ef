"""Costs of single commands against counting by hand: array steps, lane operations, transfers."""

from __future__ import annotations

import inspect
import re
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npusim import cost
from npusim.arrays import Array, product_steps
from npusim.cost import (
    Engines,
    arrays_of,
    dma_ps,
    lane_operations,
    product_ps,
    setup_ps,
    transfer_bytes,
    vector_ps,
)
from npusim.graph import Graph
from npusim.hardware import load_npu, with_values

stable = settings(derandomize=True, deadline=None, max_examples=150)
TOY = load_npu("toy")
EXYNOS = load_npu("exynos2400")
sizes = st.integers(1, 9)


def steps_by_hand(unit: Array, extents: tuple[int, int, int, int]) -> int:
    """Deal every array-sized block of every product to an engine, in one of three ways; count the busiest engine's blocks."""
    batch, m, n, k = extents
    rows, cols = range(0, m, unit.rows), range(0, n, unit.cols)
    depth = len(range(0, k, unit.depth))
    best = []
    for axis in range(3):
        busy = [0] * unit.engines
        for index in product(range(batch), range(len(rows)), range(len(cols))):
            busy[index[axis] % unit.engines] += depth
        best.append(max(busy))
    return min(best)


@stable
@given(sizes, sizes, sizes, sizes, st.integers(1, 4), st.tuples(*[st.integers(1, 4)] * 3))
def test_array_steps_are_those_of_dealing_out_every_block(
    batch: int, m: int, n: int, k: int, engines: int, array: tuple[int, int, int]
) -> None:
    unit = Array(*array, engines)
    assert product_steps(unit, batch, m, n, k) == steps_by_hand(unit, (batch, m, n, k))


@stable
@given(sizes, sizes, sizes, sizes, st.integers(1, 4))
def test_array_steps_never_beat_the_peak(batch: int, m: int, n: int, k: int, engines: int) -> None:
    unit = Array(2, 3, 2, engines)
    assert product_steps(unit, batch, m, n, k) * prod(unit) >= batch * m * n * k


@stable
@given(st.lists(st.tuples(sizes, sizes, sizes, sizes), min_size=1, max_size=5), st.booleans())
def test_columns_of_commands_cost_what_single_commands_cost(
    extents: list[tuple[int, int, int, int]], shared: bool
) -> None:
    gang: Engines = (("GNPU", 2), ("SNPU", 2)) if shared else (("GNPU", 2),)
    arrays = arrays_of(EXYNOS, gang)
    columns = [np.asarray(c, dtype=np.int64) for c in zip(*extents, strict=True)]
    together = product_ps(EXYNOS, arrays, columns, "int8xint16", activations=False)
    assert together.tolist() == [
        product_ps(EXYNOS, arrays, e, "int8xint16", activations=False) for e in extents
    ]


def test_a_product_of_the_64x64_attention_by_hand() -> None:
    """Q K^T: 8 heads x 4096 x 4096 x 40 on two 8 x 16 x 64 arrays: the depth of 40 fills one step of 64."""
    steps = 8 // 2 * (4096 // 8) * (4096 // 16)
    assert product_steps(arrays_of(EXYNOS, (("GNPU", 2),))[0], 8, 4096, 4096, 40) == steps
    seconds = steps / (1.196e9 * 0.25 * EXYNOS.tensor_efficiency.activations)
    time = product_ps(
        EXYNOS, arrays_of(EXYNOS, (("GNPU", 2),)), (8, 4096, 4096, 40), "int16xint16", activations=True
    )
    assert time == pytest.approx(seconds * 1e12, rel=1e-9)


@stable
@given(st.integers(0, 10**6), st.sampled_from((1.0, 4.0, 6.28)), st.integers(1, 4))
def test_vector_time_is_whole_cycles_of_all_lanes(elements: int, operations: float, engines: int) -> None:
    cycles = ceil(elements * operations / (8 * engines))
    assert vector_ps(TOY, engines, elements, operations) == cycles * 1000  # 1 GHz


def test_a_function_that_the_table_does_not_list_costs_the_default() -> None:
    assert lane_operations(EXYNOS, "hard_swish") == EXYNOS.vector_lane_operations["default"]
    assert lane_operations(EXYNOS, "softmax") == EXYNOS.vector_lane_operations["softmax"]


@stable
@given(st.integers(0, 2**34), st.integers(1, 10**5), st.integers(0, 10**6), st.integers(0, 1000))
def test_transfers_take_longer_with_more_bytes_and_with_more_runs(
    size: int, runs: int, more: int, cuts: int
) -> None:
    base = dma_ps(EXYNOS, size, runs)
    assert dma_ps(EXYNOS, size + more, runs) >= base
    assert dma_ps(EXYNOS, size, runs + cuts) >= base
    assert base >= setup_ps(EXYNOS) + size / EXYNOS.dram.dram_shared_bytes_per_s * 1e12 - 1


@stable
@given(st.integers(1, 2**32), st.integers(1, 10**4))
def test_transfer_time_is_set_up_and_bytes_and_a_fixed_overhead_per_run(size: int, runs: int) -> None:
    exact = 1e-6 + (size + runs * EXYNOS.dma.run_overhead_bytes) / EXYNOS.dma.channel_bytes_per_s
    assert dma_ps(EXYNOS, size, runs) == pytest.approx(exact * 1e12, rel=1e-9, abs=1000)


def test_one_long_run_moves_faster_than_many_short_ones_of_the_same_bytes() -> None:
    """V's 80-byte runs against K's one run: the paper's 0.4."""
    short = transfer_bytes(EXYNOS, 4096 * 80, 4096)
    assert 0.2 < 4096 * 80 / short < 0.5


@pytest.mark.parametrize("rate", [10**9, 4 * 10**9, 10**12])
def test_a_channel_is_never_faster_than_the_shared_bandwidth(rate: int) -> None:
    npu = with_values(TOY, {"dma.channel_bytes_per_s": rate})
    slower = min(rate, TOY.dram.dram_shared_bytes_per_s)
    assert dma_ps(npu, 10**6 - 16, 1) - setup_ps(npu) == pytest.approx(10**6 * 1e12 / slower, rel=1e-6)


def test_no_tensor_layer_or_role_is_named_in_the_cost_model(unet: Graph) -> None:
    """One function of extents, one of bytes and runs: no word of the network or of Table 6 in the source."""
    source = inspect.getsource(cost)
    words = set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", source))
    names: set[str] = set()
    for layer in unet.layers:
        names.update(re.findall(r"[A-Za-z_]{3,}", layer.name))
    general = {"norm", "conv", "time", "out", "net", "add", "linear", "model", "to", "in", "ff", "mul"}
    assert not words & (names - general)
    assert not words & {
        "attention",
        "query",
        "key",
        "softmax",
        "scores",
        "load_qk",
        "qk",
        "pv",
        "store_out",
        "ROLE",
        "role",
    }


@pytest.mark.parametrize("value", [0, 1, 10**7, 10**10])
def test_scalar_and_array_transfers_agree(value: Any) -> None:
    column = np.asarray([value], dtype=np.int64)
    assert dma_ps(EXYNOS, column, np.asarray([3]))[0] == dma_ps(EXYNOS, value, 3)
