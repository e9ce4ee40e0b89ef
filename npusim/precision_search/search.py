"""Assignments are proposed by the sum of their parts, simulated as whole networks, and the sums re-based on what was simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt

from npusim.api import profile
from npusim.errors import BadInputError
from npusim.graph import Graph
from npusim.hardware import Npu
from npusim.precision_search.choices import OBJECTIVES, Choices, Picks, choices_of
from npusim.precision_search.costs import CostTable, cost_table, total_costs
from npusim.precision_search.solve import best_picks, exact_front, pareto
from npusim.results import Profile
from npusim.scheduler.problem import Infeasible, Policy
from npusim.sensitivity.errors import Sensitivity, predicted_share
from npusim.units import PS_PER_MS

Floats = npt.NDArray[np.float64]

#: A prediction this close to its simulation is taken.
CLOSE = 0.02
#: Most simulations in answer to one question.
ROUNDS = 8
#: Of so few assignments, all are simulated.
SIMULATED = 256
#: Networks of at most this many choices have the whole front of their sums enumerated; of it, so many points per budget are simulated.
ENUMERATED, PER_BUDGET = 8, 16
#: Budgets of latency, of DRAM bytes and of error, between the uniform precisions' least and most, for which a larger network is solved.
BUDGETS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """How assignments are planned: the options of `npusim.profile`."""

    npu: Npu
    tiles: str = "auto"
    segments: str = "all"
    policy: Policy = "decoupled"

    def profile(self, graph: Graph, precisions: Mapping[str, str]) -> Profile:
        """Plan and simulate.

        Raises:
            BadInputError: nothing fits.
        """
        found = profile(
            graph,
            tiles=self.tiles,
            segments=self.segments,
            precision=precisions,
            npu=self.npu,
            policy=self.policy,
        )
        if isinstance(found, Infeasible):
            raise BadInputError(found.sentence())
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A simulated assignment.

    Attributes:
        picks: see `Choices`.
        values: [4] error (predicted share of noise), and simulated latency, DRAM bytes and energy (see `OBJECTIVES`).
        predicted_ps: the latency that was predicted before it was simulated; the simulated one where nothing was.
        name: of a uniform assignment its precision, else empty.
    """

    picks: Picks
    values: Floats
    predicted_ps: float
    name: str = ""


