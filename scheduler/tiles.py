"""Attention segments: which exist, the tilings that are legal, the paper's rule in closed form, and a requested count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, lcm, prod
from typing import Literal

from npusim.cost import dma_ps, handover_ps, lane_operations, product_ps, vector_ps
from npusim.graph import Graph, Layer
from npusim.lower.attention import AttentionLayers, attention_layers, attention_slots
from npusim.lower.slots import SlotSpec
from npusim.ops import product_of
from npusim.scheduler.pieces import Option
from npusim.scheduler.problem import Problem

#: Keys are cut where K and V of one head take more than this share of the SRAM. Below it, cutting gained at most 3 % where it was tried
#: (BK-SDM-Tiny with half the SRAM); above it, 5 to 30 %.
CROWDED = 0.4


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers to be scheduled together; `layers` in execution order."""

    name: str
    kind: Literal["attention", "rows"]
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Tiling:
    """Extent of one tile (keys 0: all), tiles in flight, and whether softmax overwrites the scores."""

    heads: int
    rows: int
    depth: int
    in_place: bool
    requested: int = 0
    keys: int = 0


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


def tile_count(layers: AttentionLayers, tiling: Tiling) -> tuple[int, int, int]:
    """(slices over heads, over query rows, over keys) per batch element."""
    _, heads, queries, keys = layers.shape
    return ceil(heads / tiling.heads), ceil(queries / tiling.rows), ceil(keys / (tiling.keys or keys))


def slots_of(
    problem: Problem, layers: AttentionLayers, tiling: Tiling, resident: frozenset[str]
) -> list[SlotSpec]:
    """SRAM slots of the segment."""
    return attention_slots(
        problem.storage(resident), layers, tiling.heads, tiling.rows, tiling.depth, in_place=tiling.in_place, keys=tiling.keys
    )  # fmt: skip


def _total_bytes(
    problem: Problem, layers: AttentionLayers, tiling: Tiling, resident: frozenset[str] = frozenset()
) -> int:
    return sum(s.total_bytes for s in slots_of(problem, layers, tiling, resident))


def _depths(problem: Problem) -> Sequence[int]:
    """Tiles in flight that the policy can use."""
    return (1,) if problem.policy == "serial" else (2, 1)


def _fewest_rows(problem: Problem, layers: AttentionLayers) -> int:
    """Query rows of the smallest tile that is enumerated: one array height of each engine."""
    engine = problem.npu.tensor_engine[0]
    return min(layers.shape[2], engine.array_rows * engine.count)


def tilings(problem: Problem, layers: AttentionLayers) -> Iterator[Tiling]:
    """Every tiling that is enumerated: heads halved, rows halved down to one array height, depth by policy; keys where that can help."""
    _, heads, queries, _ = layers.shape
    smallest = _fewest_rows(problem, layers)
    head_choices = [h for h in range(heads, 0, -1) if heads % h == 0]
    depths = _depths(problem)
    for h in head_choices:
        blocks = 1
        while True:
            rows = ceil(queries / blocks)
            for depth in depths:
                yield Tiling(h, rows, depth, in_place=True)
            blocks *= 2
            if ceil(queries / blocks) < smallest or (h > 1 and blocks > 8):
                break
    if keys_are_cut(problem, layers):
        yield from key_tilings(problem, layers)


def keys_are_cut(problem: Problem, layers: AttentionLayers) -> bool:
    """Whether tiles with blocks of keys can help: K and V of a head take up much of the SRAM, or no tile with all keys fits."""
    smallest = {s.name: s.slot_bytes for s in slots_of(problem, layers, _SMALLEST, frozenset())}
    capacity = problem.npu.sram.sram_bytes
    return smallest["k"] + smallest["v"] > CROWDED * capacity or sum(smallest.values()) > capacity


_SMALLEST = Tiling(1, 1, 1, in_place=True)


def whole_keys_fit(problem: Problem, segment: Segment) -> bool:
    """Whether any tile with all keys fits an SRAM of its own."""
    return _total_bytes(problem, layers_of(problem.graph, segment), _SMALLEST) <= problem.npu.sram.sram_bytes


def key_tilings(problem: Problem, layers: AttentionLayers) -> Iterator[Tiling]:
    """Tiles of one head with blocks of keys: rows and keys halved down to one array, as far as they fit an SRAM of their own."""
    _, _, queries, keys = layers.shape
    engine = problem.npu.tensor_engine[0]
    unit = lcm(engine.array_cols, engine.array_depth)
    halved = [2**i for i in range(max(queries, keys).bit_length())]
    heights = dict.fromkeys(ceil(queries / n) for n in halved)
    lengths = dict.fromkeys(unit * ceil(keys / n / unit) for n in halved)
    capacity, smallest = problem.npu.sram.sram_bytes, _fewest_rows(problem, layers)
    for depth in _depths(problem):
        for rows in heights:
            for length in lengths:
                tiling = Tiling(1, rows, depth, in_place=True, keys=length)
                if rows >= smallest and length < keys and _total_bytes(problem, layers, tiling) <= capacity:
                    yield tiling


