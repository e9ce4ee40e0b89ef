"""How a layer outside any segment is cut: closed-form cost and SRAM need of each way, the undominated ones kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Literal

from npusim.cost import dma_ps, handover_ps, product_ps, setup_ps
from npusim.graph import Layer
from npusim.lower.geometry import band_count, head_cols_of, row_unit
from npusim.lower.slots import Known, layer_slots
from npusim.lower.statistics import statistics_tensor
from npusim.ops import OPS, Product, product_of
from npusim.plan import Pieces
from npusim.scheduler.problem import Problem
from npusim.scheduler.sums import added, first_pass_ps, vector_work_ps

#: Into how many parts an axis is tried to be cut; the finer ones only where SRAM is scarce.
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
FINE_COUNTS = (96, 128, 192, 256, 512, 1024, 2048, 4096)


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


def largest_pieces(problem: Problem, options: Iterable[Option]) -> Option:
    """The option with the largest working set that fits the SRAM (the smallest of all if none does)."""
    found = sorted(options, key=lambda o: o.sram_bytes)
    fitting = [o for o in found if o.sram_bytes <= problem.npu.sram.sram_bytes]
    return fitting[-1] if fitting else found[0]


def all_options(problem: Problem, layer: Layer, resident: frozenset[str]) -> list[Option]:
    """`piece_options`, computed once for layers of equal structure."""
    key = ("pieces", layer_key(problem, layer, resident))
    found = problem.memo.get(key)
    if found is None:
        found = piece_options(problem, layer, resident)
        problem.memo[key] = found
    assert isinstance(found, list)
    return found


def _reloads_halo(problem: Problem, layer: Layer, resident: frozenset[str], option: Option) -> bool:
    """Whether bands of a spatial layer load rows that the band before had loaded too."""
    if option.pieces is None or "stride" not in layer.attributes:
        return False
    absent = any(p.tensor not in resident for p in layer.operands[0].parts)
    overlaps = int(layer.attributes["kernel"][0]) > int(layer.attributes["stride"][0])
    return absent and overlaps and option.pieces.rows < problem.graph.tensors[layer.output].shape[2]


def piece_options(problem: Problem, layer: Layer, resident: frozenset[str]) -> list[Option]:
    """Undominated ways to cut a layer when `resident` tensors are in SRAM anyway."""
    coster = _Coster(problem, layer, resident)
    options = [coster.option(*cut) for cut in _single_pass(problem, layer, COUNTS)]
    if problem.everything_fits:  # then no byte needs to cross the bus twice
        options = [o for o in options if not _reloads_halo(problem, layer, resident, o)] or options
    capacity = problem.npu.sram.sram_bytes
    if min(o.sram_bytes for o in options) > capacity // SCARCE:
        options += [coster.option(*cut) for cut in _mixed(problem, layer, (*COUNTS, *FINE_COUNTS))]
    best = undominated(options)
    if problem.policy == "serial":
        return best
    large = [o for o in options if o.sram_bytes > capacity // SCARCE and _may_gain(best, o)]
    shallow = [o.pieces for o in large if o.pieces is not None]
    return undominated([*best, *(coster.option(p.rows, p.cols, p.order, depth=1) for p in shallow)])


def _may_gain(best: Iterable[Option], option: Option) -> bool:
    """Whether an option with one piece in flight instead of two may be undominated: it takes no less time and at least half the SRAM."""
    return not any(o.cost_ps <= option.cost_ps and 2 * o.sram_bytes <= option.sram_bytes for o in best)


def every_option(problem: Problem, layer: Layer, resident: frozenset[str]) -> list[Option]:
    """All ways that `piece_options` chooses from, dominated or not."""
    coster = _Coster(problem, layer, resident)
    cuts = dict.fromkeys(
        [*_single_pass(problem, layer, COUNTS), *_mixed(problem, layer, (*COUNTS, *FINE_COUNTS))]
    )
    depths = (1,) if problem.policy == "serial" else (2, 1)
    return [coster.option(*cut, depth=depth) for cut in cuts for depth in depths]


Cut = tuple[int, int, Literal["rows", "cols"]]

#: A working set under this share of the SRAM leaves room for everything else: finer cuts are not tried.
SCARCE = 8


def _single_pass(problem: Problem, layer: Layer, counts: Iterable[int]) -> list[Cut]:
    """Cuts that load every operand once: all columns with bands of rows, or all rows with blocks of columns."""
    out = problem.graph.tensors[layer.output].shape
    rows = _row_choices(problem, layer, counts)
    if OPS[layer.op].streams != "product":
        return [(r, out[3], "rows") for r in rows]
    cols = _col_choices(problem, layer, counts)
    return [(r, cols[0], "rows") for r in rows] + [(rows[0], c, "cols") for c in cols[1:]]


def _mixed(problem: Problem, layer: Layer, counts: Iterable[int]) -> list[Cut]:
    """Cuts of both axes; one operand is loaded again for each part of the other.

    The outer operand's parts have any size, those of the inner one are small: what it takes is lost to the outer one.
    """
    out = problem.graph.tensors[layer.output].shape
    rows = _row_choices(problem, layer, counts)
    if OPS[layer.op].streams != "product":
        return [(r, out[3], "rows") for r in rows]
    cols = _col_choices(problem, layer, counts)
    product = product_of(problem.graph, layer)
    assert product is not None
    line = product.k * problem.precision_of(layer.name).activation_bytes  # of either operand, more or less
    inner = partial(_small, line=line, capacity=problem.npu.sram.sram_bytes)
    by_rows: list[Cut] = [(r, c, "rows") for r in rows for c in inner(cols)]
    return by_rows + [(r, c, "cols") for c in cols for r in inner(rows)]


#: A part of the inner operand takes at most one of these shares of the SRAM.
INNER_SHARES = (8, 32)


def _small(sizes: Sequence[int], *, line: int, capacity: int) -> list[int]:
    """Of part sizes, most lines first: the largest in each of the shares, and the smallest."""
    found = [next((s for s in sizes if s * line * share <= capacity), sizes[-1]) for share in INNER_SHARES]
    return list(dict.fromkeys([*found, sizes[-1]]))


def _row_choices(problem: Problem, layer: Layer, counts: Iterable[int]) -> list[int]:
    """Output rows per piece, most first; whole heads together where the layer works row by row."""
    out = problem.graph.tensors[layer.output].shape
    unit = row_unit(layer)
    granule = unit
    if OPS[layer.op].streams == "product" and unit == 1:
        engine = problem.npu.tensor_engine[0]
        granule = min(out[2], engine.array_rows * engine.count)
    joined = out[1] if OPS[layer.op].streams in ("rows", "whole") else 1
    choices = [out[2] * h for h in (joined, joined // 2, joined // 4) if h > 1]
    choices += [
        min(out[2], -(-ceil(out[2] / n) // granule) * granule) for n in counts if n <= max(1, out[2] // unit)
    ]
    if granule > unit and FINE_COUNTS[-1] in counts:
        choices += [r for r in (granule // 2, granule // 4, 1) if 0 < r < out[2]]
    return list(dict.fromkeys(choices))


def _col_choices(problem: Problem, layer: Layer, counts: Iterable[int]) -> list[int]:
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
    choices = [min(total, -(-ceil(total / n) // granule) * granule) for n in counts if n <= total]
    return list(dict.fromkeys(choices))


#: What a cut costs whatever vector work goes with it: picoseconds of products, steps, picoseconds of all transfers and of the first, bytes
#: moved, bytes of SRAM.
_Costs = tuple[int, int, int, int, int, int]


class _Coster:
    """Closed-form costs of one layer's cuts; what does not depend on the cut is computed once."""

    def __init__(self, problem: Problem, layer: Layer, resident: frozenset[str]) -> None:
        self.problem, self.layer = problem, layer
        self.storage = problem.storage(resident)
        self.out = problem.graph.tensors[layer.output].shape
        self.product = product_of(problem.graph, layer)
        self.depth = 1 if problem.policy == "serial" else 2
        npu = problem.npu
        self.setup = setup_ps(npu)
        self.sizes: Known = {}
        self.first_pass = first_pass_ps(problem, layer, resident)
        self.vector = vector_work_ps(problem, layer, resident) + self.first_pass
        self.epilogues = sum(1 for e in layer.epilogue if e.function != "scale")
        self.handed = self.epilogues or int(bool(added(problem, layer, resident)))
        self.known: dict[object, _Costs] = {}
        if layer.output in problem.shares:  # it may take sums or not: its cuts are costed once for both
            known = problem.memo.setdefault(("cuts", _structure(problem, layer, resident)), self.known)
            assert isinstance(known, dict)
            self.known = known

    def option(self, rows: int, cols: int, order: Literal["rows", "cols"], depth: int = 0) -> Option:
        """Cost and SRAM need of one cut."""
        pieces = Pieces(rows=rows, cols=cols, order=order, depth=depth or self.depth)
        key = (rows, cols, order, pieces.depth)
        if key not in self.known:
            self.known[key] = self._costs(pieces)
        tensor, steps, dma, load, moved, sram_bytes = self.known[key]
        waits = handover_ps(self.problem.npu) * steps * (1 + (self.handed if tensor else 0))
        return Option(
            cost_ps=_time(self.problem, tensor, self.vector, dma, waits, load, steps, pieces.depth),
            dram_bytes=moved,
            sram_bytes=sram_bytes,
            pieces=pieces,
        )

    def _costs(self, pieces: Pieces) -> _Costs:
        npu = self.problem.npu
        specs = {s.name: s for s in layer_slots(self.storage, self.layer, pieces, self.sizes)}
        if self.product is not None:
            tensor, steps, loads = self._product(pieces)
        else:
            tensor, (steps, loads) = 0, self._rows(pieces)
        moves = [
            (loads.get(n, steps), n, s.slot_bytes) for n, s in specs.items() if n not in ("pre", "stats")
        ]
        transfers = sum(count for count, _, _ in moves)
        moved = sum(count * size for count, _, size in moves)
        runs = sum(count * self._runs(name, pieces) for count, name, _ in moves)
        dma = int(dma_ps(npu, moved, runs)) + (transfers - 1) * self.setup if transfers else 0
        first = [(n, s) for _, n, s in moves if n != "out"]
        load = (
            int(dma_ps(npu, sum(s for _, s in first), sum(self._runs(n, pieces) for n, _ in first)))
            if first
            else 0
        )
        return tensor, steps, dma, load, moved, sum(s.total_bytes for s in specs.values())

    def _runs(self, slot: str, pieces: Pieces) -> int:
        """Contiguous runs of one transfer: one, or one per row where it moves some columns of a plain tensor."""
        rows = min(pieces.rows, self.out[2])
        if slot == "out" or slot.startswith("aux"):
            some = pieces.cols < self.out[3] and self.problem.layouts.get(self.layer.output) is None
            return rows if some else 1
        if self.layer.op == "matmul" and slot in ("x", "w"):
            operand = self.layer.operands[0 if slot == "x" else 1]
            tensor = operand.parts[0].tensor
            shape = self.problem.graph.tensors[tensor].shape
            strided = (
                shape[1] == 1
                and self.out[1] * int(self.layer.attributes["heads"]) > 1
                and self.problem.layouts.get(tensor) is None
            )
            return (rows if slot == "x" else shape[2]) if strided else 1
        return 1

    def _rows(self, pieces: Pieces) -> tuple[int, dict[str, int]]:
        """(steps, loads per slot) of a vector layer. A norm's own first pass reads x too, except the bands that are still there."""
        count = band_count(self.out, pieces.rows)
        if not self.first_pass:
            return count, {"params": 1}
        return 2 * count, {
            "x": 2 * count - self.out[0] * min(pieces.depth, count // self.out[0]),
            "params": 1,
            "out": count,
        }

    def _product(self, pieces: Pieces) -> tuple[int, int, dict[str, int]]:
        """(tensor time, steps, loads per slot) of a product layer."""
        product, npu = self.product, self.problem.npu
        assert product is not None
        precision = self.problem.precision_of(self.layer.name)
        pair = precision.activation_pair if product.activations else precision.weight_pair
        outer, width, rows_each, extents = self._extents(pieces, product)
        blocks = -(-width // pieces.cols)
        steps = outer * rows_each * blocks
        time = steps * int(
            product_ps(
                npu, self.problem.arrays(self.layer.name), extents, pair, activations=product.activations
            )
        )
        x_loads, w_loads = _loads(pieces, rows_each, blocks)
        return time, steps, {"x": outer * x_loads, "w": outer * w_loads}

    def _extents(self, pieces: Pieces, product: Product) -> tuple[int, int, int, tuple[int, int, int, int]]:
        """(independent products, columns, bands of each, extents of a piece)."""
        out = self.out
        rows = min(pieces.rows, out[2])
        if self.layer.op == "matmul":
            heads = int(self.layer.attributes["heads"])
            width = head_cols_of(out, heads, out[3]).width
            return out[0] * heads, width, -(-out[2] // rows), (1, rows, min(pieces.cols, width), product.k)
        gated = 2 if self.layer.attributes.get("gated") else 1
        cols = gated * min(pieces.cols, out[3]) // product.batch
        return 1, out[3], band_count(out, pieces.rows), (product.batch, rows, cols, product.k)


def _time(
    problem: Problem, tensor: int, vector: int, dma: int, waits: int, load: int, steps: int, depth: int
) -> int:
    """Serial, or with one place per operand: the sum. Else the longest way through the pipeline of loading, multiplying, and the rest.

    Args:
        load: time of the loads that the first step waits for.
    """
    total = tensor + vector + dma + waits
    if problem.policy == "serial" or depth == 1:
        return total
    vector += waits
    head, tail = load + tensor // steps, vector // steps
    return max(load + tensor + tail, dma + tensor // steps + tail, head + vector)


def _loads(pieces: Pieces, rows_each: int, blocks: int) -> tuple[int, int]:
    """How often a band of x and a block of weights are loaded: once, unless the inner loop evicts them."""
    if pieces.order == "rows":
        return rows_each, blocks if blocks <= pieces.depth else rows_each * blocks
    return (rows_each if rows_each <= pieces.depth else rows_each * blocks), blocks


def layer_key(problem: Problem, layer: Layer, resident: frozenset[str]) -> tuple[object, ...]:
    """Everything that `piece_options` depends on, without names: layers with one key have the same options."""
    return (_structure(problem, layer, resident), len(added(problem, layer, resident)))


def _structure(problem: Problem, layer: Layer, resident: frozenset[str]) -> tuple[object, ...]:
    """The same, but for the sums that the layer takes for norms."""
    tensors = problem.graph.tensors

    def operand(role: str, parts: Iterable[tuple[str, int]]) -> tuple[object, ...]:
        return (
            role,
            *(
                (tensors[t].shape, size, t in resident, problem.layouts.get(t), problem.element_bytes[t])
                for t, size in parts
            ),
        )

    shapes = tuple(operand(o.role, ((p.tensor, p.size) for p in o.parts)) for o in layer.operands)
    out = (tensors[layer.output].shape, layer.output in resident, problem.layouts.get(layer.output))
    attributes = tuple(
        sorted((k, v) for k, v in layer.attributes.items() if isinstance(v, int | str | tuple))
    )
    in_place = layer.output in resident and problem.in_place.get(layer.output) in resident
    epilogue = tuple((e.function, e.operand, e.value) for e in layer.epilogue)
    precision = problem.precision_of(layer.name).name
    early = statistics_tensor(layer.name) in resident
    return (
        layer.op, shapes, out, attributes, epilogue, problem.units.get(layer.name), in_place, precision, early
    )  # fmt: skip
