"""Search proposes plans, has them simulated, and compares. It never knows what a layer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, cast

from npusim.cost import Work
from npusim.graph import Graph
from npusim.hardware import Npu
from npusim.scheduler.bounds import Bounds, lower_bounds
from npusim.scheduler.chains import chain_key
from npusim.scheduler.isolate import Measured, measure
from npusim.scheduler.kinds import KINDS, Tile, paper_rule, predicted
from npusim.scheduler.pieces import Option
from npusim.scheduler.planner import Planned, lowered, make_problem, plan_graph, resident_bytes, without
from npusim.scheduler.polish import moves, neighbours, pairs
from npusim.scheduler.problem import Infeasible, Problem
from npusim.scheduler.request import Request, check_request
from npusim.scheduler.tiles import Segment
from npusim.scheduler.units import (
    attention_segments,
    chain_segments,
    crowded_segments,
    other_chains,
    predicted_share,
    propose_chains,
    small_tensors,
)
from npusim.simulate import simulate
from npusim.trace import Trace

__all__ = ["Found", "Request", "search_plan"]

#: Tilings whose closed-form time is within this factor of the best are simulated.
KEEP = 1.05
#: And at least this many of the best, so that the curve shows both sides of the optimum.
KEEP_AT_LEAST = 2

#: Most tilings that are simulated for one structure.
MOST = 3

#: A chain that is predicted to take at most this share of its layers' time apart is faster (in 13 networks of the zoo none was not).
SURE = 2 / 3

#: Chains are tried one by one until this many commands have been simulated: small networks are searched further than large ones.
DESCENT_COMMANDS = 30_000

#: Plans without one means each are tried if at most so many commands have been simulated before.
PLAIN_COMMANDS = 1_000

#: Programs of at most so many commands are polished decision by decision, until so many commands have been simulated for that.
POLISHED, POLISH_COMMANDS = 128, 8_000

Curve = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The chosen plan with what it was made of, simulated, the bounds, and the curve of each segment's tile counts."""

    planned: Planned
    work: Work
    trace: Trace
    bounds: Bounds
    curves: Mapping[str, Curve]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A plan that was simulated under the policy it was made for."""

    planned: Planned
    work: Work
    trace: Trace

    @property
    def score(self) -> tuple[int, int, int]:
        """What `auto` minimises: time, then DRAM bytes, then tiles."""
        tiles = sum(s.tile_count for s in self.planned.plan.segments)
        return self.trace.makespan_ps, int(self.work.dram_bytes.sum()), tiles


def search_plan(graph: Graph, npu: Npu, request: Request) -> Found | Infeasible:
    """The best plan under the request's rule.

    `auto` has row chains proposed in closed form and keeps those that, simulated on their own, are faster than their layers apart. It
    chooses what stays in SRAM in closed form, then simulates the tilings of each segment in the space that is left, with the boundary
    state it has there. It also simulates the plan of the paper's rule for tiles; of small networks also plans that do without one of the
    planner's means each (`_Search._plainer`), since closed forms choose these. The fastest wins; ties go to fewer DRAM bytes, then to
    fewer tiles.
    """
    check_request(npu, request)
    auto = request.tiles == "auto"
    early = request.segments == "all" and request.tiles != "none"
    problem = make_problem(
        graph, npu, request.precision, request.policy, request.precisions, shared=auto, sums_early=early
    )
    search = _Search(problem, request)
    if auto:
        search.auto()
    else:
        search.attempt(request.tiles, search.proposed())
    best = search.best
    if best is None:
        return search.failures[0]
    plan = best.planned.plan
    options = plan.options.model_copy(update={"tiles": request.tiles, "segments": request.segments})
    return Found(
        planned=replace(best.planned, plan=plan.model_copy(update={"options": options})),
        work=best.work,
        trace=best.trace,
        bounds=lower_bounds(problem),
        curves=_curves(search.tuner(best.planned.problem), best.planned),
    )


@dataclass(slots=True)
class _Search:
    """The best plan so far, sets of chains that were tried, the best short Program of each, and what does not fit."""

    problem: Problem
    request: Request
    tuners: dict[tuple[bool, bool], _Tuner] = field(default_factory=dict)
    best: _Candidate | None = None
    tried: set[object] = field(default_factory=set)
    starts: dict[object, _Candidate] = field(default_factory=dict)
    spent: int = 0
    failures: list[Infeasible] = field(default_factory=list)

    def tuner(self, problem: Problem) -> _Tuner:
        """What was simulated of this problem's segments."""
        return self.tuners.setdefault(_means(problem), _Tuner())

    def proposed(self) -> list[tuple[str, ...]]:
        """Row chains as the closed form proposes them, if the request allows any."""
        if self.request.segments != "all" or self.request.tiles == "none":
            return []
        attention, _ = attention_segments(self.problem, self.request)
        return propose_chains(self.problem, attention, self.request)

    def attempt(
        self, rule: str, chains: Sequence[tuple[str, ...]], *, tuned: bool = False, problem: Problem | None = None, segments: str = ""
    ) -> None:  # fmt: skip
        """Plan and simulate; the better of this and the best so far is kept.

        Args:
            problem: with other means than this search's.
            segments: joined kinds, if other than those asked for.
        """
        request = replace(self.request, tiles=rule, segments=segments or self.request.segments)
        problem = problem or self.problem
        planned = plan_graph(problem, request, self.tuner(problem).refine if tuned else None, chains)
        if isinstance(planned, Infeasible):
            self.failures.append(planned)
            return
        if tuned and request.segments == self.request.segments:
            self.tried.add((_means(problem), tuple(chains)))
        self._consider(planned)

    def _consider(self, planned: Planned) -> _Candidate:
        found = _simulated(planned)
        self.spent += len(planned.program)
        if self.best is None or found.score < self.best.score:
            self.best = found
        if len(planned.program) <= POLISHED:
            key = (_means(planned.problem), planned.problem.chains)
            self.starts[key] = min(self.starts.get(key, found), found, key=lambda c: c.score)
        return found

    def auto(self) -> None:
        """Try what `search_plan` describes."""
        crowded = crowded_segments(self.problem, self.request)
        self.problem = replace(self.problem, apart=frozenset(s.name for s in crowded if not self._joins(s)))
        chains = self.proposed()
        gaining = tuple(c for c in chains if self._gains(c))
        self.attempt("auto", gaining, tuned=True)
        self.attempt("sram", ())
        if self.spent < PLAIN_COMMANDS:
            self._plainer(gaining)
        if self.request.segments == "all" and self.spent < DESCENT_COMMANDS // 6:
            attention, _ = attention_segments(self.problem, self.request)
            self._descend([*chains, *other_chains(self.problem, attention, self.request, chains)])
        self._polish()

    def _plainer(self, chains: Sequence[tuple[str, ...]]) -> None:
        """Without shared products, without early sums, without joined attentions; and the paper's rule without any of them."""
        problem = self.problem
        alone = without(problem, shared=False)
        late = without(problem, sums_early=False)
        for other in (alone, late):
            if _means(other) != _means(problem):
                self.attempt("auto", chains, tuned=True, problem=other)
        plain = without(problem, shared=False, sums_early=False)
        if self.request.segments != "none":
            self.attempt("auto", (), tuned=True, segments="none")
            self.attempt("sram", (), problem=plain, segments="attention")

    def _gains(self, chain: tuple[str, ...]) -> bool:
        """Whether a chain on its own is faster than its layers apart, small tensors being in SRAM before and after.

        Simulated, unless the closed form leaves no doubt.
        """
        problem = self.problem
        resident = small_tensors(problem, chain) - problem.inside(chain)
        key = ("gains", chain_key(problem, chain, resident))
        if key not in problem.memo:
            attention, _ = attention_segments(problem, self.request)
            sure = predicted_share(problem, attention, chain) <= SURE
            problem.memo[key] = sure or self._together_ps(chain, resident) < self._apart_ps(chain, resident)
        return bool(problem.memo[key])

    def _joins(self, attention: Segment) -> bool:
        """Whether the best tiling of an attention, simulated on its own, is faster than its layers apart."""
        problem, names = self.problem, attention.layers
        resident = small_tensors(problem, names) - problem.inside(names)
        key = ("joins", KINDS[attention.kind].key(problem, attention, resident))
        if key not in problem.memo:
            together = self.tuner(problem).best(problem, attention, resident)
            problem.memo[key] = together < self._apart_ps(names, resident, "none")
        return bool(problem.memo[key])

    def _together_ps(self, chain: tuple[str, ...], resident: frozenset[str]) -> float:
        """Simulated time of a chain in the tiling that the closed form prefers; infinite if none fits."""
        (segment,) = chain_segments(self.problem.graph, [chain])
        return self.tuner(self.problem).first(self.problem, segment, resident)

    def _apart_ps(
        self, names: tuple[str, ...], resident: frozenset[str], segments: str = "attention"
    ) -> float:
        """Simulated time of some layers, only these kinds of segment joined."""
        part = self.problem.part(names, resident)
        planned = plan_graph(part, replace(self.request, segments=segments), self.tuner(self.problem).refine)
        return inf if isinstance(planned, Infeasible) else _simulated(planned).trace.makespan_ps

    def _descend(self, chains: Sequence[tuple[str, ...]]) -> None:
        """While few commands were simulated: join or part one chain after the other, as long as that makes the network faster."""
        improved = True
        while improved and self.best is not None:
            improved = False
            for chain in chains:
                if self.spent > DESCENT_COMMANDS:
                    return
                before, problem = self.best, self.best.planned.problem
                changed = _toggled(problem.chains, chain)
                if (_means(problem), changed) not in self.tried:
                    self.attempt("auto", changed, tuned=True, problem=problem)
                    improved = improved or self.best is not before

    def _polish(self) -> None:
        """Short Programs, the fastest set of chains first: change one decision after the other, as long as that helps."""
        limit = self.spent + POLISH_COMMANDS
        for start in sorted(self.starts.values(), key=lambda c: c.score):
            better: _Candidate | None = start
            while better is not None and self.spent < limit:
                better = self._step(better, limit)

    def _step(self, start: _Candidate, limit: int) -> _Candidate | None:
        """The best plan that differs in one decision, if it is better; else one that differs in two."""
        planned, best = start.planned, start
        for changes in (neighbours, moves, pairs):
            for decided in changes(planned, self.request):
                if self.spent >= limit:
                    break
                unjoined = planned.plan.unjoined
                found = self._consider(
                    lowered(planned.problem, self.request, planned.units, decided, unjoined)
                )
                best = min(best, found, key=lambda c: c.score)
            if best is not start:
                return best
        return None