def requested_tiling(problem: Problem, layers: AttentionLayers, count: int) -> Tiling:
    """`count` tiles: over heads first, then over query rows; clamped where there are fewer slices."""
    _, heads, queries, _ = layers.shape
    depth = 1 if problem.policy == "serial" else 2
    if count <= heads:
        tiling = Tiling(ceil(heads / count), queries, depth, in_place=True)
    else:
        tiling = Tiling(1, ceil(queries / min(queries, max(1, count // heads))), depth, in_place=True)
    clamped = prod(tile_count(layers, tiling)) != count
    return Tiling(tiling.heads, tiling.rows, depth, in_place=True, requested=count if clamped else 0)


def fewest_tiles(
    problem: Problem, layers: AttentionLayers, capacity_bytes: int, resident: frozenset[str]
) -> Tiling | None:
    """The paper's rule: the fewest tiles whose working set fits, with as many in flight as the policy can use.

    Keys are cut only if no tile with all of them fits. Otherwise rows need not be a power of two: for each split of the heads, the
    tallest tile that fits follows from the slot sizes, which grow linearly with the rows.
    """
    _, heads, queries, _ = layers.shape
    for depth in _depths(problem):
        found: list[tuple[int, int, Tiling]] = []
        for h in range(heads, 0, -1):
            rows = _tallest(problem, layers, h, depth, capacity_bytes, resident)
            if rows:
                tiling = Tiling(h, ceil(queries / ceil(queries / rows)), depth, in_place=True)
                found.append((prod(tile_count(layers, tiling)), -h, tiling))
        if found:
            return min(found)[2]
    if not keys_are_cut(problem, layers):
        return None
    cut = [
        t
        for t in key_tilings(problem, layers)
        if _total_bytes(problem, layers, t, resident) <= capacity_bytes
    ]
    return min(cut, key=lambda t: (-t.depth, prod(tile_count(layers, t)), -t.rows), default=None)


def _tallest(
    problem: Problem, layers: AttentionLayers, heads: int, depth: int, capacity: int, resident: frozenset[str]
) -> int:
    """Most query rows whose slots fit (0: not even one).

    Slots grow with the rows, except that a single tile needs no second place in flight: all rows are tried first.
    """

    def fits(rows: int) -> bool:
        tiling = Tiling(heads, rows, depth, in_place=True)
        return _total_bytes(problem, layers, tiling, resident) <= capacity

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
    by_heads, by_rows, by_keys = tile_count(layers, tiling)
    tiles, block = batch * by_heads * by_rows * by_keys, tiling.keys or keys
    pair = problem.precision_of(layers.scores.name).activation_pair
    tensor = 0
    depth = _depth_of(graph, layers.scores)
    for layer, cols, k in ((layers.scores, block, depth), (layers.values, layers.out.width, block)):
        extents = (tiling.heads, tiling.rows, cols, k)
        tensor += tiles * int(product_ps(npu, problem.arrays(layer.name), extents, pair, activations=True))
    vector = _elements_ps(problem, "softmax", batch * heads * queries * keys)
    if by_keys > 1:
        out = graph.tensors[layers.values.output].elements
        vector += _elements_ps(problem, "div", out)
        vector += (by_keys - 1) * sum(_elements_ps(problem, f, out) for f in ("mul", "add"))
    specs = {s.name: s for s in slots_of(problem, layers, tiling, resident)}
    streamed = by_keys + (by_rows - 1) * max(0, by_keys - tiling.depth)  # the last blocks are still there
    moves = [
        (n, batch * by_heads * (by_rows if n in "qa" else streamed), s.slot_bytes)
        for n, s in specs.items()
        if n in "qkva"
    ]
    dma = sum(count * int(dma_ps(npu, size, _runs(problem, layers, tiling, n))) for n, count, size in moves)
    masks = [s.slot_bytes for n, s in specs.items() if n.startswith("aux")]
    dma += tiles * sum(int(dma_ps(npu, size, tiling.rows if by_keys > 1 else 1)) for size in masks)
    handed = tiles * handover_ps(npu)  # scores to the vector engines, probabilities back
    taken = handed if by_keys > 1 else 0  # products with blocks of V to the vector engines
    total = tensor + vector + dma + 2 * handed + taken
    if problem.policy == "decoupled":
        chain = max(tensor + handed, vector + handed + taken, dma)
        total = total if tiling.depth == 1 else chain + (total - chain) // tiles
    return Option(
        cost_ps=total,
        dram_bytes=sum(count * size for _, count, size in moves) + tiles * sum(masks),
        sram_bytes=sum(s.total_bytes for s in specs.values()),
        tile=tiling,
    )


def _depth_of(graph: Graph, layer: Layer) -> int:
    """Depth of a layer's products."""
    product = product_of(graph, layer)
    assert product is not None
    return product.k


def _elements_ps(problem: Problem, function: str, elements: int) -> int:
    """Time of all vector engines together for a function of so many elements."""
    npu = problem.npu
    return int(vector_ps(npu, npu.vector_engine.count, elements, lane_operations(npu, function)))


def _runs(problem: Problem, layers: AttentionLayers, tiling: Tiling, slot: str) -> int:
    """Contiguous runs of one transfer: one for blocked or whole tensors, one per row for some heads of a plain one."""
    tensor, height = {
        "q": (layers.scores.operands[0].parts[0].tensor, tiling.rows),
        "k": (layers.scores.operands[1].parts[0].tensor, tiling.keys or layers.shape[3]),
        "v": (layers.values.operands[1].parts[0].tensor, tiling.keys or layers.shape[3]),
        "a": (layers.values.output, tiling.rows),
    }[slot]
    whole = tiling.heads == layers.shape[1] or problem.graph.tensors[tensor].shape[1] > 1
    return 1 if whole or problem.layouts.get(tensor) is not None else height


def layers_of(graph: Graph, segment: Segment) -> AttentionLayers:
    """The three phases of an attention segment."""
    return attention_layers(graph, segment.layers)
