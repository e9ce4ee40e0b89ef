"""Attention segments: which exist, the tilings that are legal, the paper's rule in closed form, and a requested count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Literal

from npusim.cost import dma_ps, handover_ps, lane_operations, product_ps, vector_ps
from npusim.graph import Graph
from npusim.lower.attention import AttentionLayers, attention_layers, attention_slots
from npusim.lower.slots import SlotSpec
from npusim.ops import product_of
from npusim.scheduler.pieces import Option
from npusim.scheduler.problem import Problem


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers to be scheduled together; `layers` in execution order."""

    name: str
    kind: Literal["attention", "rows"]
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Tiling:
    """Extent of one tile, tiles in flight, and whether softmax overwrites the scores."""

    heads: int
    rows: int
    depth: int
    in_place: bool
    requested: int = 0


def find_segments(graph: Graph, kinds: str) -> list[Segment]:
    """The segments of a graph, in execution order.

    Args:
        kinds: `none`, `attention` or `all`: row chains are proposed by `units`, so `all` is the same here.
    """
    if kinds == "none":
        return []
    groups: dict[str, list[str]] = {}
    for layer in graph.layers:
        if layer.group:
            groups.setdefault(layer.group, []).append(layer.name)
    return [
        Segment(name, "attention", tuple(members)) for name, members in groups.items() if len(members) == 3
    ]


def tile_count(layers: AttentionLayers, tiling: Tiling) -> tuple[int, int]:
    """(slices over heads, slices over query rows) per batch element."""
    _, heads, queries, _ = layers.shape
    return ceil(heads / tiling.heads), ceil(queries / tiling.rows)


def slots_of(
    problem: Problem, layers: AttentionLayers, tiling: Tiling, resident: frozenset[str]
) -> list[SlotSpec]:
    """SRAM slots of the segment."""
    return attention_slots(
        problem.storage(resident), layers, tiling.heads, tiling.rows, tiling.depth, in_place=tiling.in_place
    )


def tilings(problem: Problem, layers: AttentionLayers) -> Iterator[Tiling]:
    """Every tiling that is enumerated: heads halved, rows halved down to one array height, depth by policy."""
    _, heads, queries, _ = layers.shape
    engine = problem.npu.tensor_engine[0]
    smallest = min(queries, engine.array_rows * engine.count)
    head_choices = [h for h in range(heads, 0, -1) if heads % h == 0]
    depths = (1,) if problem.policy == "serial" else (2, 1)
    for h in head_choices:
        blocks = 1
        while True:
            rows = ceil(queries / blocks)
            for depth in depths:
                yield Tiling(h, rows, depth, in_place=True)
            blocks *= 2
            if ceil(queries / blocks) < smallest or (h > 1 and blocks > 8):
                break


