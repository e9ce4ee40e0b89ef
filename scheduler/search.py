"""Search proposes plans, has them simulated, and compares. It never knows what a layer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from npusim.cost import Work
from npusim.graph import Graph
from npusim.hardware import Npu
from npusim.plan import Plan
from npusim.program import Program
from npusim.scheduler.bounds import Bounds, lower_bounds
from npusim.scheduler.planner import Request, make_problem, plan_graph
from npusim.scheduler.problem import Infeasible, Problem
from npusim.simulate import simulate

__all__ = ["Found", "Request", "search_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The chosen plan with its Program, the bounds, and the curve of each segment's tile counts."""

    plan: Plan
    program: Program
    bounds: Bounds
    curves: Mapping[str, Sequence[Mapping[str, Any]]]


def search_plan(graph: Graph, npu: Npu, request: Request) -> Found | Infeasible:
    """The best plan under the request's rule.

    `auto` plans with its own choice of tilings and with the paper's rule, simulates both, and keeps the faster one; ties go to
    fewer DRAM bytes, then to fewer tiles.
    """
    problem = make_problem(graph, npu, request.precision, request.policy)
    candidates = [request]
    if request.tiles == "auto":
        candidates.append(replace(request, tiles="sram"))
    best: tuple[tuple[int, int, int], Plan, Program] | None = None
    refusal: Infeasible | None = None
    for candidate in candidates:
        planned = plan_graph(problem, candidate)
        if isinstance(planned, Infeasible):
            refusal = refusal or planned
            continue
        plan, program = planned
        score = _score(problem, plan, program)
        if best is None or score < best[0]:
            best = (score, plan, program)
    if best is None:
        assert refusal is not None
        return refusal
    plan = best[1].model_copy(update={"options": best[1].options.model_copy(update={"tiles": request.tiles})})
    return Found(plan=plan, program=best[2], bounds=lower_bounds(problem), curves={})


def _score(problem: Problem, plan: Plan, program: Program) -> tuple[int, int, int]:
    work = Work(program, problem.npu)
    trace = simulate(program, problem.npu, problem.policy, work=work)
    return trace.makespan_ps, int(work.dram_bytes.sum()), sum(s.tile_count for s in plan.segments)
