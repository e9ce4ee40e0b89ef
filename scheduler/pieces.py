"""How a layer outside any segment is cut: closed-form cost and SRAM need of each way, the undominated ones kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, prod

from npusim.cost import dma_ps, handover_ps, lane_operations, product_ps, vector_ps
from npusim.dtypes import PRECISIONS
from npusim.graph import Layer
from npusim.lower.geometry import bands, head_cols_of, row_unit
from npusim.lower.slots import Storage, layer_slots
from npusim.ops import OPS, product_of, vector_work
from npusim.plan import Pieces
from npusim.scheduler.problem import Problem

#: Into how many parts an axis is tried to be cut.
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to run a layer or segment: predicted time and DRAM bytes, SRAM need."""

    cost_ps: int
    dram_bytes: int
    sram_bytes: int
    pieces: Pieces | None = None
    tile: object = None


def undominated(options: Iterable[Option]) -> list[Option]:
    """Options by rising cost, each needing less SRAM than all cheaper ones."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost_ps, o.dram_bytes, o.sram_bytes)):
        if not kept or option.sram_bytes < kept[-1].sram_bytes:
            kept.append(option)
    return kept


def piece_options(problem: Problem, layer: Layer, resident: frozenset[str]) -> list[Option]:
    """Undominated ways to cut a layer when `resident` tensors are in SRAM anyway."""
    storage = problem.storage(resident)
    depths = (1,) if problem.policy == "serial" else (2, 1)
    options = []
    for rows, cols, order in _cuts(problem, layer):
        for depth in depths:
            pieces = Pieces(rows=rows, cols=cols, order=order, depth=depth)
            specs = layer_slots(storage, layer, pieces)
            size = sum(s.total_bytes for s in specs)
            if size <= problem.npu.sram.sram_bytes or not options:
                options.append(_option(problem, storage, layer, pieces, size))
    return undominated(options)


def _cuts(problem: Problem, layer: Layer) -> Iterable[tuple[int, int, str]]:
    out = problem.graph.tensors[layer.output].shape
    rows = _row_choices(problem, layer)
    if OPS[layer.op].streams != "product":
        return [(r, out[3], "rows") for r in rows]
    cols = _col_choices(problem, layer)
    whole = [(r, cols[0], "rows") for r in rows] + [(rows[0], c, "cols") for c in cols[1:]]
    mixed = [(r, c, order) for r in rows[1::2] for c in cols[1::2] for order in ("rows", "cols")]
    return whole + mixed


def _row_choices(problem: Problem, layer: Layer) -> list[int]:
    """Output rows per piece, most first; whole heads together where the layer works row by row."""
    out = problem.graph.tensors[layer.output].shape
    unit = row_unit(layer)
    granule = unit
    if OPS[layer.op].streams == "product" and unit == 1:
        engine = problem.npu.tensor_engine[0]
        granule = min(out[2], engine.array_rows * engine.count)
    joined = out[1] if OPS[layer.op].streams in ("rows", "whole") else 1
    choices = [out[2] * h for h in (joined, joined // 2, joined // 4) if h > 1]
    choices += [min(out[2], -(-ceil(out[2] / n) // granule) * granule) for n in COUNTS if n <= max(1, out[2] // unit)]
    if unit == 1 and granule > 1:
        choices += [r for r in (granule // 2, granule // 4, 1) if 0 < r < out[2]]
    return list(dict.fromkeys(choices))


def _col_choices(problem: Problem, layer: Layer) -> list[int]:
    """Output columns per piece, most first; whole blocks of a blocked layout, whole groups of a grouped convolution."""
    out = problem.graph.tensors[layer.output].shape
    total = out[3]
    if layer.op == "matmul":
        total = head_cols_of(out, int(layer.attributes["heads"]), out[3]).width
    if int(layer.attributes.get("groups", 1)) > 1:
        return [total]
    layout = problem.layouts.get(layer.output)
    granule = problem.npu.tensor_engine[0].array_cols
    if layout is not None and layer.op != "matmul":
        granule = layout.block
    elif layout is not None:
        return [total]
    choices = [min(total, -(-ceil(total / n) // granule) * granule) for n in COUNTS if n <= total]
    return list(dict.fromkeys(choices))


def _option(problem: Problem, storage: Storage, layer: Layer, pieces: Pieces, size: int) -> Option:
    npu = problem.npu
    out = problem.graph.tensors[layer.output].shape
    cut = bands(out, pieces.rows)
    if OPS[layer.op].streams == "product":
        tensor, moves, steps = _product_cost(problem, storage, layer, pieces, len(cut))
    else:
        tensor, steps = 0, len(cut) * OPS[layer.op].passes
        moves = _row_moves(storage, layer, pieces, len(cut))
    vector = sum(
        int(vector_ps(npu, npu.vector_engine.count, elements, lane_operations(npu, function)))
        for function, elements in vector_work(problem.graph, layer)
    )
    transfers = sum(m[0] for m in moves)
    moved = sum(m[1] for m in moves)
    dma = int(dma_ps(npu, moved, transfers)) + (transfers - 1) * round(npu.dma.setup_s * 1e12) if transfers else 0
    touches = steps * (1 + sum(1 for e in layer.epilogue if e.function != "scale") * (tensor > 0))
    waits = handover_ps(npu) * touches
    return Option(cost_ps=_time(problem, tensor, vector, dma, waits, steps), dram_bytes=moved, sram_bytes=size, pieces=pieces)


def _time(problem: Problem, tensor: int, vector: int, dma: int, waits: int, steps: int) -> int:
    """Serial: the sum. Decoupled: the busiest resource, and the others for one step before and after it."""
    total = tensor + vector + dma + waits
    if problem.policy == "serial":
        return total
    busiest = max(tensor, vector + waits, dma)
    return busiest + (total - busiest) // max(1, steps)


def _product_cost(problem: Problem, storage: Storage, layer: Layer, pieces: Pieces, band_count: int) -> tuple[int, list[tuple[int, int]], int]:
    """(tensor time, [(transfers, bytes)], steps) of a product layer."""
    graph, npu = problem.graph, problem.npu
    out = graph.tensors[layer.output].shape
    product = product_of(graph, layer)
    assert product is not None
    kind, count = problem.units[layer.name]
    engine = next(e for e in npu.tensor_engine if e.kind == kind)
    precision = PRECISIONS[problem.precision]
    pair = precision.activation_pair if product.activations else precision.weight_pair
    specs = {s.name: s for s in layer_slots(storage, layer, pieces)}
    gated = 2 if layer.attributes.get("gated") else 1
    if layer.op == "matmul":
        heads = int(layer.attributes["heads"])
        outer, width = out[0] * heads, head_cols_of(out, heads, out[3]).width
        rows_each = -(-out[2] // pieces.rows)
        extents = (1, min(pieces.rows, out[2]), min(pieces.cols, width), product.k)
    else:
        outer, width, rows_each = 1, out[3], band_count
        extents = (product.batch, min(pieces.rows, out[2]), gated * min(pieces.cols, width) // product.batch, product.k)
    blocks = -(-width // pieces.cols)
    steps = outer * rows_each * blocks
    time = steps * int(product_ps(npu, engine, count, extents, pair, activations=product.activations))
    x_loads, w_loads = _loads(pieces, rows_each, blocks)
    moves = []
    for name, loads in (("x", outer * x_loads), ("w", outer * w_loads), ("out", steps)):
        if name in specs:
            moves.append((loads, loads * specs[name].slot_bytes))
    moves += [(steps, steps * s.slot_bytes) for n, s in specs.items() if n.startswith("aux")]
    return time, moves, steps


def _loads(pieces: Pieces, rows_each: int, blocks: int) -> tuple[int, int]:
    """How often a band of x and a block of weights are loaded: once, unless the inner loop evicts them."""
    if pieces.order == "rows":
        return rows_each, blocks if blocks <= pieces.depth else rows_each * blocks
    return (rows_each if rows_each <= pieces.depth else rows_each * blocks), blocks


def _row_moves(storage: Storage, layer: Layer, pieces: Pieces, count: int) -> list[tuple[int, int]]:
    specs = {s.name: s for s in layer_slots(storage, layer, pieces)}
    images = storage.graph.tensors[layer.output].shape[0]
    passes = 2 * count - images * min(pieces.depth, count // images) if OPS[layer.op].streams == "norm" else count
    moves = [(1, specs["params"].slot_bytes)] if "params" in specs else []
    if "x" in specs:
        moves.append((passes, passes * specs["x"].slot_bytes))
    moves += [(count, count * s.slot_bytes) for n, s in specs.items() if n == "out" or n.startswith("aux")]
    return moves


def layer_key(problem: Problem, layer: Layer, resident: frozenset[str]) -> tuple[object, ...]:
    """Everything that `piece_options` depends on, without names: layers with one key have the same options."""
    tensors = problem.graph.tensors

    def operand(role: str, parts: Iterable[tuple[str, int]]) -> tuple[object, ...]:
        return (role, *((tensors[t].shape, size, t in resident, problem.layouts.get(t), problem.element_bytes[t]) for t, size in parts))

    shapes = tuple(operand(o.role, ((p.tensor, p.size) for p in o.parts)) for o in layer.operands)
    out = (tensors[layer.output].shape, layer.output in resident, problem.layouts.get(layer.output))
    attributes = tuple(sorted((k, v) for k, v in layer.attributes.items() if isinstance(v, int | str | tuple)))
    return (layer.op, shapes, out, attributes, layer.epilogue, problem.units.get(layer.name))


def elements_of(problem: Problem, layer: Layer) -> int:
    """Output elements of a layer."""
    return prod(problem.graph.tensors[layer.output].shape)
