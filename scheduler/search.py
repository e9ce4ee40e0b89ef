"""Search proposes plans, has them simulated, and compares. It never knows what a layer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from npusim.cost import Work
from npusim.graph import Graph
from npusim.hardware import Npu
from npusim.plan import Plan
from npusim.program import Program
from npusim.scheduler.bounds import Bounds, lower_bounds
from npusim.scheduler.isolate import Measured, measure
from npusim.scheduler.pieces import Option, layer_key
from npusim.scheduler.planner import Request, check_request, make_problem, plan_graph
from npusim.scheduler.problem import Infeasible, Problem
from npusim.scheduler.tiles import Segment, Tiling, fewest_tiles, find_segments, layers_of, predicted, tilings
from npusim.simulate import simulate
from npusim.trace import Trace

__all__ = ["Found", "Request", "search_plan"]

#: Tilings whose closed-form time is within this factor of the best are simulated.
KEEP = 1.15
#: And at least this many of the best, so that the curve shows both sides of the optimum.
KEEP_AT_LEAST = 3

#: Most tilings that are simulated for one structure.
MOST = 6

Curve = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The chosen plan with its Program, simulated, the bounds, and the curve of each segment's tile counts."""

    plan: Plan
    program: Program
    work: Work
    trace: Trace
    bounds: Bounds
    curves: Mapping[str, Curve]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A plan that was simulated under the policy it was made for."""

    plan: Plan
    program: Program
    work: Work
    trace: Trace

    @property
    def score(self) -> tuple[int, int, int]:
        """What `auto` minimises: time, then DRAM bytes, then tiles."""
        tiles = sum(s.tile_count for s in self.plan.segments)
        return self.trace.makespan_ps, int(self.work.dram_bytes.sum()), tiles


def search_plan(graph: Graph, npu: Npu, request: Request) -> Found | Infeasible:
    """The best plan under the request's rule.

    `auto` chooses what stays in SRAM in closed form, then simulates the tilings of each segment in the space that is left, with the
    boundary state it has there. It also simulates the plan of the paper's rule, and keeps the faster one; ties go to fewer DRAM
    bytes, then to fewer tiles.
    """
    check_request(npu, request)
    problem = make_problem(graph, npu, request.precision, request.policy)
    tuner = _Tuner(problem)
    rules = ("auto", "sram") if request.tiles == "auto" else (request.tiles,)
    planned = [
        plan_graph(problem, replace(request, tiles=rule), tuner.refine if rule == "auto" else None)
        for rule in rules
    ]
    candidates = [_simulated(problem, *p) for p in planned if not isinstance(p, Infeasible)]
    if not candidates:
        return next(p for p in planned if isinstance(p, Infeasible))
    best = min(candidates, key=lambda c: c.score)
    options = best.plan.options.model_copy(update={"tiles": request.tiles})
    return Found(
        plan=best.plan.model_copy(update={"options": options}),
        program=best.program,
        work=best.work,
        trace=best.trace,
        bounds=lower_bounds(problem),
        curves=_curves(problem, tuner, best.plan),
    )


def _simulated(problem: Problem, plan: Plan, program: Program) -> _Candidate:
    work = Work(program, problem.npu)
    trace = simulate(program, problem.npu, problem.policy, work=work)
    return _Candidate(plan=plan, program=program, work=work, trace=trace)


@dataclass(slots=True)
class _Tuner:
    """Simulates tilings of segments; equal structures with equal boundary state are simulated once."""

    problem: Problem
    curves: dict[object, list[Measured]] = field(default_factory=dict)
    keys: dict[str, object] = field(default_factory=dict)

    def refine(self, segment: Segment, resident: frozenset[str], budget_bytes: int, chosen: Option) -> Option:
        """The tiling that simulates fastest within the budget."""
        assert isinstance(chosen.tile, Tiling)
        if chosen.tile.requested:
            return chosen
        curve = self.curve(segment, resident, budget_bytes)
        fitting = [m for m in curve if m.sram_bytes <= budget_bytes]
        if not fitting:
            return chosen
        best = min(fitting, key=lambda m: m.score)
        return replace(
            chosen,
            tile=best.tiling,
            cost_ps=best.makespan_ps,
            dram_bytes=best.dram_bytes,
            sram_bytes=best.sram_bytes,
        )

    def curve(self, segment: Segment, resident: frozenset[str], budget_bytes: int) -> list[Measured]:
        """Simulated tilings of a segment that fit the budget."""
        layers = [x for x in self.problem.graph.layers if x.name in segment.layers]
        key = (budget_bytes, *(layer_key(self.problem, x, resident) for x in layers))
        self.keys[segment.name] = key
        if key not in self.curves:
            self.curves[key] = self._measure(segment, resident, budget_bytes)
        return self.curves[key]

    def _measure(self, segment: Segment, resident: frozenset[str], budget_bytes: int) -> list[Measured]:
        layers = layers_of(self.problem.graph, segment)
        options = [predicted(self.problem, layers, t, resident) for t in tilings(self.problem, layers)]
        rule = fewest_tiles(self.problem, layers, budget_bytes, resident)
        if rule is not None:
            options.append(predicted(self.problem, layers, rule, resident))
        options = sorted((o for o in options if o.sram_bytes <= budget_bytes), key=lambda o: o.cost_ps)
        kept = [
            o for i, o in enumerate(options) if i < KEEP_AT_LEAST or o.cost_ps <= KEEP * options[0].cost_ps
        ]
        found: dict[tuple[int, int], Measured] = {}
        for option in kept[:MOST]:
            assert isinstance(option.tile, Tiling)
            point = measure(self.problem, segment, option.tile, resident)
            if point is not None:
                at = (point.tile_count, option.tile.depth)
                found[at] = min(found.get(at, point), point, key=lambda m: m.score)
        return sorted(found.values(), key=lambda m: (m.tile_count, m.tiling.depth))


def _curves(problem: Problem, tuner: _Tuner, plan: Plan) -> dict[str, Curve]:
    """The curve of each segment of an `auto` plan, with the chosen point and the paper's rule marked."""
    curves: dict[str, Curve] = {}
    by_name = {s.name: s for s in find_segments(problem.graph, "all")}
    for segment in plan.segments:
        measured = tuner.curves.get(tuner.keys.get(segment.name), [])
        layers = layers_of(problem.graph, by_name[segment.name])
        rule = fewest_tiles(problem, layers, problem.npu.sram.sram_bytes, frozenset()) if measured else None
        chosen = (segment.heads_per_tile, segment.rows_per_tile, segment.depth)
        curves[segment.name] = [
            {
                **m.point,
                "chosen": (m.tiling.heads, m.tiling.rows, m.tiling.depth) == chosen,
                "paper_rule": rule is not None and (m.tiling.heads, m.tiling.rows) == (rule.heads, rule.rows),
            }
            for m in measured
        ]
    return curves