def _means(problem: Problem) -> tuple[bool, bool]:
    """What a plan may use that the paper's does not."""
    return problem.shared, problem.sums_early


def _toggled(chains: Sequence[tuple[str, ...]], chain: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The chains without this one, or with it instead of those that share its layers."""
    if chain in chains:
        return tuple(c for c in chains if c != chain)
    return tuple(sorted([chain, *(c for c in chains if not set(c) & set(chain))]))


def _simulated(planned: Planned) -> _Candidate:
    npu, policy = planned.problem.npu, planned.problem.policy
    work = Work(planned.program, npu)
    trace = simulate(planned.program, npu, policy, work=work)
    return _Candidate(planned=planned, work=work, trace=trace)


@dataclass(slots=True)
class _Tuner:
    """Simulates tilings of segments; equal structures with equal boundary state are simulated once."""

    measured: dict[object, Measured | None] = field(default_factory=dict)
    tried: dict[tuple[str, ...], list[Measured]] = field(default_factory=dict)

    def refine(
        self, problem: Problem, segment: Segment, resident: frozenset[str], budget_bytes: int, chosen: Option
    ) -> Option:
        """The tiling that simulates fastest within the budget."""
        options = _promising(problem, segment, resident, budget_bytes)
        points = [self.simulated(problem, segment, option, resident) for option in options]
        found = self.tried[segment.layers] = [p for p in points if p is not None]
        return min(found, key=lambda m: m.score).option if found else chosen

    def first(self, problem: Problem, segment: Segment, resident: frozenset[str]) -> float:
        """Simulated picoseconds of the tiling that the closed form prefers; infinite if none fits."""
        return self._least(problem, segment, resident, 1)

    def best(self, problem: Problem, segment: Segment, resident: frozenset[str]) -> float:
        """Simulated picoseconds of the fastest promising tiling; infinite if none fits."""
        return self._least(problem, segment, resident, None)

    def _least(self, problem: Problem, segment: Segment, resident: frozenset[str], most: int | None) -> float:
        budget = problem.npu.sram.sram_bytes - problem.part(segment.layers, resident).held_bytes
        options = _promising(problem, segment, resident, budget)[:most]
        points = [self.simulated(problem, segment, o, resident) for o in options]
        return min((p.makespan_ps for p in points if p is not None), default=inf)

    def simulated(
        self, problem: Problem, segment: Segment, option: Option, resident: frozenset[str]
    ) -> Measured | None:
        """One tiling of a segment on its own; None if it does not fit beside the resident tensors."""
        key = (segment.kind, KINDS[segment.kind].key(problem, segment, resident), option.tile)
        if key not in self.measured:
            self.measured[key] = measure(problem, segment, option, resident)
        return self.measured[key]


def _promising(
    problem: Problem, segment: Segment, resident: frozenset[str], budget_bytes: int
) -> list[Option]:
    """The tilings within the budget whose closed-form time is best, the paper's rule among those that are compared."""
    kind = KINDS[segment.kind]
    tiles = list(kind.tilings(problem, segment))
    rule = paper_rule(problem, segment, budget_bytes, resident)
    if rule is not None:
        tiles.append(rule)
    options = predicted(problem, segment, list(dict.fromkeys(tiles)), resident)
    options = sorted((o for o in options if o.sram_bytes <= budget_bytes), key=lambda o: o.cost_ps)
    limit = KEEP * options[0].cost_ps if options else 0
    found = [o for i, o in enumerate(options[:MOST]) if i < KEEP_AT_LEAST or o.cost_ps <= limit]
    groups: dict[object, Option] = {}
    for option in options:
        groups.setdefault(kind.group(cast("Tile", option.tile)), option)
    return [*found, *(o for o in groups.values() if o not in found)]


def _curves(tuner: _Tuner, planned: Planned) -> dict[str, Curve]:
    """The curve of each segment of an `auto` plan, with the chosen point and the paper's rule marked.

    The rule is the one of the space that is left: the fewest tiles whose working set fits beside what stays in SRAM.
    """
    curves: dict[str, Curve] = {}
    problem, decided = planned.problem, planned.decided
    used = resident_bytes(problem, planned.units, decided.resident)
    names = {segment.layers: segment.name for segment in planned.plan.segments}
    for unit, option, taken in zip(planned.units, decided.options, used, strict=True):
        if unit.segment is None or unit.layers not in tuner.tried:
            continue
        resident = decided.resident & unit.tensors
        rule = paper_rule(problem, unit.segment, problem.npu.sram.sram_bytes - taken, resident)
        marked = [option, *predicted(problem, unit.segment, [] if rule is None else [rule], resident)]
        points = [tuner.simulated(problem, unit.segment, o, resident) for o in marked]
        marks = [p for p in points if p is not None]
        curves[names[unit.layers]] = [
            {**m.point, "chosen": m.option.tile == option.tile, "paper_rule": m.option.tile == rule}
            for m in _by_count([*tuner.tried[unit.layers], *marks], marks)
        ]
    return curves


def _by_count(measured: Sequence[Measured], marks: Sequence[Measured]) -> list[Measured]:
    """The fastest of each tile count and depth, and those that are marked, by count."""
    found: dict[tuple[int, int], Measured] = {}
    for point in measured:
        at = (point.tile_count, point.depth)
        found[at] = min(found.get(at, point), point, key=lambda m: m.score)
    distinct = {m.option.tile: m for m in (*found.values(), *marks)}
    return sorted(distinct.values(), key=lambda m: (m.tile_count, m.depth, m.score))
