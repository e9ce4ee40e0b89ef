"""The kinds of segments, behind one interface: the planner asks each for tilings, their cost, slots and its entry in the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Protocol

from npusim.graph import Graph
from npusim.layout import PLAIN, Layout
from npusim.lower.attention import block_layout
from npusim.lower.slots import SlotSpec
from npusim.plan import Pieces, SegmentPlan, Slots
from npusim.scheduler import chains, tiles
from npusim.scheduler.chains import RowTiling
from npusim.scheduler.pieces import Option, layer_key, undominated
from npusim.scheduler.problem import Problem
from npusim.scheduler.tiles import Segment, Tiling

Tile = Tiling | RowTiling
#: Owner of slots -> slots: a layer's name, or the segment's.
Owned = Mapping[str, Sequence[SlotSpec]]


class Kind(Protocol):
    """What the planner must know of a kind of segment."""

    def key(self, problem: Problem, segment: Segment, resident: frozenset[str]) -> object:
        """Everything that the segment's options depend on, without names."""

    def tilings(self, problem: Problem, segment: Segment) -> Sequence[Tile]:
        """Every tiling that is enumerated."""

    def rule(
        self, problem: Problem, segment: Segment, capacity_bytes: int, resident: frozenset[str]
    ) -> Tile | None:
        """The paper's rule: the fewest tiles whose working set fits."""

    def requested(self, problem: Problem, segment: Segment, count: int) -> Sequence[Tile]:
        """Tilings with `count` tiles, or the most that there are."""

    def predict(self, problem: Problem, segment: Segment, tile: Tile, resident: frozenset[str]) -> Option:
        """Closed-form cost of a tiling."""

    def group(self, tile: Tile) -> object:
        """What closed forms compare less well: of each group the best is simulated."""

    def slots(self, problem: Problem, segment: Segment, tile: Tile, resident: frozenset[str]) -> Owned:
        """SRAM slots by owner."""

    def plan(self, graph: Graph, segment: Segment, tile: Tile, slots: tuple[Slots, ...]) -> SegmentPlan:
        """The plan's entry."""

    def pieces(self, segment: Segment, tile: Tile) -> Mapping[str, Pieces]:
        """How each layer is cut inside a tile, where it is."""

    def layouts(self, problem: Problem, segment: Segment, tile: Tile) -> Mapping[str, Layout]:
        """Layouts of what stays inside the segment, where they follow from the tile."""


class Attention:
    """Scores, softmax and values of one attention; tiles are heads x query rows x keys."""

    def key(self, problem: Problem, segment: Segment, resident: frozenset[str]) -> object:
        """See `Kind`."""
        return tuple(layer_key(problem, problem.by_name[n], resident) for n in segment.layers)

    def tilings(self, problem: Problem, segment: Segment) -> Sequence[Tile]:
        """See `Kind`."""
        return list(tiles.tilings(problem, tiles.layers_of(problem.graph, segment)))

    def rule(
        self, problem: Problem, segment: Segment, capacity_bytes: int, resident: frozenset[str]
    ) -> Tile | None:
        """See `Kind`."""
        layers = tiles.layers_of(problem.graph, segment)
        return tiles.fewest_tiles(problem, layers, capacity_bytes, resident)

    def requested(self, problem: Problem, segment: Segment, count: int) -> Sequence[Tile]:
        """See `Kind`."""
        tiling = tiles.requested_tiling(problem, tiles.layers_of(problem.graph, segment), count)
        return [tiling, replace(tiling, depth=1)]

    def predict(self, problem: Problem, segment: Segment, tile: Tile, resident: frozenset[str]) -> Option:
        """See `Kind`."""
        assert isinstance(tile, Tiling)
        return tiles.predicted(problem, tiles.layers_of(problem.graph, segment), tile, resident)

    def group(self, tile: Tile) -> object:
        """All keys together; blocks of keys, by tiles in flight."""
        assert isinstance(tile, Tiling)
        return tile.depth if tile.keys else 0

    def slots(self, problem: Problem, segment: Segment, tile: Tile, resident: frozenset[str]) -> Owned:
        """See `Kind`."""
        assert isinstance(tile, Tiling)
        layers = tiles.layers_of(problem.graph, segment)
        return {segment.name: tiles.slots_of(problem, layers, tile, resident)}

    def plan(self, graph: Graph, segment: Segment, tile: Tile, slots: tuple[Slots, ...]) -> SegmentPlan:
        """See `Kind`."""
        assert isinstance(tile, Tiling)
        by_heads, by_rows, by_keys = tiles.tile_count(tiles.layers_of(graph, segment), tile)
        return SegmentPlan(
            name=segment.name, kind=segment.kind, layers=segment.layers,
            tiles={"heads": by_heads, "rows": by_rows} | ({"keys": by_keys} if by_keys > 1 else {}),
            tile_count=by_heads * by_rows * by_keys, heads_per_tile=tile.heads, rows_per_tile=tile.rows,
            keys_per_tile=tile.keys if by_keys > 1 else 0, depth=tile.depth, in_place=tile.in_place, requested=tile.requested,
            slots=slots,
        )  # fmt: skip

    def pieces(self, segment: Segment, tile: Tile) -> Mapping[str, Pieces]:
        """See `Kind`."""
        return {}

    def layouts(self, problem: Problem, segment: Segment, tile: Tile) -> Mapping[str, Layout]:
        """See `Kind`."""
        assert isinstance(tile, Tiling)
        inside = [problem.by_name[n].output for n in segment.layers[:2]]
        return {t: block_layout(problem.layouts.get(t, PLAIN), tile.keys) for t in inside}


