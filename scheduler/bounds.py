"""Lower bounds on time and DRAM traffic that no plan for this model, hardware and precision can beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np
import numpy.typing as npt

from npusim.cost import arrays_of, lane_operations, step_ps, vector_ps
from npusim.dtypes import Precision
from npusim.graph import Layer, Operand
from npusim.ops import OPS, Product, product_of, vector_work
from npusim.scheduler.cover import least_steps
from npusim.scheduler.problem import Problem
from npusim.units import PS_PER_S

Ints = npt.NDArray[np.int64]

#: Floating-point noise that a bound must not exceed.
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Lower bounds.

    Attributes:
        makespan_ps: the largest of the resource bounds and the critical path.
        by_resource_ps: `tensor`, `vector`, `dram`, `critical path`.
        dram_bytes: compulsory bytes and what no order can keep in SRAM.
        compulsory_bytes: weights, inputs and outputs, each once.
    """

    makespan_ps: int
    by_resource_ps: Mapping[str, int]
    dram_bytes: int
    compulsory_bytes: int

    @property
    def binding(self) -> str:
        """The resource whose bound is the largest."""
        return max(self.by_resource_ps, key=lambda r: self.by_resource_ps[r])


def lower_bounds(problem: Problem) -> Bounds:
    """Bounds without hand-over, set-up or run overhead, with work spread ideally over all eligible engines."""
    graph, npu = problem.graph, problem.npu
    memo: dict[object, int] = {}
    tensor = {x.name: _tensor_ps(problem, x, memo) for x in graph.layers}
    vector = {x.name: _vector_ps(problem, x) for x in graph.layers}
    needed = _needed_shares(problem)
    compulsory = _compulsory_bytes(problem, needed)
    dram = compulsory + 2 * _worst_excess(problem)
    rate = min(npu.dram.dram_shared_bytes_per_s, npu.dma.channels * npu.dma.channel_bytes_per_s)
    by_resource = {
        "tensor": sum(tensor.values()),
        "vector": sum(vector.values()),
        "dram": dram * PS_PER_S // rate,
        "critical path": _critical_path(problem, tensor, vector, _own_weights(problem, needed), rate),
    }
    return Bounds(
        makespan_ps=max(by_resource.values()),
        by_resource_ps=by_resource,
        dram_bytes=dram,
        compulsory_bytes=compulsory,
    )


def _tensor_ps(problem: Problem, layer: Layer, memo: dict[object, int]) -> int:
    """The layer's products, cut in any way, on all tensor engines at once (see `cover.least_steps`)."""
    product = product_of(problem.graph, layer)
    if product is None:
        return 0
    key = (product, problem.precision_of(layer.name))
    if key not in memo:
        memo[key] = _ideal_ps(problem, *key)
    return memo[key]


def _ideal_ps(problem: Problem, product: Product, precision: Precision) -> int:
    pair = precision.activation_pair if product.activations else precision.weight_pair
    npu = problem.npu
    arrays = arrays_of(npu, tuple((e.kind, e.count) for e in npu.tensor_engine))
    steps = least_steps(arrays, product.batch, product.m, product.n, product.k)
    return int(steps * step_ps(npu, pair, activations=product.activations) * (1 - ROUNDING))


def _vector_ps(problem: Problem, layer: Layer) -> int:
    """The layer's vector work on all vector engines; of moves, only what they write is sure to be needed."""
    npu = problem.npu
    work = vector_work(problem.graph, layer)
    if OPS[layer.op].streams == "whole":
        work = (("copy", problem.graph.tensors[layer.output].elements), *work[1:])
    return sum(
        int(vector_ps(npu, npu.vector_engine.count, elements, lane_operations(npu, function)))
        for function, elements in work
    )


def compulsory_bytes(problem: Problem) -> int:
    """Stored bytes of weights and inputs, as far as some layer needs them, and of outputs: each crosses the DRAM bus once."""
    return _compulsory_bytes(problem, _needed_shares(problem))


def _compulsory_bytes(problem: Problem, needed: Mapping[str, float]) -> int:
    return sum(
        int(problem.moved_bytes(t.name) * (1.0 if t.kind == "output" else needed.get(t.name, 0.0)))
        for t in problem.graph.tensors.values()
        if t.kind in ("weight", "input", "output")
    )


def _own_weights(problem: Problem, needed: Mapping[str, float]) -> Ints:
    """[n] bytes of weights that each layer needs and no other layer reads."""
    graph = problem.graph
    readers: dict[str, list[int]] = {}
    for number, layer in enumerate(graph.layers):
        for tensor in dict.fromkeys(layer.reads()):
            if graph.tensors[tensor].kind == "weight":
                readers.setdefault(tensor, []).append(number)
    found = np.zeros(len(graph.layers), dtype=np.int64)
    for tensor, numbers in readers.items():
        if len(numbers) == 1:
            found[numbers[0]] += int(problem.moved_bytes(tensor) * needed[tensor])
    return found


def _needed_shares(problem: Problem) -> dict[str, float]:
    """Share of each tensor that its readers need between them: the columns of their parts, the most rows of any of them."""
    tensors = problem.graph.tensors
    cols: dict[str, set[tuple[int, int]]] = {}
    rows: dict[str, float] = {}
    for layer in problem.graph.layers:
        for operand in layer.operands:
            for part in operand.parts:
                cols.setdefault(part.tensor, set()).add((part.start, part.start + part.size))
                share = _needed_rows(problem, layer, operand, tensors[part.tensor].shape[2])
                rows[part.tensor] = max(rows.get(part.tensor, 0.0), share)
    return {name: rows[name] * _covered(spans) / tensors[name].shape[3] for name, spans in cols.items()}


