"""GroupNorm's sums, taken where its input is made: every element once, nothing read again, the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npusim import api
from npusim.calibrate import choose_scales, measure_ranges
from npusim.cost import dram_traffic
from npusim.execute.kernels_vector import group_statistics
from npusim.execute.run import execute
from npusim.graph import Graph, Layer
from npusim.hardware import load_npu, with_values
from npusim.lower import lower
from npusim.lower.statistics import early_norms, first_column, statistics_tensor
from npusim.program import LOAD, READ, Program
from npusim.scheduler import bounds
from npusim.scheduler.planner import make_problem
from npusim.scheduler.search import _Search

from .conftest import Case

Cases = Callable[[str], Case]
Net = Any
TIGHT = 6144


def summed(program: Program, graph: Graph, norm: Layer) -> Any:
    """How often each element of a norm's input is added to its sums, [b, rows, cols]."""
    shape = graph.tensors[norm.output].shape
    found = np.zeros((shape[0], shape[2], shape[3]), dtype=np.int64)
    table, buffers, names = program.accesses, program.buffers, program.tensors.name
    sums = names.index(statistics_tensor(norm.name))
    adding = set(table.command[(buffers.tensor[table.buffer] == sums) & (table.mode != READ)].tolist())
    for access in np.flatnonzero((table.operand == 0) & np.isin(table.command, sorted(adding))).tolist():
        b, _, r, c = table.offset[access].tolist()
        n = table.shape[access].tolist()
        c = first_column(norm, names[int(buffers.tensor[table.buffer[access]])], c)
        found[b : b + n[0], r : r + n[2], c : c + n[3]] += 1
    return found


@pytest.mark.parametrize("policy", ["serial", "decoupled"])
@pytest.mark.parametrize("sram_bytes", [TIGHT, 65536])
@pytest.mark.parametrize("tiles", ["sram", "auto", "3"])
def test_every_element_is_summed_once(cases: Cases, policy: str, sram_bytes: int, tiles: str) -> None:
    case = cases("early_statistics")
    plan, program = case.plan(tiles=tiles, policy=policy, sram_bytes=sram_bytes)
    norms = early_norms(case.graph)
    assert len(norms) == 3
    for norm in norms:
        assert (summed(program, case.graph, norm) == 1).all()
    if sram_bytes == TIGHT:
        early = {p.name for p in plan.layers if p.early_statistics}
        assert {norms[1].name, norms[2].name} <= early  # a concatenation, and a residual sum


@pytest.mark.parametrize("segments", ["none", "attention"])
def test_without_row_chains_every_norm_takes_its_own_sums(cases: Cases, segments: str) -> None:
    graph = cases("early_statistics").graph
    npu = with_values(load_npu("toy"), {"sram.sram_bytes": TIGHT})
    made = api.profile(graph, npu=npu, precision="fp32", segments=segments)
    assert isinstance(made, api.Profile)
    assert not any(p.early_statistics for p in made.plan.layers)
    sums = made.program.functions.index("group_norm_stats")
    layers = made.program.commands.layer[made.program.commands.function == sums]
    assert {graph.layers[i].op for i in layers.tolist()} == {"group_norm"}


def test_a_norm_with_early_sums_loads_its_input_once(cases: Cases) -> None:
    """Closed form: the loads of the norm's input are the stored bytes of its parts that have no home in SRAM, once."""
    case = cases("early_statistics")
    plan, program = case.plan(sram_bytes=TIGHT, policy="serial")
    bytes_moved, _ = dram_traffic(program)
    homes = {t.name: t for t in plan.tensors}
    checked = 0
    for norm in early_norms(case.graph):
        if not next(p for p in plan.layers if p.name == norm.name).early_statistics:
            continue
        parts = [p.tensor for p in norm.operands[0].parts if homes[p.tensor].home == "dram"]
        mine = (program.commands.opcode == LOAD) & (program.commands.layer == case.graph.layers.index(norm))
        weights = sum(
            homes[p.tensor].size_bytes
            for o in norm.operands[1:]
            for p in o.parts
            if o.role in ("scale", "bias")
        )
        expected = sum(case.graph.tensors[t].elements * homes[t].element_bytes for t in parts)
        assert 0 <= int(bytes_moved[mine].sum()) - expected <= weights
        checked += bool(parts)
    assert checked