@dataclass(slots=True)
class Search:
    """A network's choices, and what has been simulated so far."""

    graph: Graph
    planner: Planner
    choices: Choices
    errors: Sensitivity
    costs: CostTable
    points: dict[Picks, Point] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None

    def predicted(self, picks: Picks) -> Floats:
        """[4] objectives: the nearest simulated assignment plus the sum of what differs."""
        return self._base(picks) + self.choices.total(picks)

    def _base(self, picks: Picks) -> Floats:
        """What to add to a sum of parts so that it is right for the simulated assignment that differs least."""
        near = min(self.points.values(), key=lambda p: (self._distance(p.picks, picks), p.picks))
        base = near.values - self.choices.total(near.picks)
        base[0] = 0.0
        return base

    def _distance(self, a: Picks, b: Picks) -> float:
        """Picoseconds by which two assignments differ, choice by choice."""
        rows = np.arange(len(a))
        times = self.choices.own[:, :, 1]
        moved = np.abs(times[rows, list(a)] - times[rows, list(b)])
        return float(moved.sum()) + sum(x != y for x, y in zip(a, b, strict=True))

    def simulate(self, picks: Picks, name: str = "") -> Point:
        """Plan and simulate an assignment, once."""
        if picks not in self.points:
            before = float(self.predicted(picks)[1]) if self.points else None
            precisions = self.choices.precisions(picks)
            self._add(picks, self.planner.profile(self.graph, precisions), before, name)
        return self.points[picks]

    def _add(self, picks: Picks, found: Profile, before: float | None, name: str) -> None:
        share = predicted_share(self.graph, self.errors, self.choices.precisions(picks))
        values = np.concatenate([[share], total_costs(found)])
        self.points[picks] = Point(
            picks=picks, values=values, predicted_ps=float(values[1]) if before is None else before, name=name
        )

    # ---- one answer ------------------------------------------------------------------------------------------------

    def best(self, minimise: str, limits: Mapping[str, float]) -> Point | None:
        """The simulated assignment with the least of one objective that keeps all limits, or None.

        Proposals are simulated and sums re-based on them until a proposal turns out as predicted. What is returned keeps the limits
        as simulated (errors as predicted).
        """
        within = {n: v for n, v in limits.items() if n != "error"}
        if "error" in limits:
            within["error"] = _first_order(limits["error"], self.errors.second_order)
        start = self._feasible(minimise, limits) or min(self.points.values(), key=lambda p: p.picks)
        near = start
        for _ in range(ROUNDS):
            base = near.values - self.choices.total(near.picks)
            offsets = {name: float(base[i]) for i, name in enumerate(OBJECTIVES) if i}
            picks = best_picks(self.choices, minimise, within, offsets)
            if picks is None or picks in self.points:
                break
            near = self.simulate(picks)
            if self._turned_out(near) and _keeps(near, limits):
                break
        return self._feasible(minimise, limits)

    def _turned_out(self, point: Point) -> bool:
        return bool(abs(point.predicted_ps - point.values[1]) <= CLOSE * point.values[1])

    def _feasible(self, minimise: str, limits: Mapping[str, float]) -> Point | None:
        kept = [p for p in self.points.values() if _keeps(p, limits)]
        column = OBJECTIVES.index(minimise)
        return min(kept, key=lambda p: (p.values[column], *p.values), default=None)

    def layer_times_ms(self) -> dict[str, dict[str, float]]:
        """Layer -> option -> its time in the network of that precision."""
        return {
            name: {o: float(self.costs.own[i, k, 0]) / PS_PER_MS for k, o in enumerate(self.costs.options)}
            for i, name in enumerate(self.costs.layers)
        }

    # ---- the front -------------------------------------------------------------------------------------------------

    def explore(self, budgets: int = BUDGETS, say: Callable[[int], None] = lambda _: None) -> None:
        """Simulate assignments all along the front: the whole of it in small networks, else the best under a row of budgets.

        Least error for latencies and DRAM bytes, least energy for errors.
        """
        if len(self.choices.groups) <= ENUMERATED:
            for picks in self._few(PER_BUDGET * budgets):
                self.simulate(picks)
            say(3 * budgets)
            return
        uniform = np.asarray([p.values for p in self.points.values() if p.name])
        low, high = uniform.min(axis=0), uniform.max(axis=0)
        shares = (np.arange(budgets) + 0.5) / budgets
        for name in (
            "latency_ps",
            "dram_bytes",
        ):  # closer together where it is cheap: there a little buys much
            column = OBJECTIVES.index(name)
            for share in shares**2:
                self._propose("error", name, float(low[column] + share * (high[column] - low[column])))
                say(1)
        for share in shares:  # evenly in dB
            self._propose("energy_pj", "error", float(low[0] ** (1 - share) * high[0] ** share))
            say(1)

    def _few(self, most: int) -> Sequence[Picks]:
        """Every assignment of a tiny network; of a small one, those that no other beats as sums."""
        width, count = len(self.choices.options), len(self.choices.groups)
        if width**count <= SIMULATED:
            return [
                p for p in product(range(width), repeat=count) if np.isfinite(self.choices.total(p)).all()
            ]
        return _spread(self.choices, exact_front(self.choices), most)

    def _propose(self, minimise: str, limited: str, most: float) -> None:
        """Simulate the best within one budget; the sums are those of the simulated assignment that is nearest to it."""
        column = OBJECTIVES.index(limited)
        if limited == "error":
            picks = best_picks(
                self.choices, minimise, {limited: _first_order(most, self.errors.second_order)}
            )
        else:
            near = min(self.points.values(), key=lambda p: (abs(float(p.values[column]) - most), p.picks))
            base = float((near.values - self.choices.total(near.picks))[column])
            picks = best_picks(self.choices, minimise, {limited: most}, {limited: base})
        if picks is not None:
            self.simulate(picks)

    def front(self) -> list[Point]:
        """Simulated assignments that no other one beats, the least error first."""
        points = sorted(self.points.values(), key=lambda p: p.picks)
        kept = pareto(np.asarray([p.values for p in points]))
        return sorted((points[i] for i in kept), key=lambda p: (*p.values, p.picks))


def _first_order(share: float, second_order: float) -> float:
    """The sum of parts whose noise, with what large noise adds, is this share."""
    if second_order == 0:
        return share
    return float((np.sqrt(1 + 4 * second_order * share) - 1) / (2 * second_order))


def _keeps(point: Point, limits: Mapping[str, float]) -> bool:
    return all(point.values[OBJECTIVES.index(n)] <= most for n, most in limits.items())


def _spread(choices: Choices, picks: Sequence[Picks], most: int) -> list[Picks]:
    """At most so many assignments, evenly by error."""
    ordered = sorted(picks, key=lambda p: tuple(choices.total(p)))
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


def start_search(
    graph: Graph, planner: Planner, errors: Sensitivity, *, say: Callable[[str], None] | None = None
) -> Search:
    """Simulate the network in each uniform precision, and make its choices from that.

    Raises:
        BadInputError: no precision fits the hardware.
    """
    names = [x.name for x in graph.layers]
    uniform: dict[str, Profile] = {}
    failures: list[BadInputError] = []
    for option in errors.options:
        try:
            uniform[option] = planner.profile(graph, dict.fromkeys(names, option))
        except BadInputError as error:  # too large, or the hardware cannot multiply it
            failures.append(error)
        if say is not None:
            say(option)
    if not uniform:
        raise failures[0]
    costs = cost_table(graph, planner.npu, uniform)
    choices = choices_of(graph, errors, costs)
    found = Search(graph=graph, planner=planner, choices=choices, errors=errors, costs=costs)
    for option, one in uniform.items():
        found._add(choices.uniform(option), one, None, option)
    return found
