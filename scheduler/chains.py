"""Row chains: which layers may be joined, the tilings of a chain with their closed-form cost, and where a network is best cut."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, prod

from npusim.cost import dma_ps, handover_ps, product_ps, setup_ps
from npusim.graph import Graph, Layer
from npusim.lower.chain import Chain, Member, chain_of, ends_on_tensor, starts_on_tensor
from npusim.lower.geometry import row_unit
from npusim.lower.rows import chain_slots
from npusim.lower.slots import SlotSpec
from npusim.ops import OPS, product_of
from npusim.scheduler.pieces import Option, layer_key
from npusim.scheduler.problem import Problem
from npusim.scheduler.sums import added, first_pass_ps, vector_work_ps

#: Into how many tiles the rows of a chain are tried to be cut.
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: And into how many when it is decided where a run of layers is cut: the fewest that fit, and the next so many counts.
PROPOSED, TRIED = (4, 16, 64, 128, 256), 2
#: Into how many blocks of columns a gated product may be cut: both its halves wait in SRAM until they are multiplied.
GATED_BLOCKS = 4
#: Most tiles for each of which weights are streamed again.
STREAMED_TILES = 8
#: Most members of a chain: longer ones need a place for every stage and gain nothing.
LONGEST = 16


@dataclass(frozen=True, slots=True)
class RowTiling:
    """How a chain is tiled.

    Attributes:
        rows: rows of the last member in one tile.
        depth: tiles in flight.
        cols: output columns of each member's pieces.
        kept: whether all of a chain's weights stay in SRAM; else their blocks are streamed for each tile.
        requested: the tile count asked for, where it had to be clamped; else 0.
    """

    rows: int
    depth: int
    cols: tuple[int, ...]
    kept: bool = True
    requested: int = 0


# ---- which layers may be joined -----------------------------------------------------------------------------------------


def runs(graph: Graph, apart: Collection[str] = ()) -> list[tuple[str, ...]]:
    """Longest sequences of layers that can be joined, in execution order, none of them in `apart`.

    A layer that reads nothing of the run under way does not end it: it runs before the run. One that reads of it and cannot join
    ends it.
    """
    found: list[tuple[str, ...]] = []
    run: list[Layer] = []
    for layer in graph.layers:
        made = {x.output for x in run}
        free = layer.name not in apart
        if run and not any(t in made for t in layer.reads()):
            continue
        if run and free and len(run) < LONGEST and _joins(graph, run, layer):
            run.append(layer)
            continue
        if len(run) > 1:
            found.append(tuple(x.name for x in run))
        run = [layer] if free and _joins(graph, [], layer) else []
    if len(run) > 1:
        found.append(tuple(x.name for x in run))
    return found


def _joins(graph: Graph, run: Sequence[Layer], layer: Layer) -> bool:
    """Whether a layer can be the next member: its rows follow from rows of the members that it reads."""
    tensors = graph.tensors
    out = tensors[layer.output].shape
    made = {x.output for x in run}
    if OPS[layer.op].streams == "whole" or layer.op == "gather" or out[2] <= 1:
        return False
    if run and out[0] != tensors[run[-1].output].shape[0]:
        return False
    for number, operand in enumerate(layer.operands):
        for part in operand.parts:
            if part.tensor in made and not _follows_rows(graph, layer, number, tensors[part.tensor].shape[2]):
                return False
    return True


def _follows_rows(graph: Graph, layer: Layer, operand: int, rows: int) -> bool:
    """Whether an operand with so many rows is read tile by tile."""
    if operand == 0:
        if layer.op == "group_norm":
            return False  # its statistics need all rows before its first output
        if "in_hw" in layer.attributes:
            return rows == prod(int(v) for v in layer.attributes["in_hw"])
    elif layer.operands[operand].role in ("weight", "bias", "scale", "table", "y"):
        return False
    return rows == graph.tensors[layer.output].shape[2]


# ---- tilings and their cost ---------------------------------------------------------------------------------------------


def tilings(problem: Problem, names: Sequence[str], counts: Sequence[int] = COUNTS) -> Iterator[RowTiling]:
    """Every tiling that is enumerated: tile counts by powers of two; weights kept, whole or in blocks, or streamed for each tile."""
    last = problem.by_name[names[-1]]
    total, unit = problem.graph.tensors[last.output].shape[2], row_unit(last)
    depth = 1 if problem.policy == "serial" else 2
    for count in counts:
        if count > max(1, total // unit):
            break
        rows = min(total, -(-ceil(total / count) // unit) * unit)
        for cols, kept in _blockings(problem, names, count):
            yield RowTiling(rows, depth, cols, kept)


def _blockings(problem: Problem, names: Sequence[str], tiles: int) -> Iterator[tuple[tuple[int, ...], bool]]:
    """(columns of each member's pieces, whether weights stay)."""
    layers = [problem.by_name[n] for n in names]
    whole = tuple(problem.graph.tensors[x.output].shape[3] for x in layers)
    yield whole, True
    gated = tuple(
        _block(problem, x, GATED_BLOCKS) if x.attributes.get("gated") else w
        for x, w in zip(layers, whole, strict=True)
    )
    if gated != whole:
        yield gated, True
    streamed = tuple(_streamed_cols(problem, x) for x in layers)
    if streamed != whole and tiles <= STREAMED_TILES:
        yield streamed, False


def requested_tilings(problem: Problem, names: Sequence[str], count: int) -> list[RowTiling]:
    """Tilings with `count` tiles, or the most that there are."""
    last = problem.by_name[names[-1]]
    total, unit = problem.graph.tensors[last.output].shape[2], row_unit(last)
    rows = min(total, -(-ceil(total / count) // unit) * unit)
    clamped = count if -(-total // rows) != count else 0
    deepest = 1 if problem.policy == "serial" else 2
    return [
        RowTiling(rows, depth, cols, kept, clamped)
        for depth in range(deepest, 0, -1)
        for cols, kept in _blockings(problem, names, 1)
    ]


def _streamed_cols(problem: Problem, layer: Layer) -> int:
    """Output columns of a piece whose weights take a sixteenth of the SRAM."""
    if layer.op not in ("conv", "linear"):
        return problem.graph.tensors[layer.output].shape[3]
    weight = problem.tensor_bytes(layer.operands[1].parts[0].tensor)
    return _block(problem, layer, max(1, 16 * weight // problem.npu.sram.sram_bytes))


def _block(problem: Problem, layer: Layer, blocks: int) -> int:
    """Columns of one of so many blocks: whole blocks of a blocked layout, whole groups of a grouped convolution."""
    total = problem.graph.tensors[layer.output].shape[3]
    if int(layer.attributes.get("groups", 1)) > 1:
        return total
    layout = problem.layouts.get(layer.output)
    granule = layout.block if layout is not None else problem.npu.tensor_engine[0].array_cols
    return min(total, -(-ceil(total / blocks) // granule) * granule)


def slots_of(
    problem: Problem, names: Sequence[str], tiling: RowTiling, resident: frozenset[str]
) -> dict[str, list[SlotSpec]]:
    """SRAM slots of each member."""
    chain = geometry(problem, names, tiling)
    return chain_slots(problem.storage(resident), chain, tiling.cols, tiling.depth, kept=tiling.kept)


def geometry(problem: Problem, names: Sequence[str], tiling: RowTiling) -> Chain:
    """The chain that a tiling makes of its layers, computed once."""
    key = ("chain", tuple(names), tiling.rows, tiling.depth)
    found = problem.memo.get(key)
    if found is None:
        outside = problem.read_outside(names)
        found = chain_of(problem.graph, names, tiling.rows, depth=tiling.depth, outside=outside)
        problem.memo[key] = found
    assert isinstance(found, Chain)
    return found


def chain_key(problem: Problem, names: Sequence[str], resident: frozenset[str]) -> tuple[object, ...]:
    """Everything that a chain's options depend on, without names."""
    layers = [problem.by_name[n] for n in names]
    position = {x.output: i for i, x in enumerate(layers)}
    wiring = tuple(tuple(position.get(t, -1) for t in x.reads()) for x in layers)
    stored = tuple(x.output in problem.read_outside(names) for x in layers)
    return (wiring, stored, *(layer_key(problem, x, resident) for x in layers))


@dataclass(slots=True)
class _Load:
    """Time that a chain asks of each kind of engine, in picoseconds, and bytes that it moves."""

    tensor: int = 0
    vector: int = 0
    dma: int = 0
    moved: int = 0

    def transfers(self, problem: Problem, count: int, total_bytes: int, runs: int = 1) -> None:
        """Add `count` transfers of `runs` runs each."""
        if count and total_bytes:
            npu = problem.npu
            self.dma += int(dma_ps(npu, total_bytes, runs * count)) + (count - 1) * setup_ps(npu)
            self.moved += total_bytes


def predicted(problem: Problem, names: Sequence[str], tiling: RowTiling, resident: frozenset[str]) -> Option:
    """Closed-form time and DRAM bytes of a chain: its busiest engine, and the others for one tile.

    GroupNorm's own first pass comes before everything else.
    """
    chain = geometry(problem, names, tiling)
    slots = slots_of(problem, names, tiling, resident)
    made = {m.layer.output: m.layer for m in chain.members}
    load, first = _Load(), _Load()
    for member, cols in zip(chain.members, tiling.cols, strict=True):
        sizes = {s.name: s for s in slots[member.layer.name]}
        _member(problem, chain, member, cols, sizes, made, resident, load)
        _stores(problem, chain, member, resident, load)
        _statistics(problem, chain, member, sizes, first_pass_ps(problem, member.layer, resident), first)
    total = load.tensor + load.vector + load.dma
    tiles = chain.tiles * chain.images
    time = total
    if tiling.depth > 1:
        busiest = max(load.tensor, load.vector, load.dma)
        time = busiest + (total - busiest) // tiles
    before = first.vector + first.dma if tiling.depth == 1 else max(first.vector, first.dma)
    return Option(
        cost_ps=time + before,
        dram_bytes=load.moved + first.moved,
        sram_bytes=sum(s.total_bytes for specs in slots.values() for s in specs),
        tile=tiling,
    )


def _member(
    problem: Problem,
    chain: Chain,
    member: Member,
    cols: int,
    sizes: dict[str, SlotSpec],
    made: dict[str, Layer],
    resident: frozenset[str],
    load: _Load,
) -> None:
    """Add one member's computation, hand-overs and loads."""
    npu, layer, graph = problem.npu, member.layer, problem.graph
    heights = member.heights
    per_image = sum(heights.values())
    load.vector += vector_work_ps(problem, layer, resident)
    blocks = 1
    if starts_on_tensor(layer):
        blocks = -(-graph.tensors[layer.output].shape[3] // cols) if layer.op != "matmul" else 1
        load.tensor += chain.images * sum(
            n * _product_ps(problem, layer, h, cols) for h, n in heights.items()
        )
    steps = chain.images * per_image
    from_other = any(t in made and ends_on_tensor(made[t]) != starts_on_tensor(layer) for t in layer.reads())
    if starts_on_tensor(layer):
        load.tensor += steps * handover_ps(npu) * int(from_other)
        load.vector += steps * blocks * handover_ps(npu) * int(not ends_on_tensor(layer))
        summed = ends_on_tensor(layer) and added(problem, layer, resident)
        load.vector += steps * handover_ps(npu) * int(bool(summed))
    else:
        load.vector += steps * handover_ps(npu) * int(from_other)
    for name, spec in sizes.items():
        if name == "x" or name.startswith("aux"):
            load.transfers(problem, steps, steps * spec.slot_bytes)
        elif name == "w":
            again = per_image if blocks > spec.count else 1
            load.transfers(problem, blocks * chain.images * again, spec.slot_bytes * blocks * again)
        elif name == "params":
            load.transfers(problem, 1, spec.slot_bytes)


def _product_ps(problem: Problem, layer: Layer, rows: int, cols: int) -> int:
    """All pieces of a member's product for one tile of `rows` rows, remembered by extents."""
    product = product_of(problem.graph, layer)
    assert product is not None
    arrays = problem.arrays(layer.name)
    precision = problem.precision_of(layer.name)
    out = problem.graph.tensors[layer.output].shape
    if layer.op == "matmul":
        heads = int(layer.attributes["heads"])
        width = product.n
        return int(product_ps(
            problem.npu, arrays, (heads, rows, width, product.k), precision.activation_pair, activations=True
        ))  # fmt: skip
    gated = 2 if layer.attributes.get("gated") else 1
    time = partial(product_ps, problem.npu, arrays, pair=precision.weight_pair, activations=False)
    full, rest = divmod(out[3], cols)
    height = rows * out[1]
    total = full * int(time((product.batch, height, gated * cols // product.batch, product.k)))
    if rest:
        total += int(time((product.batch, height, gated * rest // product.batch, product.k)))
    return total


def _stores(problem: Problem, chain: Chain, member: Member, resident: frozenset[str], load: _Load) -> None:
    name = member.layer.output
    if member.stored and name not in resident:
        shape = problem.graph.tensors[name].shape
        layout = problem.layouts.get(name)
        runs = -(-shape[3] // layout.block) if layout is not None else shape[1]
        steps = chain.images * sum(member.heights.values())
        load.transfers(problem, steps, problem.moved_bytes(name), runs)


def _statistics(
    problem: Problem, chain: Chain, member: Member, sizes: dict[str, SlotSpec], vector: int, load: _Load
) -> None:
    """Add a norm's own first pass, if there is one: its vector work, and its loads."""
    load.vector += vector
    if vector and "x" in sizes:
        steps = chain.images * len(member.rows)
        load.transfers(problem, steps, steps * sizes["x"].slot_bytes)


# ---- where to cut -------------------------------------------------------------------------------------------------------


def best_cut(
    problem: Problem, run: Sequence[str], single: Mapping[tuple[int, int], int]
) -> list[tuple[str, ...]]:
    """The chains of a run's cheapest partition; its other layers stay on their own. Runs of equal structure are cut alike.

    Args:
        single: (first, end) of what is not a chain, each layer and each attention segment, -> its predicted time.
    """
    key = ("cut", chain_key(problem, run, problem.sums_of(run)), tuple(sorted(single.items())))
    if key not in problem.memo:
        problem.memo[key] = _cut(problem, run, single)
    found = problem.memo[key]
    assert isinstance(found, list)
    return [tuple(run[start:end]) for start, end in found]


def _cut(
    problem: Problem, run: Sequence[str], single: Mapping[tuple[int, int], int]
) -> list[tuple[int, int]]:
    best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    longest = (
        0  # where the longest chain that fits may start: what a shorter one exceeds, a longer one exceeds too
    )
    for end in range(1, len(run) + 1):
        found: list[tuple[int, list[tuple[int, int]]]] = []
        for start in range(end):
            before, cut = best[start]
            if (start, end) in single:
                found.append((before + single[start, end], cut))
            if end - start > 1 and start >= longest:
                cost = chain_ps(problem, run[start:end])
                if cost is not None:
                    found.append((before + cost, [*cut, (start, end)]))
                elif end - start > 2:
                    longest = max(longest, start + 1)
        best.append(min(found, key=lambda f: f[0]))
    return best[-1][1]


def chain_ps(problem: Problem, part: Sequence[str]) -> int | None:
    """Predicted time of a chain in an SRAM of its own, all sums taken early; None if it is none or does not fit."""
    if not _stands_alone(problem, part):
        return None
    key = ("chain time", chain_key(problem, part, problem.sums_of(part)))
    if key not in problem.memo:
        problem.memo[key] = _least_ps(problem, part)
    found = problem.memo[key]
    assert found is None or isinstance(found, int)
    return found


def _least_ps(problem: Problem, part: Sequence[str]) -> int | None:
    """The least predicted time of the fewest tiles that fit and of the next count; weights are streamed only where they cannot be kept."""
    capacity = problem.npu.sram.sram_bytes
    found = list(tilings(problem, part, PROPOSED))
    for kept in (True, False):
        fitting: dict[int, int] = {}
        for tiling in (t for t in found if t.kept == kept):
            if len(fitting) == TRIED and tiling.rows not in fitting:
                break
            option = predicted(problem, part, tiling, problem.sums_of(part))
            if option.sram_bytes <= capacity:
                fitting[tiling.rows] = min(fitting.get(tiling.rows, option.cost_ps), option.cost_ps)
        if fitting:
            return min(fitting.values())
    return None


def _stands_alone(problem: Problem, part: Sequence[str]) -> bool:
    """Whether a part of a run is a chain: GroupNorm's input and what attention reads whole come from outside; attentions are whole."""
    groups = {problem.by_name[n].group for n in part} - {""}
    if any(x.group in groups and x.name not in part for x in problem.graph.layers):
        return False
    layers = [problem.by_name[n] for n in part]
    return all(_joins(problem.graph, layers[:i], x) for i, x in enumerate(layers))
