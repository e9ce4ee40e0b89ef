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
from npusim.scheduler.kinds import KINDS
from npusim.scheduler.pieces import Option
from npusim.scheduler.planner import Planned, make_problem, plan_graph
from npusim.scheduler.problem import Infeasible, Problem
from npusim.scheduler.request import Request, check_request
from npusim.scheduler.tiles import Segment
from npusim.scheduler.units import attention_segments, propose_chains
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

    planned: Planned
    chains: tuple[tuple[str, ...], ...]
    work: Work
    trace: Trace

    @property
    def score(self) -> tuple[int, int, int]:
        """What `auto` minimises: time, then DRAM bytes, then tiles."""
        tiles = sum(s.tile_count for s in self.planned.plan.segments)
        return self.trace.makespan_ps, int(self.work.dram_bytes.sum()), tiles


def search_plan(graph: Graph, npu: Npu, request: Request) -> Found | Infeasible:
    """The best plan under the request's rule.

    `auto` chooses what stays in SRAM in closed form, then simulates the tilings of each segment in the space that is left, with the
    boundary state it has there. It simulates the network with attention alone joined, with row chains as the closed form proposes
    them, and with those chains that were faster than their layers apart; and the plan of the paper's rule. The fastest wins; ties go
    to fewer DRAM bytes, then to fewer tiles.
    """
    check_request(npu, request)
    problem = make_problem(graph, npu, request.precision, request.policy)
    tuner = _Tuner()
    candidates: list[_Candidate] = []
    failures: list[Infeasible] = []

    def attempt(rule: str, chains: Sequence[tuple[str, ...]]) -> _Candidate | None:
        planned = plan_graph(
            problem, replace(request, tiles=rule), tuner.refine if rule == "auto" else None, chains
        )
        if isinstance(planned, Infeasible):
            failures.append(planned)
            return None
        candidates.append(_simulated(planned, tuple(chains)))
        return candidates[-1]

    apart = attempt(request.tiles, ())
    if request.segments == "all" and request.tiles != "none":
        chains = propose_chains(problem, attention_segments(problem, request)[0])
        joined = attempt(request.tiles, chains) if chains else None
        if request.tiles == "auto" and apart is not None and joined is not None:
            kept = _faster(problem, apart, joined)
            if kept and kept != joined.chains:
                attempt("auto", kept)
    if request.tiles == "auto":
        attempt("sram", ())
    if not candidates:
        return failures[0]
    best = candidates[-1] if request.tiles not in ("auto", "none") else min(candidates, key=lambda c: c.score)
    plan = best.planned.plan
    options = plan.options.model_copy(update={"tiles": request.tiles})
    return Found(
        plan=plan.model_copy(update={"options": options}),
        program=best.planned.program,
        work=best.work,
        trace=best.trace,
        bounds=lower_bounds(problem),
        curves=_curves(tuner, best.planned),
    )


def _simulated(planned: Planned, chains: tuple[tuple[str, ...], ...]) -> _Candidate:
    npu, policy = planned.problem.npu, planned.problem.policy
    work = Work(planned.program, npu)
    trace = simulate(planned.program, npu, policy, work=work)
    return _Candidate(planned=planned, chains=chains, work=work, trace=trace)


def _faster(problem: Problem, apart: _Candidate, joined: _Candidate) -> tuple[tuple[str, ...], ...]:
    """The chains that took less time than their layers apart: from the end of what ran before to their own end."""
    separate, together = _advances(apart), _advances(joined)
    return tuple(
        chain
        for chain in joined.chains
        if sum(together[n] for n in chain) < sum(separate[n] for n in chain)
    )


def _advances(candidate: _Candidate) -> dict[str, int]:
    """By how much each layer moves the time forward at which everything so far has ended."""
    layer, end = candidate.planned.program.commands.layer, candidate.trace.end_ps
    found: dict[str, int] = {}
    done = 0
    for unit in candidate.planned.units:
        for name in unit.layers:
            chosen = layer == candidate.planned.program.layers.index(name)
            last = int(end[chosen].max()) if chosen.any() else done
            found[name] = max(0, last - done)
            done = max(done, last)
    return found


@dataclass(slots=True)
class _Tuner:
    """Simulates tilings of segments; equal structures with equal boundary state are simulated once."""

    measured: dict[object, list[Measured]] = field(default_factory=dict)
    keys: dict[tuple[str, ...], object] = field(default_factory=dict)

    def refine(
        self, problem: Problem, segment: Segment, resident: frozenset[str], budget_bytes: int, chosen: Option
    ) -> Option:
        """The tiling that simulates fastest within the budget."""
        key = (segment.kind, budget_bytes, KINDS[segment.kind].key(problem, segment, resident))
        self.keys[segment.layers] = key
        if key not in self.measured:
            self.measured[key] = _measured(problem, segment, resident, budget_bytes)
        fitting = [m for m in self.measured[key] if m.sram_bytes <= budget_bytes]
        return min(fitting, key=lambda m: m.score).option if fitting else chosen


def _measured(
    problem: Problem, segment: Segment, resident: frozenset[str], budget_bytes: int
) -> list[Measured]:
    """The most promising tilings that fit the budget, and the paper's rule, simulated."""
    kind = KINDS[segment.kind]
    tiles = list(kind.tilings(problem, segment))
    rule = kind.rule(problem, segment, budget_bytes, resident)
    if rule is not None:
        tiles.append(rule)
    options = [kind.predict(problem, segment, t, resident) for t in tiles]
    options = sorted((o for o in options if o.sram_bytes <= budget_bytes), key=lambda o: o.cost_ps)
    kept = [o for i, o in enumerate(options) if i < KEEP_AT_LEAST or o.cost_ps <= KEEP * options[0].cost_ps]
    found: dict[tuple[int, int], Measured] = {}
    for option in kept[:MOST]:
        point = measure(problem, segment, option, resident)
        if point is not None:
            at = (point.tile_count, point.depth)
            found[at] = min(found.get(at, point), point, key=lambda m: m.score)
    return sorted(found.values(), key=lambda m: (m.tile_count, m.depth))


def _curves(tuner: _Tuner, planned: Planned) -> dict[str, Curve]:
    """The curve of each segment of an `auto` plan, with the chosen point and the paper's rule marked."""
    curves: dict[str, Curve] = {}
    problem = planned.problem
    for unit, entry in zip([u for u in planned.units if u.segment], planned.plan.segments, strict=True):
        assert unit.segment is not None
        measured = tuner.measured.get(tuner.keys.get(unit.layers), [])
        capacity = problem.npu.sram.sram_bytes
        kind = KINDS[unit.segment.kind]
        rule = kind.rule(problem, unit.segment, capacity, frozenset()) if measured else None
        ruled = kind.plan(problem.graph, unit.segment, rule, ()) if rule is not None else None
        curves[entry.name] = [
            {
                **m.point,
                "chosen": (m.point["tiles"], m.depth) == (dict(entry.tiles), entry.depth),
                "paper_rule": ruled is not None and m.point["tiles"] == dict(ruled.tiles),
            }
            for m in measured
        ]
    return curves
