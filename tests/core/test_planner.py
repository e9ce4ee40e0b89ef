"""Planning: tile counts asked for, the paper's rule against brute force, pins, what does not fit, residency, law 6 searched."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise, product
from math import ceil, prod
from typing import Any

import numpy as np
import pytest

from npusim import api
from npusim.cost import Engines, arrays_of, product_ps
from npusim.dtypes import PRECISIONS
from npusim.errors import BadInputError
from npusim.graph import Graph
from npusim.hardware import Npu, load_npu, with_values
from npusim.ops import Product, product_of
from npusim.plan import SegmentPlan
from npusim.program import PRODUCT, SRAM
from npusim.scheduler.layouts import gangs
from npusim.scheduler.planner import make_problem
from npusim.scheduler.problem import Infeasible
from npusim.scheduler.tiles import Tiling, fewest_tiles, find_segments, layers_of, slots_of, tile_count

Net = Any
TOY = load_npu("toy")


def machine(**changes: float) -> Npu:
    return with_values(TOY, {k.replace("__", "."): v for k, v in changes.items()})


def profiled(graph: Graph, **options: Any) -> api.Profile:
    options.setdefault("npu", machine(sram__sram_bytes=2**20))
    found = api.profile(graph, **options)
    assert isinstance(found, api.Profile), found.sentence() if isinstance(found, Infeasible) else ""
    return found


@pytest.fixture(scope="module")
def attention(net: Callable[..., Net]) -> Callable[..., Graph]:
    """One self-attention: heads, queries, head size."""

    @cache
    def make(heads: int = 8, queries: int = 64, width: int = 8, batch: int = 1) -> Graph:
        n = net()
        graph: Graph = n.output(n.attention(n.input("x", batch, queries, heads * width), heads)).graph()
        return graph

    return make


def only_segment(found: api.Profile) -> SegmentPlan:
    (segment,) = found.plan.segments
    return segment


def products_per_tile(found: api.Profile) -> dict[int, list[tuple[int, int]]]:
    """Tile -> (heads, rows) of its products, from the Program."""
    commands = found.program.commands
    tiles: dict[int, list[tuple[int, int]]] = {}
    for i in np.flatnonzero((commands.segment == 0) & (commands.opcode == PRODUCT)):
        tiles.setdefault(int(commands.tile[i]), []).append((int(commands.batch[i]), int(commands.m[i])))
    return tiles


# ---- a count ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "tiles"),
    [
        (1, (1, 1)), (2, (2, 1)), (4, (4, 1)), (8, (8, 1)), (16, (8, 2)), (128, (8, 16)), (512, (8, 64)),
        (3, (3, 1)), (40, (8, 5)), (24, (8, 3)),
    ],
)  # fmt: skip
def test_a_count_of_tiles_is_heads_times_row_blocks(
    attention: Callable[..., Graph], asked: int, tiles: tuple[int, int]
) -> None:
    found = profiled(attention(), tiles=asked)
    segment = only_segment(found)
    assert (segment.tiles["heads"], segment.tiles["rows"]) == tiles
    assert segment.tile_count == tiles[0] * tiles[1] == asked
    assert segment.requested == 0
    assert len(products_per_tile(found)) == asked
    assert not any("tiles were asked for" in s for s in found.summary["assumptions"])


@pytest.mark.parametrize(("asked", "possible"), [(5, 4), (9, 8), (100, 88), (1000, 512), (10**6, 512)])
def test_a_count_that_is_not_possible_is_clamped_and_said(
    attention: Callable[..., Graph], asked: int, possible: int
) -> None:
    found = profiled(attention(), tiles=asked)
    segment = only_segment(found)
    assert segment.tile_count <= asked
    assert segment.requested == asked
    assert len(products_per_tile(found)) == segment.tile_count
    sentence = f"segment {segment.name}: {asked} tiles were asked for, {segment.tile_count} are possible"
    assert sentence in found.summary["assumptions"]
    assert segment.tile_count == possible


@pytest.mark.parametrize(
    ("queries", "asked", "rows"), [(50, 32, [13, 13, 13, 11]), (7, 24, [3, 3, 1]), (64, 8, [64])]
)
def test_the_last_tile_may_be_smaller(
    attention: Callable[..., Graph], queries: int, asked: int, rows: list[int]
) -> None:
    found = profiled(attention(queries=queries), tiles=asked)
    per_tile = products_per_tile(found)
    heights = [sizes[0][1] for _, sizes in sorted(per_tile.items())]
    assert heights == rows * 8
    assert all(len(set(sizes)) == 1 for sizes in per_tile.values())


def test_the_last_tile_may_have_fewer_heads(attention: Callable[..., Graph]) -> None:
    found = profiled(attention(heads=5), tiles=2)
    assert [sizes[0][0] for _, sizes in sorted(products_per_tile(found).items())] == [3, 2]


def test_tiles_are_counted_per_batch_element(attention: Callable[..., Graph]) -> None:
    found = profiled(attention(batch=2), tiles=4)
    assert only_segment(found).tile_count == 4
    assert len(products_per_tile(found)) == 8


def test_a_pin_holds_for_its_segment_only(net: Callable[..., Net]) -> None:
    graph = net().unet().graph()
    names = [s.name for s in find_segments(graph, "all")]
    found = profiled(graph, tiles="sram", segments="attention", pins={names[0]: 4})
    counts = {s.name: s.tile_count for s in found.plan.segments}
    assert counts[names[0]] == 4
    assert (
        counts[names[1]]
        == {s.name: s.tile_count for s in profiled(graph, tiles="sram", segments="attention").plan.segments}[
            names[1]
        ]
    )


def test_a_pin_of_an_unknown_segment_lists_the_segments(net: Callable[..., Net]) -> None:
    graph = net().unet().graph()
    with pytest.raises(BadInputError) as caught:
        profiled(graph, pins={"nowhere": 4})
    for segment in find_segments(graph, "all"):
        assert segment.name in str(caught.value)


@pytest.mark.parametrize(
    ("tiles", "segments"), [("none", "all"), ("auto", "none"), ("sram", "none"), ("4", "none")]
)
def test_without_segments_the_scores_are_ordinary_tensors(
    attention: Callable[..., Graph], tiles: str, segments: str
) -> None:
    found = profiled(attention(), tiles=tiles, segments=segments)
    assert found.plan.segments == ()
    assert all(p.pieces is not None for p in found.plan.layers)


@pytest.mark.parametrize(
    "options", [{"tiles": "many"}, {"segments": "some"}, {"precision": "w3"}, {"tiles": 0}]
)
def test_the_api_refuses_words_that_it_does_not_know(attention: Callable[..., Graph], options: Any) -> None:
    with pytest.raises(BadInputError):
        profiled(attention(), **options)


def test_a_precision_that_the_hardware_cannot_multiply_is_refused(attention: Callable[..., Graph]) -> None:
    data = TOY.model_dump()
    del data["tensor_rates"]["fp16xfp16"]
    with pytest.raises(BadInputError, match="fp16xfp16"):
        profiled(attention(), npu=Npu.model_validate(data), precision="fp16")


# ---- the paper's rule -------------------------------------------------------------------------------------------------


def fewest_by_trying(graph: Graph, npu: Npu, policy: Any, *, least: int = 1) -> int | None:
    """The least count (from `least`) over every number of heads and rows per tile; two in flight if the policy can."""
    problem = make_problem(graph, npu, "w8a16", policy)
    (segment,) = find_segments(graph, "all")
    layers = layers_of(graph, segment)
    _, heads, queries, _ = layers.shape
    for depth in (1,) if policy == "serial" else (2, 1):
        counts = [
            ceil(heads / h) * ceil(queries / r)
            for h, r in product(range(1, heads + 1), range(1, queries + 1))
            if sum(
                s.total_bytes
                for s in slots_of(problem, layers, Tiling(h, r, depth, in_place=True), frozenset())
            )
            <= npu.sram.sram_bytes
        ]
        if any(count >= least for count in counts):
            return min(count for count in counts if count >= least)
    return None


def fewest_by_rule(graph: Graph, npu: Npu, policy: Any) -> int | None:
    problem = make_problem(graph, npu, "w8a16", policy)
    (segment,) = find_segments(graph, "all")
    layers = layers_of(graph, segment)
    rule = fewest_tiles(problem, layers, npu.sram.sram_bytes, frozenset())
    return None if rule is None else prod(tile_count(layers, rule))


@pytest.mark.parametrize("policy", ["serial", "decoupled"])
@pytest.mark.parametrize("sram_bytes", [4096, 6144, 9000, 12_288, 20_000, 33_000, 65_536, 10**6])
@pytest.mark.parametrize(("heads", "queries"), [(8, 48), (3, 64), (1, 50)])
def test_the_rule_gives_the_fewest_tiles_that_fit(
    attention: Callable[..., Graph], heads: int, queries: int, sram_bytes: int, policy: Any
) -> None:
    graph, npu = attention(heads=heads, queries=queries), machine(sram__sram_bytes=sram_bytes)
    found = fewest_by_rule(graph, npu, policy)
    if (
        policy == "decoupled" and found is not None and found > 1
    ):  # one tile alone cannot overlap with another
        assert found == fewest_by_trying(graph, npu, policy, least=2)
    else:
        assert found == fewest_by_trying(graph, npu, policy)


def test_the_rule_knows_tiles_with_fewer_heads_at_the_end(attention: Callable[..., Graph]) -> None:
    graph, npu = attention(heads=5, queries=33), machine(sram__sram_bytes=9000)
    assert fewest_by_rule(graph, npu, "serial") == fewest_by_trying(graph, npu, "serial") == 3


def test_the_rule_takes_one_tile_where_the_whole_segment_fits(attention: Callable[..., Graph]) -> None:
    graph, npu = attention(heads=8, queries=48), machine(sram__sram_bytes=65_536)
    assert fewest_by_rule(graph, npu, "serial") == 1
    assert fewest_by_rule(graph, npu, "decoupled") == 1


# ---- what does not fit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", ["none", "sram", "auto", "1"])
def test_what_cannot_fit_is_a_result_that_says_demand_capacity_and_gap(
    attention: Callable[..., Graph], tiles: str
) -> None:
    found = api.profile(attention(), tiles=tiles, npu=machine(sram__sram_bytes=256))
    assert isinstance(found, Infeasible)
    assert found.capacity_bytes == 256
    assert found.gap_bytes == found.demand_bytes - 256 > 0
    assert 1 <= len(found.contributors) <= 3
    sizes = [size for _, size in found.contributors]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= found.demand_bytes
    sentence = found.sentence()
    for word in (
        str(found.demand_bytes),
        "256",
        str(found.gap_bytes),
        found.contributors[0][0],
        *found.levers,
    ):
        assert word in sentence


def test_a_count_too_small_for_the_sram_names_its_segment_and_a_larger_count_helps(
    attention: Callable[..., Graph],
) -> None:
    npu = machine(sram__sram_bytes=16_384)
    found = api.profile(attention(), tiles=1, npu=npu, policy="serial")
    assert isinstance(found, Infeasible)
    assert find_segments(attention(), "all")[0].name in found.where
    assert "larger count" in found.sentence()
    assert isinstance(api.profile(attention(), tiles=64, npu=npu, policy="serial"), api.Profile)


@pytest.mark.parametrize("policy", ["serial", "decoupled"])
def test_the_stated_demand_is_what_it_takes(attention: Callable[..., Graph], policy: Any) -> None:
    """With exactly the demanded bytes the refused unit fits (another one may be refused then); with one less it does not."""
    refused = api.profile(attention(), tiles=1, npu=machine(sram__sram_bytes=8192), policy=policy)
    assert isinstance(refused, Infeasible)
    enough = api.profile(
        attention(), tiles=1, npu=machine(sram__sram_bytes=refused.demand_bytes), policy=policy
    )
    assert not isinstance(enough, Infeasible) or enough.where != refused.where
    less = api.profile(
        attention(), tiles=1, npu=machine(sram__sram_bytes=refused.demand_bytes - 1), policy=policy
    )
    assert isinstance(less, Infeasible)


# ---- residency ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["serial", "decoupled"])
@pytest.mark.parametrize("sram_bytes", [14_000, 20_000, 40_000, 100_000])
@pytest.mark.parametrize("tiles", ["none", "auto"])
def test_resident_tensors_and_slots_never_exceed_the_sram_at_any_layer(
    net: Callable[..., Net], tiles: str, sram_bytes: int, policy: Any
) -> None:
    found = profiled(
        net().unet().graph(), tiles=tiles, policy=policy, npu=machine(sram__sram_bytes=sram_bytes)
    )
    graph = found.graph
    position = {x.name: i for i, x in enumerate(graph.layers)}
    plans = {t.name: t for t in found.plan.tensors}
    made = {
        name: min(readers, default=0) for name, readers in graph.consumers().items()
    }  # inputs: once they are needed
    made.update({x.output: position[x.name] for x in graph.layers})
    last = {name: max(readers, default=made.get(name, 0)) for name, readers in graph.consumers().items()}
    segment_of = {name: s for s in found.plan.segments for name in s.layers}
    for index, layer in enumerate(graph.layers):
        segment = segment_of.get(layer.name)
        slots = segment.slots if segment else next(p for p in found.plan.layers if p.name == layer.name).slots
        places = {(a, a + s.slot_bytes) for s in slots for a in s.addresses}
        for name, tensor in plans.items():
            if tensor.home == "sram" and made[name] <= index <= last[name]:
                places.add((tensor.address, tensor.address + tensor.size_bytes))
        ordered = sorted(places)
        assert all(low >= 0 and high <= sram_bytes for low, high in ordered)
        assert all(a[1] <= b[0] for a, b in pairwise(ordered)), layer.name


def test_more_sram_never_spills_more(net: Callable[..., Net]) -> None:
    graph = net().unet(size=12).graph()
    spilled = [
        profiled(graph, policy="serial", npu=machine(sram__sram_bytes=s)).summary["spill_bytes"]
        for s in (16_384, 32_768, 65_536, 131_072, 10**6)
    ]
    assert spilled[-1] == 0
    assert spilled == sorted(spilled, reverse=True)


@pytest.mark.parametrize("tiles", ["sram", "auto"])
def test_each_product_runs_on_the_fastest_gang_and_rules_keep_to_one_kind(
    net: Callable[..., Net], tiles: str
) -> None:
    npu = load_npu("exynos2400")
    n = net()
    found = profiled(n.output(n.transformer(n.input("x", 1, 512, 320), 8)).graph(), npu=npu, tiles=tiles)
    small: set[str] = set()
    for plan, layer in zip(found.plan.layers, found.graph.layers, strict=True):
        product = product_of(found.graph, layer)
        if product is None:
            assert plan.engines == {"vector": (0, 1, 2, 3)}
            continue
        small |= plan.engines.keys()
        precision = PRECISIONS[plan.precision]
        pair = precision.activation_pair if product.activations else precision.weight_pair

        def time(engines: Engines, product: Product = product, pair: str = pair) -> int:
            extents = (product.batch, product.m, product.n, product.k)
            return int(
                product_ps(npu, arrays_of(npu, engines), extents, pair, activations=product.activations)
            )

        every = gangs(npu, shared=tiles == "auto")
        assert time(tuple((k, len(n)) for k, n in plan.engines.items())) == min(map(time, every))
    assert ("SNPU" in small) == (tiles == "auto")


def test_the_curve_marks_the_chosen_point_and_the_papers_rule(net: Callable[..., Net]) -> None:
    n = net()
    x = n.input("x", 1, 256, 64)
    found = profiled(n.output(n.attention(x, 8)).graph(), npu=machine(sram__sram_bytes=65_536))
    (segment,) = found.summary["segments"]
    curve = segment["tile_curve"]
    assert len(curve) >= 2
    (chosen,) = (p for p in curve if p["chosen"])
    assert (chosen["tile_count"], chosen["tiles"]) == (segment["tile_count"], segment["tiles"])
    (rule,) = (p for p in curve if p["paper_rule"])
    assert rule["tile_count"] <= min(p["tile_count"] for p in curve)
    for point in curve:
        assert {
            "tile_count",
            "latency_ms",
            "dram_bytes",
            "peak_sram_bytes",
            "sram_utilization",
            "handover_ms",
        } <= set(point)
        assert point["peak_sram_bytes"] <= 65_536
        assert 0 < point["sram_utilization"] <= 1


def test_sram_addresses_of_the_plan_are_those_of_the_program(net: Callable[..., Net]) -> None:
    found = profiled(net().unet().graph())
    buffers = found.program.buffers
    used = set(buffers.address[buffers.space == SRAM].tolist())
    planned = {t.address for t in found.plan.tensors if t.home == "sram"}
    assert planned <= used


# ---- law 6, searched --------------------------------------------------------------------------------------------------

SIZES = (16_384, 32_768, 65_536, 131_072)
BANDWIDTHS = (2 * 10**9, 4 * 10**9, 8 * 10**9)
CLOCKS = (5 * 10**8, 10**9, 2 * 10**9)


@pytest.fixture(scope="module")
def searched(net: Callable[..., Net]) -> Callable[[str, tuple[int, int, int], Any], int]:
    """Makespan of a searched plan on a point of the grid."""
    n, m = net(), net()
    x, context = n.input("x", 1, 96, 64), n.input("context", 1, 7, 24)
    graphs = {
        "transformer": n.output(n.transformer(x, 4, context=context)).graph(),
        "unet": m.unet(size=12).graph(),
    }

    @cache
    def search(name: str, point: tuple[int, int, int], policy: Any) -> int:
        size, bandwidth, clock = point
        npu = machine(
            sram__sram_bytes=size, dram__dram_shared_bytes_per_s=bandwidth, dma__channel_bytes_per_s=bandwidth,
            core__clock_hz=clock,
        )  # fmt: skip
        return profiled(graphs[name], npu=npu, policy=policy).traces[policy].makespan_ps

    return search


GRID = tuple(product(SIZES, BANDWIDTHS, CLOCKS))
STEPS = [
    (a, b)
    for a in GRID
    for b in GRID
    if sum(x != y for x, y in zip(a, b, strict=True)) == 1
    and all(y in (x, 2 * x) for x, y in zip(a, b, strict=True))
]


def steps_that_hurt(
    search: Callable[..., int], name: str, policy: Any, by: float
) -> list[tuple[Any, Any, float]]:
    """Steps of the grid (one number doubled) after which the searched plan is slower by more than this share."""
    ratios = [(a, b, search(name, b, policy) / search(name, a, policy)) for a, b in STEPS]
    return [(a, b, round(ratio, 3)) for a, b, ratio in ratios if ratio > 1 + by]


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("transformer", "serial"),
        pytest.param("unet", "serial", marks=pytest.mark.slow),
        ("transformer", "decoupled"),
        pytest.param("unet", "decoupled", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_law_6_a_searched_plan_is_at_most_one_percent_slower_on_better_hardware(
    searched: Callable[..., int], name: str, policy: Any
) -> None:
    assert steps_that_hurt(searched, name, policy, 0.01) == []


@pytest.mark.parametrize("name", ["transformer", pytest.param("unet", marks=pytest.mark.slow)])
@pytest.mark.parametrize("policy", ["serial", "decoupled"])
def test_no_step_of_the_grid_costs_more_than_three_percent(
    searched: Callable[..., int], name: str, policy: Any
) -> None:
    assert steps_that_hurt(searched, name, policy, 0.03) == []