def requested_tiling(problem: Problem, layers: AttentionLayers, count: int) -> Tiling:
    """`count` tiles: over heads first, then over query rows; clamped where there are fewer slices."""
    _, heads, queries, _ = layers.shape
    depth = 1 if problem.policy == "serial" else 2
    if count <= heads:
        tiling = Tiling(ceil(heads / count), queries, depth, in_place=True)
    else:
        tiling = Tiling(1, ceil(queries / min(queries, max(1, count // heads))), depth, in_place=True)
    by_heads, by_rows = tile_count(layers, tiling)
    clamped = by_heads * by_rows != count
    return Tiling(tiling.heads, tiling.rows, depth, in_place=True, requested=count if clamped else 0)


def fewest_tiles(
    problem: Problem, layers: AttentionLayers, capacity_bytes: int, resident: frozenset[str]
) -> Tiling | None:
    """The paper's rule: the fewest tiles whose working set fits, with as many in flight as the policy can use.

    Rows need not be a power of two: for each split of the heads, the tallest tile that fits follows from the slot sizes, which
    grow linearly with the rows.
    """
    _, heads, queries, _ = layers.shape
    depths = (1,) if problem.policy == "serial" else (2, 1)
    for depth in depths:
        found: list[tuple[int, int, Tiling]] = []
        for h in range(heads, 0, -1):
            rows = _tallest(problem, layers, h, depth, capacity_bytes, resident)
            if rows:
                tiling = Tiling(h, ceil(queries / ceil(queries / rows)), depth, in_place=True)
                by_heads, by_rows = tile_count(layers, tiling)
                found.append((by_heads * by_rows, -h, tiling))
        if found:
            return min(found)[2]
    return None


def can_fit(problem: Problem, segment: Segment) -> bool:
    """Whether any tiling of the segment fits an SRAM of its own (a head whose keys and values exceed it cannot)."""
    layers = layers_of(problem.graph, segment)
    return fewest_tiles(problem, layers, problem.npu.sram.sram_bytes, frozenset()) is not None


def _tallest(
    problem: Problem, layers: AttentionLayers, heads: int, depth: int, capacity: int, resident: frozenset[str]
) -> int:
    """Most query rows whose slots fit (0: not even one).

    Slots grow with the rows, except that a single tile needs no second place in flight: all rows are tried first.
    """

    def fits(rows: int) -> bool:
        tiling = Tiling(heads, rows, depth, in_place=True)
        return sum(s.total_bytes for s in slots_of(problem, layers, tiling, resident)) <= capacity

    queries = layers.shape[2]
    if fits(queries):
        return queries
    low, high = 0, queries - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def predicted(problem: Problem, layers: AttentionLayers, tiling: Tiling, resident: frozenset[str]) -> Option:
    """Closed-form time and DRAM bytes of a tiling: what the simulator would say without fill, drain and contention."""
    npu, graph = problem.npu, problem.graph
    batch, heads, queries, keys = layers.shape
    by_heads, by_rows = tile_count(layers, tiling)
    tiles = batch * by_heads * by_rows
    pair = problem.precision_of(layers.scores.name).activation_pair
    tensor = 0
    for layer, cols in ((layers.scores, keys), (layers.values, layers.out.width)):
        product = product_of(graph, layer)
        assert product is not None
        tensor += tiles * int(
            product_ps(
                npu,
                problem.arrays(layer.name),
                (tiling.heads, tiling.rows, cols, product.k),
                pair,
                activations=True,
            )
        )
    vector = int(
        vector_ps(
            npu, npu.vector_engine.count, batch * heads * queries * keys, lane_operations(npu, "softmax")
        )
    )
    specs = {s.name: s for s in slots_of(problem, layers, tiling, resident)}
    moves = [
        (n, batch * by_heads * (by_rows if n in "qa" else 1), s.slot_bytes)
        for n, s in specs.items()
        if n in "qkva"
    ]
    dma = sum(count * int(dma_ps(npu, size, _runs(problem, layers, tiling, n))) for n, count, size in moves)
    waits = 2 * tiles * handover_ps(npu)
    total = tensor + vector + dma + waits
    if problem.policy == "decoupled":
        chain = max(tensor + tiles * handover_ps(npu), vector + tiles * handover_ps(npu), dma)
        total = total if tiling.depth == 1 else chain + (total - chain) // tiles
    return Option(
        cost_ps=total,
        dram_bytes=sum(count * size for _, count, size in moves),
        sram_bytes=sum(s.total_bytes for s in specs.values()),
        tile=tiling,
    )


def _runs(problem: Problem, layers: AttentionLayers, tiling: Tiling, slot: str) -> int:
    """Contiguous runs of one transfer: one for blocked or whole tensors, one per row for some heads of a plain one."""
    tensor, height = {
        "q": (layers.scores.operands[0].parts[0].tensor, tiling.rows),
        "k": (layers.scores.operands[1].parts[0].tensor, layers.shape[3]),
        "v": (layers.values.operands[1].parts[0].tensor, layers.shape[3]),
        "a": (layers.values.output, tiling.rows),
    }[slot]
    whole = tiling.heads == layers.shape[1] or problem.graph.tensors[tensor].shape[1] > 1
    return 1 if whole or problem.layouts.get(tensor) is not None else height


def layers_of(graph: Graph, segment: Segment) -> AttentionLayers:
    """The three phases of an attention segment."""
    return attention_layers(graph, segment.layers)