def _covered(spans: set[tuple[int, int]]) -> int:
    """Columns in the union of intervals."""
    total = end = 0
    for low, high in sorted(spans):
        total += max(0, high - max(low, end))
        end = max(end, high)
    return total


def _needed_rows(problem: Problem, layer: Layer, operand: Operand, total: int) -> float:
    """Share of an operand's rows that the layer cannot do without."""
    if operand.role == "table":
        index = problem.graph.tensors[layer.operands[0].parts[0].tensor]
        return min(1.0, index.elements / total)
    if layer.op == "copy" and "start" in layer.attributes:  # a slice
        return (
            problem.graph.tensors[layer.output].elements
            / problem.graph.tensors[operand.parts[0].tensor].elements
        )
    if operand.role != "x" or "stride" not in layer.attributes:
        return 1.0
    in_h = int(layer.attributes["in_hw"][0])
    out_h, stride = int(layer.attributes["out_hw"][0]), int(layer.attributes["stride"][0])
    reach = 1 + (int(layer.attributes["kernel"][0]) - 1) * int(layer.attributes.get("dilation", (1, 1))[0])
    top = int(layer.attributes["pads"][0])
    windows = (range(max(0, y * stride - top), min(in_h, y * stride - top + reach)) for y in range(out_h))
    return len({row for window in windows for row in window}) / in_h


def _is_barrier(problem: Problem, layer: Layer) -> bool:
    """Whether the layer needs all of its input before any output: GroupNorm of one image (of several, each has its own moment)."""
    return layer.op == "group_norm" and problem.graph.tensors[layer.output].shape[0] == 1


def _worst_excess(problem: Problem) -> int:
    """Most bytes over the SRAM's size that must be alive at once in every order.

    GroupNorm needs all of its input before its first output. So at the moment between its two passes its input is complete, and
    so is every tensor whose producer is an ancestor and which a descendant reads: all of them are alive, whatever the order.
    """
    graph = problem.graph
    dag = graph.dag()
    consumers = graph.consumers()
    worst = 0
    for layer in graph.layers:
        if not _is_barrier(problem, layer):
            continue
        before, after = nx.ancestors(dag, layer.name), nx.descendants(dag, layer.name) | {layer.name}
        alive = sum(
            problem.moved_bytes(other.output)
            for other in graph.layers
            if other.name in before
            and graph.tensors[other.output].kind == "intermediate"
            and any(graph.layers[i].name in after for i in consumers[other.output])
        )
        worst = max(worst, alive - problem.npu.sram.sram_bytes)
    return worst


def _critical_path(
    problem: Problem, tensor: Mapping[str, int], vector: Mapping[str, int], weights: Ints, rate: int
) -> int:
    """The longest chain of phases between layers that need all of their input before any output.

    Layers that are joined overlap tile by tile, so their times do not add up along a path. But whatever lies between two
    GroupNorms, a descendant of one and an ancestor of the other, starts after the first and ends before the second has its
    statistics: that phase takes at least as long as its busiest kind of engine. What was loaded ahead of its weights lay in the
    SRAM when it began; the others cross the bus within it. The sums of a norm that also reads what was made before the phase (a skip
    tensor) may have been taken then, and do not count.
    """
    layers = problem.graph.layers
    reach = _reachable(problem)
    work = np.asarray([[tensor[x.name] for x in layers], [vector[x.name] for x in layers]], dtype=np.int64)
    sums, ahead = _sums(problem), _summed_ahead(problem, reach)

    def phase_ps(chosen: npt.NDArray[np.bool_], ahead_bytes: int, u: int = -1) -> int:
        loaded = max(0, int(weights[chosen].sum()) - ahead_bytes)
        busy = work[:, chosen].sum(axis=1)
        busy[1] -= sums[chosen & ahead[u]].sum() if u >= 0 else 0
        return max(int(busy.max()), loaded * PS_PER_S // rate)

    everything = np.ones(len(layers), dtype=bool)
    end_of: dict[int, int] = {}
    for v in [*(i for i, x in enumerate(layers) if _is_barrier(problem, x)), -1]:
        before = reach[:, v] if v >= 0 else everything
        best = phase_ps(before, 0)
        for u, done in end_of.items():
            if v < 0 or reach[u, v]:
                best = max(best, done + phase_ps(reach[u] & before, problem.npu.sram.sram_bytes, u))
        end_of[v] = best
    return end_of[-1]


def _sums(problem: Problem) -> Ints:
    """[n] time that the sums of each norm take."""
    npu = problem.npu
    rate = lane_operations(npu, "group_norm_stats")
    counts = [
        sum(n for f, n in vector_work(problem.graph, x) if f == "group_norm_stats")
        for x in problem.graph.layers
    ]
    return np.asarray([int(vector_ps(npu, npu.vector_engine.count, n, rate)) for n in counts], dtype=np.int64)


def _summed_ahead(problem: Problem, reach: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[n, n] whether layer j is a norm with an input that is made neither by layer i nor by a descendant of it."""
    producer = problem.graph.producers()
    ahead = np.zeros_like(reach)
    for j, layer in enumerate(problem.graph.layers):
        if layer.op == "group_norm":
            for made in (producer[p.tensor] for p in layer.operands[0].parts if p.tensor in producer):
                before = ~reach[:, made]
                before[made] = False
                ahead[:, j] |= before
    return ahead


def _reachable(problem: Problem) -> npt.NDArray[np.bool_]:
    """[n, n] whether layer j is a descendant of layer i."""
    layers = problem.graph.layers
    producer = problem.graph.producers()
    reach = np.zeros((len(layers), len(layers)), dtype=bool)
    for j, layer in enumerate(layers):
        for name in dict.fromkeys(layer.reads()):
            if name in producer:
                i = producer[name]
                reach[:, j] |= reach[:, i]
                reach[i, j] = True
    return reach
