"""What the sums of GroupNorms cost the layers that take them: the norm in a first pass, or the makers of its input (early)."""

from __future__ import annotations

from collections.abc import Sequence

from npusim.cost import lane_operations, vector_ps
from npusim.graph import Layer
from npusim.lower.statistics import Share, statistics_tensor
from npusim.ops import vector_work
from npusim.scheduler.problem import Problem

SUMS = "group_norm_stats"


def added(problem: Problem, layer: Layer, resident: frozenset[str]) -> Sequence[Share]:
    """The early statistics that a layer adds its output to, of those that have a home in SRAM."""
    return [s for s in problem.shares.get(layer.output, ()) if s.tensor in resident]


def vector_work_ps(problem: Problem, layer: Layer, resident: frozenset[str]) -> int:
    """Vector work of a layer's commands in picoseconds, but for a norm's first pass: its second pass, and sums that it takes for others."""
    counts = tuple(s.elements for s in added(problem, layer, resident))
    key = ("vector", layer.name, counts)
    if key not in problem.memo:
        own = sum(_ps(problem, f, n) for f, n in vector_work(problem.graph, layer) if f != SUMS)
        problem.memo[key] = own + sum(_ps(problem, SUMS, n) for n in counts)
    found = problem.memo[key]
    assert isinstance(found, int)
    return found


def first_pass_ps(problem: Problem, layer: Layer, resident: frozenset[str]) -> int:
    """Vector work of a norm's first pass over its input; 0 where its sums are taken early, and of other layers."""
    if layer.op != "group_norm" or statistics_tensor(layer.name) in resident:
        return 0
    return sum(_ps(problem, f, n) for f, n in vector_work(problem.graph, layer) if f == SUMS)


def _ps(problem: Problem, function: str, elements: int) -> int:
    npu = problem.npu
    return int(vector_ps(npu, npu.vector_engine.count, elements, lane_operations(npu, function)))