@pytest.mark.parametrize("precision", ["w8a16", "w8a8", "w16a16"])
def test_early_or_not_gives_the_same_bits_in_integers(
    cases: Cases, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same scales; one plan with early sums (kept though this small network is faster without), one whose norms take their own."""
    monkeypatch.setattr(_Search, "_plainer", lambda *_: None)
    case = cases("early_statistics")
    early, program = case.plan(precision=precision, sram_bytes=TIGHT)
    scales = choose_scales(case.graph, early, measure_ranges(case.graph, case.weights, [case.inputs]))
    numbers = case.numbers(early, scales)
    npu = with_values(load_npu("toy"), {"sram.sram_bytes": TIGHT})
    own = api.profile(case.graph, npu=npu, precision=precision, segments="attention")
    assert isinstance(own, api.Profile)
    assert any(p.early_statistics for p in early.layers)
    found = execute(case.graph, early, program, numbers, case.inputs)
    wanted = execute(case.graph, own.plan, lower(case.graph, own.plan), numbers, case.inputs)
    for output, values in found.items():
        np.testing.assert_array_equal(values, wanted[output])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 12])
def test_sums_of_columns_are_those_of_the_groups_that_they_belong_to(width: int) -> None:
    """Pieces that begin and end anywhere, against sums group by group."""
    drawn = np.random.default_rng(width)
    x = drawn.integers(-32767, 32768, (2, 1, 5, 12)).astype(np.int16)
    wanted = np.zeros((2, 1, 12 // width, 2))
    for group in range(12 // width):
        part = x[..., group * width : (group + 1) * width].astype(np.float64)
        wanted[:, 0, group, 0] = part.sum(axis=(1, 2, 3))
        wanted[:, 0, group, 1] = (part**2).sum(axis=(1, 2, 3))
    found = np.zeros_like(wanted)
    for low, high in ((7, 12), (0, 1), (1, 7)):
        groups = slice(low // width, -(-high // width))
        found[:, :, groups] = group_statistics(x[..., low:high], width, low, found[:, :, groups])
    np.testing.assert_array_equal(found, wanted)


def skip_norm(n: Net) -> Graph:
    """A skip tensor with many columns, made before one norm and read by a norm behind it."""
    skip = n.conv(n.input("x", 1, 16, 8, 8), 64, 3)
    y = n.conv(n.group_norm(n.conv(skip, 4, 1), 2), 4, 1)
    joined = n.node("Concat", [y, skip], (1, 68, 8, 8), axis=1)
    graph: Graph = n.output(n.group_norm(n.conv(n.group_norm(joined, 4), 4, 1), 2)).graph()
    return graph


def test_the_bound_leaves_out_sums_that_may_have_been_taken_before_the_phase(
    net: Callable[..., Net], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where products and sums take equally long, counting all sums behind the first norm would exceed what is reached."""
    graph = skip_norm(net())
    npu = with_values(load_npu("toy"), {
        "sram.sram_bytes": 1 << 20, "vector_engine.lanes": 8, "handover.handover_s": 0.0, "dma.setup_s": 0.0,
        "dram.dram_shared_bytes_per_s": 10**12, "dma.channel_bytes_per_s": 10**12,
    })  # fmt: skip
    problem = make_problem(graph, npu, "w8a16", "decoupled", sums_early=True)
    made = api.profile(graph, npu=npu)
    assert isinstance(made, api.Profile)
    reached = made.trace.makespan_ps
    sound = bounds.lower_bounds(problem).by_resource_ps["critical path"]
    monkeypatch.setattr(bounds, "_summed_ahead", lambda _, reach: np.zeros_like(reach))
    counted = bounds.lower_bounds(problem).by_resource_ps["critical path"]
    assert sound <= reached < counted
