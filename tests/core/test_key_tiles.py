"""Attention in blocks of keys: sizes, counts, predicted time and bytes in closed form; when keys are cut, and what that buys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
import pytest

from npusim import api
from npusim.graph import Graph
from npusim.hardware import Npu, load_npu, with_values
from npusim.lower.attention import attention_tiles
from npusim.program import FLAG_FIRST, FLAG_LAST, FLAG_REASSOCIATES, PRODUCT, VECTOR, Program
from npusim.scheduler import tiles as attention
from npusim.scheduler.isolate import measure
from npusim.scheduler.planner import make_problem
from npusim.scheduler.problem import Problem
from npusim.scheduler.search import _Search
from npusim.scheduler.tiles import Segment, Tiling, find_segments, layers_of

Net = Any
POLICIES = ("serial", "decoupled")


def machine(sram_bytes: int, **changes: float) -> Npu:
    return with_values(load_npu("toy"), {"sram.sram_bytes": sram_bytes, **changes})


def single(
    net: Callable[..., Net], *, heads: int = 1, queries: int = 64, keys: int = 96, width: int = 32
) -> Graph:
    """softmax(q k^T) v of inputs whose heads lie on an axis of their own."""
    n = net()
    q, k, v = (
        n.input(t, 1, heads, length, width) for t, length in (("q", queries), ("k", keys), ("v", keys))
    )
    scores = n.node("MatMul", [q, n.transpose(k, 0, 1, 3, 2)], (1, heads, queries, keys))
    shares = n.node("Softmax", [scores], n.shapes[scores], axis=-1)
    found: Graph = n.output(n.node("MatMul", [shares, v], (1, heads, queries, width))).graph()
    return found


def problem_of(graph: Graph, npu: Npu, policy: Any = "decoupled") -> tuple[Problem, Segment]:
    (segment,) = find_segments(graph, "attention")
    return make_problem(graph, npu, "w8a16", policy), segment


# ---- closed forms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("in_place", [True, False])
def test_slots_hold_a_block_of_keys_and_the_state_of_the_rows(
    net: Callable[..., Net], depth: int, in_place: bool
) -> None:
    """2 heads x 24 rows x 40 keys of 64 x 96 scores, heads of 32: two bytes for activations, four for the state."""
    graph = single(net, heads=4)
    problem, segment = problem_of(graph, machine(2**20))
    tiling = Tiling(2, 24, depth, in_place=in_place, keys=40)
    found = {
        s.name: (s.slot_bytes, s.count)
        for s in attention.slots_of(problem, layers_of(graph, segment), tiling, frozenset())
    }
    expected = {
        "q": (2 * 24 * 32 * 2, depth), "k": (2 * 40 * 32 * 2, depth), "v": (2 * 40 * 32 * 2, depth),
        "s": (2 * 24 * 40 * 2, depth), "a": (2 * 24 * 32 * 2, depth), "m": (2 * 24 * 2 * 4, depth),
        "f": (2 * 24 * 4, depth), "o": (2 * 24 * 32 * 4, 1), "t": (2 * 24 * 32 * 4, 1),
    }  # fmt: skip
    assert found == expected | ({} if in_place else {"p": expected["s"]})


def test_all_keys_in_one_tile_is_the_form_without_blocks(net: Callable[..., Net]) -> None:
    graph = single(net)
    problem, segment = problem_of(graph, machine(2**20))
    whole = Tiling(1, 24, 2, in_place=True)
    layers = layers_of(graph, segment)
    slots = [attention.slots_of(problem, layers, replace(whole, keys=k), frozenset()) for k in (0, 96)]
    assert slots[0] == slots[1]
    assert {s.name for s in slots[0]} == set("qkvsa")


def test_padded_rows_of_scores_are_padded_to_a_block_and_not_to_all_keys(net: Callable[..., Net]) -> None:
    """97 keys are stored as 100 (the toy's arrays have 4 columns), blocks of 40 as 40."""
    graph = single(net, keys=97)
    problem, segment = problem_of(graph, machine(2**20))
    layers = layers_of(graph, segment)
    sizes = {
        keys: next(
            s.slot_bytes
            for s in attention.slots_of(
                problem, layers, Tiling(1, 8, 1, in_place=True, keys=keys), frozenset()
            )
            if s.name == "s"
        )
        for keys in (0, 40)
    }
    assert sizes == {0: 8 * 100 * 2, 40: 8 * 40 * 2}


def test_tiles_cover_every_score_once_and_go_on_with_the_block_that_is_still_there() -> None:
    shape = (2, 3, 10, 11)
    seen = np.zeros(shape, dtype=int)
    before = None
    for number, tile in enumerate(attention_tiles(shape, 2, 4, 3)):
        assert tile.number == number
        seen[tile.b, tile.h0 : tile.h1, tile.r0 : tile.r1, tile.k0 : tile.k1] += 1
        assert tile.size == (1, tile.h1 - tile.h0, tile.r1 - tile.r0, tile.k1 - tile.k0)
        if before is not None and before.rows != tile.rows:
            assert (before.last, tile.first) == (True, True)
            same_head = before.rows[:2] == tile.rows[:2]
            assert not same_head or (before.k0, before.k1) == (tile.k0, tile.k1)
        before = tile
    assert (seen == 1).all()


CASES = [  # heads, queries, keys, width; rows, keys of a tile
    ((1, 64, 96, 32), (16, 24)), ((1, 64, 96, 32), (64, 48)), ((2, 60, 90, 16), (20, 32)), ((3, 32, 256, 64), (32, 32)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "tile"), CASES)
@pytest.mark.parametrize("policy", POLICIES)
def test_predicted_bytes_are_those_of_the_program_and_time_is_close(
    net: Callable[..., Net], shape: Any, tile: tuple[int, int], policy: Any
) -> None:
    heads, queries, keys, width = shape
    graph = single(net, heads=heads, queries=queries, keys=keys, width=width)
    problem, segment = problem_of(graph, machine(2**20), policy)
    depth = 1 if policy == "serial" else 2
    tiling = Tiling(1, tile[0], depth, in_place=True, keys=tile[1])
    option = attention.predicted(problem, layers_of(graph, segment), tiling, frozenset())
    found = measure(problem, segment, option, frozenset())
    assert found is not None
    assert option.cost_ps == pytest.approx(found.makespan_ps, rel=0.05)
    ragged = bool(queries % tile[0] or keys % tile[1])
    assert option.dram_bytes == pytest.approx(found.dram_bytes, rel=0.1 if ragged else 0)
    assert option.sram_bytes == found.sram_bytes


@pytest.mark.parametrize("policy", POLICIES)
def test_commands_do_the_work_of_the_closed_form(net: Callable[..., Net], policy: Any) -> None:
    """Scores once through softmax, the output once through the division, and once through both for each block but the first."""
    graph = single(net, heads=2)
    found = cut(graph, Tiling(1, 20, 1 if policy == "serial" else 2, in_place=True, keys=40), policy)
    commands, functions = found.commands, found.functions
    done = {
        f: int(commands.m[(commands.opcode == VECTOR) & (commands.function == i)].sum())
        for i, f in enumerate(functions)
    }
    scores, out, blocks = 2 * 64 * 96, 2 * 64 * 32, ceil(96 / 40)
    assert done == {"softmax": scores, "mul": (blocks - 1) * out, "add": (blocks - 1) * out, "div": out}
    assert int(commands.macs.sum()) == 2 * scores * 32
    joined = (commands.flags & FLAG_REASSOCIATES) > 0
    online = np.asarray(["online" in found.attributes[i] for i in commands.attributes.tolist()])
    assert (joined == online).all()
    parts = online & (commands.opcode == PRODUCT)
    rows = 2 * ceil(64 / 20)
    assert int(parts.sum()) == rows * blocks
    for flag in (FLAG_FIRST, FLAG_LAST):
        assert int(((commands.flags[parts] & flag) > 0).sum()) == rows


def cut(graph: Graph, tiling: Tiling, policy: Any) -> Program:
    """The Program of an attention with this tiling, with room for it."""
    problem, _ = problem_of(graph, machine(2**20), policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "tilings", lambda *_: iter([tiling]))
        patch.setattr(attention, "fewest_tiles", lambda *_: tiling)
        patch.setattr(_Search, "_joins", lambda *_: True)
        patch.setattr(_Search, "_plainer", lambda *_: None)
        found = api.profile(graph, npu=problem.npu, policy=policy)
    assert isinstance(found, api.Profile)
    assert found.plan.segments[0].keys_per_tile == tiling.keys
    return found.program


def test_the_next_product_is_issued_before_the_softmax_and_no_vector_command_waits_for_the_product_before(
    net: Callable[..., Net],
) -> None:
    """Two in flight: qk of block i+1, softmax of block i, what block i-1 adds, pv of block i."""
    program = cut(single(net), Tiling(1, 64, 2, in_place=True, keys=24), "decoupled")
    commands = program.commands
    steps = [
        (program.attributes[int(a)].get("online", "qk") if o == PRODUCT else program.functions[int(f)], int(t))
        for o, a, f, t in zip(commands.opcode, commands.attributes, commands.function, commands.tile, strict=True)
        if o in (PRODUCT, VECTOR)
    ]  # fmt: skip
    adds = [[("mul", i), ("add", i)] if i else [] for i in range(4)]
    expected = [("qk", 0)]
    for i in range(4):
        expected += [("qk", i + 1)] if i < 3 else []
        expected += [("softmax", i), *(adds[i - 1] if i else []), ("part", i)]
    assert steps == [*expected, *adds[3], ("div", 3)]


# ---- when keys are cut --------------------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[dict[str, int], int]:
    random = np.random.default_rng(seed)
    shape = {
        "heads": int(random.integers(1, 4)), "queries": int(random.integers(8, 80)), "keys": int(random.integers(8, 160)),
        "width": int(random.choice([4, 8, 16, 32])),
    }  # fmt: skip
    return shape, int(random.choice([1024, 2048, 4096, 8192, 16_384]))


def every_tiling(problem: Problem, graph: Graph, segment: Segment) -> Iterator[Tiling]:
    """What docs/decision-space.md declares, enumerated without the code under test."""
    _, heads, queries, keys = layers_of(graph, segment).shape
    depths = (1,) if problem.policy == "serial" else (1, 2)
    least = min(queries, 4)
    rows = {ceil(queries / 2**i) for i in range(12)}
    for h, r, depth in product(range(1, heads + 1), rows, depths):
        if heads % h == 0 and (r >= least or r == queries) and (h == 1 or r * 8 >= queries):
            yield Tiling(h, r, depth, in_place=True)
    blocks = {4 * ceil(keys / 2**i / 4) for i in range(12)}
    for r, length, depth in product(rows, blocks, depths):
        if r >= least and length < keys:
            yield Tiling(1, r, depth, in_place=True, keys=length)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("policy", POLICIES)
def test_the_space_is_the_declared_one(net: Callable[..., Net], seed: int, policy: Any) -> None:
    shape, sram_bytes = drawn(seed)
    graph = single(net, **shape)
    problem, segment = problem_of(graph, machine(sram_bytes), policy)
    layers = layers_of(graph, segment)

    def need(tiling: Tiling) -> int:
        return sum(s.total_bytes for s in attention.slots_of(problem, layers, tiling, frozenset()))

    every = set(every_tiling(problem, graph, segment))
    whole = {t for t in every if not t.keys}
    padded = ceil(shape["width"] / 4) * 4
    one_head = shape["keys"] * (padded + shape["width"]) * 2
    helps = one_head > 0.4 * sram_bytes or need(Tiling(1, 1, 1, in_place=True)) > sram_bytes
    blocks = {t for t in every - whole if need(t) <= sram_bytes} if helps else set()
    assert set(attention.tilings(problem, layers)) == whole | blocks

    rule = attention.fewest_tiles(problem, layers, sram_bytes, frozenset())
    if need(Tiling(1, 1, 1, in_place=True)) <= sram_bytes:
        assert rule is not None
        assert not rule.keys
    elif rule is None:
        assert not blocks
    else:
        deepest = max(t.depth for t in blocks)
        counts = [prod(attention.tile_count(layers, t)) for t in blocks if t.depth == deepest]
        assert (rule.depth, prod(attention.tile_count(layers, rule))) == (deepest, min(counts))


def test_a_count_of_tiles_keeps_all_keys(net: Callable[..., Net]) -> None:
    """Where no tile with all keys fits, the layers of that attention stream one by one, as they are told to."""
    graph = single(net, queries=40, keys=200)
    npu = machine(16_384)
    (name,) = (s.name for s in find_segments(graph, "attention"))
    counted, ruled = (api.profile(graph, npu=npu, tiles=t, segments="attention") for t in (8, "sram"))
    assert isinstance(counted, api.Profile)
    assert isinstance(ruled, api.Profile)
    assert counted.plan.unjoined == (name,)
    assert any("heads and query rows fits" in s for s in counted.summary["assumptions"])
    assert ruled.plan.unjoined == ()
    assert ruled.plan.segments[0].tiles["keys"] > 1


def test_what_fits_in_no_way_is_said(net: Callable[..., Net]) -> None:
    graph = single(net, queries=8, keys=64, width=32)
    found = api.profile(graph, npu=machine(700), segments="attention")
    assert isinstance(found, api.Profile)
    assert len(found.plan.unjoined) == 1
    assert any("heads, query rows and keys fits" in s for s in found.summary["assumptions"])


@pytest.mark.parametrize("policy", POLICIES)
def test_blocks_of_keys_are_faster_than_layers_one_by_one(net: Callable[..., Net], policy: Any) -> None:
    graph = single(net, queries=128, keys=256)
    npu = machine(16_384)
    joined, apart = (api.profile(graph, npu=npu, policy=policy, segments=s) for s in ("attention", "none"))
    assert isinstance(joined, api.Profile)
    assert isinstance(apart, api.Profile)
    assert joined.latency_ms < apart.latency_ms
    assert joined.dram_bytes < apart.dram_bytes
    assert joined.summary["spill_bytes"] == 0


def test_the_decoder_of_stable_diffusion_keeps_its_scores_in_sram(monkeypatch: pytest.MonkeyPatch) -> None:
    """One head of 512, 4096 x 4096 scores: K and V take 8 MB. Its attention is joined, and the network is faster for it."""
    graph = api.load_graph("sd-vae-decoder")
    found = api.profile(graph)
    assert isinstance(found, api.Profile)
    assert found.plan.unjoined == ()
    (segment,) = (s for s in found.summary["segments"] if s["kind"] == "attention")
    assert segment["tiles"]["keys"] > 1
    scores = next(a for a in found.summary["attention"] if a["keys"] == 4096)["rows"]
    assert [scores[r] for r in ("store_scores", "load_scores", "store_probs")] == [0.0, 0.0, 0.0]
    monkeypatch.setattr(attention, "keys_are_cut", lambda *_: False)
    before = api.profile(graph)
    assert isinstance(before, api.Profile)
    assert len(before.plan.unjoined) == 1
    assert found.latency_ms < before.latency_ms - 1.5
    assert found.dram_bytes < before.dram_bytes
