"""Row chains: which layers may be joined, the tilings of a chain with their closed-form cost, and where a network is best cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, prod

from npusim.cost import dma_ps, handover_ps, lane_operations, product_ps, setup_ps, vector_ps
from npusim.dtypes import PRECISIONS
from npusim.graph import Graph, Layer
from npusim.lower.chain import Chain, Member, chain_of, ends_on_tensor, needed_rows, starts_on_tensor
from npusim.lower.geometry import row_unit
from npusim.lower.rows import chain_slots
from npusim.lower.slots import SlotSpec
from npusim.ops import OPS, product_of, vector_work
from npusim.scheduler.pieces import Option, layer_key, undominated
from npusim.scheduler.problem import Problem

#: Into how many tiles the rows of a chain are tried to be cut.
COUNTS = (1, 2, 4, 8, 16, 32, 64)
#: Most members of a chain: longer ones need a place for every stage and gain nothing.
LONGEST = 16


@dataclass(frozen=True, slots=True)
class RowTiling:
    """Rows of the last member in one tile, tiles in flight, and the output columns of each member's pieces."""

    rows: int
    depth: int
    cols: tuple[int, ...]
    requested: int = 0


# ---- which layers may be joined -----------------------------------------------------------------------------------------


def runs(graph: Graph) -> list[tuple[str, ...]]:
    """Longest sequences of layers that can be joined, in execution order.

    A layer that reads nothing of the run under way does not end it: it runs before the run. One that reads of it and cannot join
    ends it.
    """
    found: list[tuple[str, ...]] = []
    run: list[Layer] = []
    later: set[str] = set()  # tensors that exist only after the run
    for layer in graph.layers:
        made = {x.output for x in run}
        follows = any(t in made or t in later for t in layer.reads())
        if run and not follows:
            continue
        if run and len(run) < LONGEST and not later & set(layer.reads()) and _joins(graph, run, layer):
            run.append(layer)
            continue
        if len(run) > 1:
            found.append(tuple(x.name for x in run))
        later = set()
        run = [layer] if _joins(graph, [], layer) else []
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