class RowChain:
    """Layers joined row by row; tiles are rows of the last one."""

    def key(self, problem: Problem, segment: Segment, resident: frozenset[str]) -> object:
        """See `Kind`."""
        return chains.chain_key(problem, segment.layers, resident)

    def tilings(self, problem: Problem, segment: Segment) -> Sequence[Tile]:
        """See `Kind`."""
        return list(chains.tilings(problem, segment.layers))

    def rule(
        self, problem: Problem, segment: Segment, capacity_bytes: int, resident: frozenset[str]
    ) -> Tile | None:
        """See `Kind`."""
        for tiling in chains.tilings(problem, segment.layers):
            slots = chains.slots_of(problem, segment.layers, tiling, resident)
            if total_bytes(slots) <= capacity_bytes:
                return tiling
        return None

    def requested(self, problem: Problem, segment: Segment, count: int) -> Sequence[Tile]:
        """See `Kind`."""
        return chains.requested_tilings(problem, segment.layers, count)

    def predict(self, problem: Problem, segment: Segment, tile: Tile, resident: frozenset[str]) -> Option:
        """See `Kind`."""
        assert isinstance(tile, RowTiling)
        return chains.predicted(problem, segment.layers, tile, resident)

    def group(self, tile: Tile) -> object:
        """One group."""
        return None

    def slots(self, problem: Problem, segment: Segment, tile: Tile, resident: frozenset[str]) -> Owned:
        """See `Kind`."""
        assert isinstance(tile, RowTiling)
        return chains.slots_of(problem, segment.layers, tile, resident)

    def plan(self, graph: Graph, segment: Segment, tile: Tile, slots: tuple[Slots, ...]) -> SegmentPlan:
        """See `Kind`."""
        assert isinstance(tile, RowTiling)
        last = next(x for x in graph.layers if x.name == segment.layers[-1])
        shape = graph.tensors[last.output].shape
        count = ceil(shape[2] / tile.rows)
        return SegmentPlan(
            name=segment.name, kind=segment.kind, layers=segment.layers, tiles={"rows": count}, tile_count=count,
            heads_per_tile=shape[1], rows_per_tile=tile.rows, depth=tile.depth, in_place=False,
            requested=tile.requested, slots=slots,
        )  # fmt: skip

    def pieces(self, segment: Segment, tile: Tile) -> Mapping[str, Pieces]:
        """See `Kind`."""
        assert isinstance(tile, RowTiling)
        return {
            name: Pieces(rows=tile.rows, cols=cols, depth=tile.depth)
            for name, cols in zip(segment.layers, tile.cols, strict=True)
        }

    def layouts(self, problem: Problem, segment: Segment, tile: Tile) -> Mapping[str, Layout]:
        """See `Kind`."""
        return {}


KINDS: Mapping[str, Kind] = {"attention": Attention(), "rows": RowChain()}


def total_bytes(owned: Owned) -> int:
    """Bytes of all slots."""
    return sum(s.total_bytes for specs in owned.values() for s in specs)


def choices(
    problem: Problem, segment: Segment, rule: str, count: int | None, resident: frozenset[str]
) -> list[Option]:
    """The undominated tilings that a request leaves: all of them, the paper's rule, or a count."""
    key = ("choices", segment.kind, rule, count, KINDS[segment.kind].key(problem, segment, resident))
    found = problem.memo.get(key)
    if found is None:
        tried = _tried(problem, segment, rule, count)
        found = undominated(predicted(problem, segment, tried, resident))
        problem.memo[key] = found
    assert isinstance(found, list)
    return found


def predicted(
    problem: Problem, segment: Segment, tiles: Sequence[Tile], resident: frozenset[str]
) -> list[Option]:
    """Closed-form cost of some tilings, computed once for segments of equal structure."""
    kind = KINDS[segment.kind]
    known = problem.memo.setdefault(("predicted", segment.kind, kind.key(problem, segment, resident)), {})
    assert isinstance(known, dict)
    for tile in tiles:
        if tile not in known:
            known[tile] = kind.predict(problem, segment, tile, resident)
    return [known[t] for t in tiles]


def _tried(problem: Problem, segment: Segment, rule: str, count: int | None) -> Sequence[Tile]:
    kind = KINDS[segment.kind]
    if count is not None:
        return kind.requested(problem, segment, count)
    if rule == "sram":
        chosen = paper_rule(problem, segment, problem.npu.sram.sram_bytes, frozenset())
        return [chosen] if chosen is not None else kind.tilings(problem, segment)[-1:]
    return kind.tilings(problem, segment)


def can_fit(problem: Problem, segment: Segment) -> bool:
    """Whether any tiling of the segment fits an SRAM of its own."""
    return paper_rule(problem, segment, problem.npu.sram.sram_bytes, frozenset()) is not None


def paper_rule(
    problem: Problem, segment: Segment, capacity_bytes: int, resident: frozenset[str]
) -> Tile | None:
    """`Kind.rule`, computed once for segments of equal structure."""
    kind = KINDS[segment.kind]
    key = ("rule", segment.kind, kind.key(problem, segment, resident), capacity_bytes)
    if key not in problem.memo:
        problem.memo[key] = kind.rule(problem, segment, capacity_bytes, resident)
    found = problem.memo[key]
    assert found is None or isinstance(found, Tile)
    return found
