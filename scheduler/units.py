"""What is scheduled as a whole, in execution order: segments, and the layers outside of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import inf

from npusim.graph import Graph, Layer
from npusim.lower.slots import layer_slots
from npusim.scheduler.chains import best_cut, chain_ps, runs
from npusim.scheduler.kinds import KINDS, Owned, Tile, can_fit, choices
from npusim.scheduler.pieces import Option, all_options, largest_pieces
from npusim.scheduler.problem import Problem
from npusim.scheduler.request import Request
from npusim.scheduler.residency import Unit
from npusim.scheduler.tiles import Segment, find_segments, keys_are_cut, layers_of, whole_keys_fit


def attention_segments(problem: Problem, request: Request) -> tuple[list[Segment], list[Segment]]:
    """(segments that can be joined, those that no tiling fits). A count of tiles for all is of heads x query rows, with all keys."""
    every = find_segments(problem.graph, "none" if request.tiles == "none" else request.segments)
    found = [s for s in every if s.name not in problem.apart]
    fits = whole_keys_fit if request.tiles.isdecimal() else can_fit
    joined = [s for s in found if s.name in request.pins or fits(problem, s)]
    return joined, [s for s in found if s not in joined]


def crowded_segments(problem: Problem, request: Request) -> list[Segment]:
    """Attentions whose keys may be cut: what joining them gains is not sure."""
    joined, _ = attention_segments(problem, request)
    free = [s for s in joined if request.count(s.name) is None]
    return [s for s in free if keys_are_cut(problem, layers_of(problem.graph, s))]


def propose_chains(problem: Problem, attention: Sequence[Segment], request: Request) -> list[tuple[str, ...]]:
    """The cheapest cut of every run of layers into chains, in closed form, when nothing large stays in SRAM.

    An attention whose tile count was asked for stays a segment of its own: its tiles are heads x query rows.
    """
    found = []
    for run in _joinable(problem, attention, request):
        found += best_cut(problem, run, _singles(problem, attention, run))
    if request.tiles.isdecimal():  # a count that some chain does not fit in leaves that chain's layers apart
        found = [c for c in found if _fits_in(problem, c, int(request.tiles))]
    return found


def _fits_in(problem: Problem, chain: tuple[str, ...], tiles: int) -> bool:
    """Whether a chain in so many tiles fits an SRAM of its own."""
    (segment,) = chain_segments(problem.graph, [chain])
    options = choices(problem, segment, "auto", tiles, frozenset())
    return min(o.sram_bytes for o in options) <= problem.npu.sram.sram_bytes


#: How many other chains are tried where there is time for it.
OTHERS = 8


def other_chains(
    problem: Problem, attention: Sequence[Segment], request: Request, known: Sequence[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """More parts of runs that can be joined, those first that promise to save the most time in closed form."""
    found: list[tuple[int, tuple[str, ...]]] = []
    for run in _joinable(problem, attention, request):
        single = _singles(problem, attention, run)
        for start in range(len(run)):
            for end in range(start + 2, len(run) + 1):
                cost = chain_ps(problem, run[start:end])
                apart = sum(single[i, i + 1] for i in range(start, end))
                if cost is not None and run[start:end] not in known:
                    found.append((cost - apart, run[start:end]))
    return [chain for _, chain in sorted(found)[:OTHERS]]


def _joinable(problem: Problem, attention: Sequence[Segment], request: Request) -> list[tuple[str, ...]]:
    """Runs that hold more than one attention: that alone is a segment already. Attentions whose tiles are counted stay apart."""
    counted = {n for s in attention if request.count(s.name) is not None for n in s.layers}
    alone = {s.layers for s in attention}
    return [run for run in runs(problem.graph, counted) if run not in alone]


def _singles(
    problem: Problem, attention: Sequence[Segment], run: Sequence[str]
) -> dict[tuple[int, int], int]:
    """(first, end) of each layer and each attention segment of a run -> predicted time."""
    single = {(i, i + 1): _alone_ps(problem, problem.by_name[n]) for i, n in enumerate(run)}
    for segment in attention:
        if set(segment.layers) <= set(run):
            first = run.index(segment.layers[0])
            best = choices(problem, segment, "auto", None, frozenset())
            single[first, first + len(segment.layers)] = best[0].cost_ps
    return single


def predicted_share(problem: Problem, attention: Sequence[Segment], chain: Sequence[str]) -> float:
    """Predicted time of a chain over that of its layers apart, attention alone joined."""
    joined, single = chain_ps(problem, chain), _singles(problem, attention, chain)
    best = [0]
    for end in range(1, len(chain) + 1):
        best.append(min(best[s] + single[s, end] for s in range(end) if (s, end) in single))
    return inf if joined is None else joined / max(1, best[-1])


#: Tensors that take at most this share of the SRAM are taken to stay there when layers are costed on their own.
SMALL = 8


def _alone_ps(problem: Problem, layer: Layer) -> int:
    capacity = problem.npu.sram.sram_bytes
    options = all_options(problem, layer, small_tensors(problem, [layer.name]))
    return next((o for o in options if o.sram_bytes <= capacity), options[-1]).cost_ps


def small_tensors(problem: Problem, names: Sequence[str]) -> frozenset[str]:
    """What these layers read or write and what is so small that it is taken to stay in SRAM, early statistics among it."""
    tensors, most = problem.graph.tensors, problem.npu.sram.sram_bytes // SMALL
    layers = [problem.by_name[n] for n in names]
    touched = {t for x in layers for t in (*x.reads(), x.output)}
    return problem.sums_of(names) | {
        t for t in touched if tensors[t].kind == "intermediate" and problem.tensor_bytes(t) <= most
    }


def chain_segments(graph: Graph, chains: Sequence[tuple[str, ...]]) -> list[Segment]:
    """Chains as segments, each named after the module that its members share."""
    names: dict[str, int] = {}
    found = []
    for chain in chains:
        stem = _shared_scope(chain)
        number = names[stem] = names.get(stem, 0) + 1
        found.append(Segment(f"{stem}:rows{number}", "rows", chain))
    return found


def _shared_scope(names: Sequence[str]) -> str:
    """The longest dotted prefix of all names, or the first name."""
    split = [n.split(".") for n in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or names[0]


def make_units(problem: Problem, segments: Sequence[Segment], request: Request) -> list[Unit]:
    """Layers and segments in execution order; a segment runs when its last layer is due."""
    ends = {s.layers[-1]: s for s in segments}
    inside = {name for s in segments for name in s.layers}
    units = []
    for layer in problem.graph.layers:
        if layer.name in ends:
            units.append(_segment_unit(problem, ends[layer.name], request))
        elif layer.name not in inside:
            units.append(_layer_unit(problem, layer, request))
    return units


def _layer_unit(problem: Problem, layer: Layer, request: Request) -> Unit:
    """A layer on its own. Without tiling, one whose activations exceed the SRAM streams in pieces as large as the SRAM allows."""
    tensors = problem.graph.tensors
    activations = {t for t in (*layer.reads(), layer.output) if tensors[t].kind != "weight"}
    streams = sum(problem.tensor_bytes(t) for t in activations) > problem.npu.sram.sram_bytes

    def options(resident: frozenset[str]) -> Sequence[Option]:
        found = all_options(problem, layer, resident)
        return [largest_pieces(problem, found)] if request.tiles == "none" and streams else found

    return Unit(
        name=layer.name,
        layers=(layer.name,),
        tensors=frozenset((*layer.reads(), layer.output)) | problem.sums_of([layer.name]),
        options=cache(options),
    )


def _segment_unit(problem: Problem, segment: Segment, request: Request) -> Unit:
    layers = [problem.by_name[n] for n in segment.layers]
    internal = {x.output for x in layers} - problem.read_outside(segment.layers)
    tensors = frozenset(t for x in layers for t in (*x.reads(), x.output)) - internal
    tensors |= problem.sums_of(segment.layers)

    def options(resident: frozenset[str]) -> Sequence[Option]:
        return choices(problem, segment, request.tiles, request.count(segment.name), resident)

    return Unit(
        name=segment.name, layers=segment.layers, tensors=tensors, options=cache(options), segment=segment
    )


def unit_slots(problem: Problem, unit: Unit, resident: frozenset[str], option: Option) -> Owned:
    """SRAM slots of a unit run in a certain way, by owner (a layer, or the segment)."""
    if unit.segment is not None:
        assert isinstance(option.tile, Tile)
        return KINDS[unit.segment.kind].slots(problem, unit.segment, option.tile, resident)
    assert option.pieces is not None
    layer = problem.by_name[unit.layers[0]]
    return {layer.name: layer_slots(problem.storage(resident), layer, option.pieces)}


def slot_name(owner: str, slot: str, number: int) -> str:
    """The name under which a slot's address is kept."""
    return f"{owner}/{slot}/{number}"