def tilings(problem: Problem, names: Sequence[str]) -> Iterator[RowTiling]:
    """Every tiling that is enumerated: row counts by powers of two; weights whole, or streamed in blocks by one tile after the other."""
    graph = problem.graph
    by_name = problem.by_name
    last = by_name[names[-1]]
    total, unit = graph.tensors[last.output].shape[2], row_unit(last)
    whole = tuple(graph.tensors[by_name[n].output].shape[3] for n in names)
    streamed = tuple(_streamed_cols(problem, by_name[n]) for n in names)
    for count in COUNTS:
        if count > max(1, total // unit):
            break
        rows = min(total, -(-ceil(total / count) // unit) * unit)
        for cols in dict.fromkeys((whole, streamed) if count <= 8 else (whole,)):
            yield RowTiling(rows, 1 if problem.policy == "serial" else 2, cols)


def requested_tilings(problem: Problem, names: Sequence[str], count: int) -> list[RowTiling]:
    """Tilings with `count` tiles, or the most that there are."""
    last = problem.by_name[names[-1]]
    total, unit = problem.graph.tensors[last.output].shape[2], row_unit(last)
    rows = min(total, -(-ceil(total / count) // unit) * unit)
    clamped = -(-total // rows) != count
    widths = dict.fromkeys(t.cols for t in tilings(problem, names))
    deepest = 1 if problem.policy == "serial" else 2
    return [
        RowTiling(rows, depth, cols, count if clamped else 0) for depth in range(deepest, 0, -1) for cols in widths
    ]  # fmt: skip


def _streamed_cols(problem: Problem, layer: Layer) -> int:
    """Output columns of a piece whose weights take a sixteenth of the SRAM."""
    total = problem.graph.tensors[layer.output].shape[3]
    if layer.op not in ("conv", "linear") or int(layer.attributes.get("groups", 1)) > 1:
        return total
    weight = problem.tensor_bytes(layer.operands[1].parts[0].tensor)
    layout = problem.layouts.get(layer.output)
    granule = layout.block if layout is not None else problem.npu.tensor_engine[0].array_cols
    blocks = max(1, 16 * weight // problem.npu.sram.sram_bytes)
    return min(total, -(-ceil(total / blocks) // granule) * granule)


def slots_of(
    problem: Problem, names: Sequence[str], tiling: RowTiling, resident: frozenset[str]
) -> dict[str, list[SlotSpec]]:
    """SRAM slots of each member."""
    chain = geometry(problem, names, tiling)
    storage = problem.storage(resident)
    return {
        m.layer.name: chain_slots(storage, m, chain, cols, tiling.depth)
        for m, cols in zip(chain.members, tiling.cols, strict=True)
    }


def geometry(problem: Problem, names: Sequence[str], tiling: RowTiling) -> Chain:
    """The chain that a tiling makes of its layers, computed once."""
    key = ("chain", tuple(names), tiling.rows, tiling.depth)
    found = problem.memo.get(key)
    if found is None:
        found = chain_of(problem.graph, names, tiling.rows, depth=tiling.depth)
        problem.memo[key] = found
    assert isinstance(found, Chain)
    return found


def chain_options(problem: Problem, names: Sequence[str], resident: frozenset[str]) -> list[Option]:
    """Undominated tilings; chains of equal structure share them."""
    key = ("chain options", chain_key(problem, names, resident))
    found = problem.memo.get(key)
    if found is None:
        found = undominated(predicted(problem, names, t, resident) for t in tilings(problem, names))
        problem.memo[key] = found
    assert isinstance(found, list)
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


def predicted(
    problem: Problem, names: Sequence[str], tiling: RowTiling, resident: frozenset[str]
) -> Option:
    """Closed-form time and DRAM bytes of a chain: its busiest engine, and the others for one tile.

    GroupNorm's first pass comes before everything else.
    """
    chain = geometry(problem, names, tiling)
    slots = slots_of(problem, names, tiling, resident)
    made = {m.layer.output: m.layer for m in chain.members}
    load, first = _Load(), _Load()
    for member, cols in zip(chain.members, tiling.cols, strict=True):
        sizes = {s.name: s for s in slots[member.layer.name]}
        _member(problem, chain, member, cols, sizes, made, load)
        _stores(problem, chain, member, resident, load)
        if member.layer.op == "group_norm":
            _statistics(problem, chain, member, sizes, first)
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
    load: _Load,
) -> None:
    """Add one member's computation, hand-overs and loads."""
    npu, layer, graph = problem.npu, member.layer, problem.graph
    heights = [high - low for low, high in member.rows if low < high]
    work = vector_work(graph, layer)
    if layer.op == "group_norm":
        work = tuple(w for w in work if w[0] != "group_norm_stats")
    load.vector += sum(
        int(vector_ps(npu, npu.vector_engine.count, n, lane_operations(npu, f))) for f, n in work
    )
    blocks = 1
    if starts_on_tensor(layer):
        blocks = -(-graph.tensors[layer.output].shape[3] // cols) if layer.op != "matmul" else 1
        load.tensor += chain.images * sum(_product_ps(problem, layer, h, cols) for h in heights)
    steps = chain.images * len(heights)
    from_other = any(
        t in made and ends_on_tensor(made[t]) != starts_on_tensor(layer) for t in layer.reads()
    )
    if starts_on_tensor(layer):
        load.tensor += steps * handover_ps(npu) * int(from_other)
        load.vector += steps * blocks * handover_ps(npu) * int(not ends_on_tensor(layer))
    else:
        load.vector += steps * handover_ps(npu) * int(from_other)
    for name, spec in sizes.items():
        if name == "x" or name.startswith("aux"):
            load.transfers(problem, steps, steps * spec.slot_bytes)
        elif name == "w":
            again = len(heights) if blocks > spec.count else 1
            load.transfers(problem, blocks * chain.images * again, spec.slot_bytes * blocks * again)
        elif name == "params":
            load.transfers(problem, 1, spec.slot_bytes)


def _product_ps(problem: Problem, layer: Layer, rows: int, cols: int) -> int:
    """All pieces of a member's product for one tile of `rows` rows, remembered by extents."""
    product = product_of(problem.graph, layer)
    assert product is not None
    kind, count = problem.units[layer.name]
    engine = next(e for e in problem.npu.tensor_engine if e.kind == kind)
    precision = PRECISIONS[problem.precision]
    out = problem.graph.tensors[layer.output].shape
    if layer.op == "matmul":
        heads = int(layer.attributes["heads"])
        width = product.n
        return int(product_ps(
            problem.npu, engine, count, (heads, rows, width, product.k), precision.activation_pair, activations=True
        ))  # fmt: skip
    gated = 2 if layer.attributes.get("gated") else 1
    time = partial(product_ps, problem.npu, engine, count, pair=precision.weight_pair, activations=False)
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
        steps = chain.images * sum(1 for low, high in member.rows if low < high)
        load.transfers(problem, steps, problem.moved_bytes(name), runs)


def _statistics(problem: Problem, chain: Chain, member: Member, sizes: dict[str, SlotSpec], load: _Load) -> None:
    npu = problem.npu
    elements = prod(problem.graph.tensors[member.layer.output].shape)
    load.vector += int(
        vector_ps(npu, npu.vector_engine.count, elements, lane_operations(npu, "group_norm_stats"))
    )
    if "x" in sizes:
        steps = chain.images * len(member.rows)
        load.transfers(problem, steps, steps * sizes["x"].slot_bytes)


# ---- where to cut -------------------------------------------------------------------------------------------------------


def best_cut(problem: Problem, run: Sequence[str], single: dict[tuple[str, ...], int]) -> list[tuple[str, ...]]:
    """The chains of a run's cheapest partition; its other layers stay on their own.

    Args:
        single: predicted time of what is not a chain: each layer, and each attention segment, by its layers.
    """
    best: list[tuple[int, list[tuple[str, ...]]]] = [(0, [])]
    capacity = problem.npu.sram.sram_bytes
    for end in range(1, len(run) + 1):
        found: list[tuple[int, list[tuple[str, ...]]]] = []
        for start in range(end):
            part = tuple(run[start:end])
            before, cut = best[start]
            if part in single:
                found.append((before + single[part], cut))
            if len(part) > 1 and _stands_alone(problem, part):
                options = chain_options(problem, part, frozenset())
                fitting = next((o for o in options if o.sram_bytes <= capacity), None)
                if fitting is not None:
                    found.append((before + fitting.cost_ps, [*cut, part]))
        best.append(min(found, key=lambda f: f[0]))
    return best[-1][1]


def _stands_alone(problem: Problem, part: Sequence[str]) -> bool:
    """Whether a part of a run is a chain: GroupNorm's input must come from outside, and so must what attention reads whole."""
    layers = [problem.by_name[n] for n in part]
    return all(_joins(problem.graph, layers[:i], x) for i, x in enumerate(layers))
