"""The best assignment under limits, by mixed-integer linear programming (HiGHS through SciPy), and the whole front of small networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from npusim.errors import MissingExtraError
from npusim.precision_search.choices import OBJECTIVES, Choices, Picks

Floats = npt.NDArray[np.float64]

#: Networks of at most this many choices are solved to the optimum, larger ones to this share of it, within so many seconds.
EXACT_CHOICES, GAP, LIMIT_S = 40, 2e-3, 20.0
#: Of objectives that are not minimised, this much is added, so that ties go to what is cheaper in them.
_TIE = 1e-4


@dataclass(frozen=True, slots=True)
class Program:
    """Columns: options of every choice (binary), then casts of tensors, then casts per edge (0 to 1; whole where options are)."""

    columns: int
    objectives: Floats
    rows: Any
    low: Floats
    high: Floats
    upper: Floats
    integral: Floats


def best_picks(
    choices: Choices, minimise: str, limits: Mapping[str, float], offsets: Mapping[str, float] | None = None
) -> Picks | None:
    """The assignment with the least of one objective under limits on others, or None if there is none.

    Args:
        minimise: one of `OBJECTIVES`.
        limits: objective -> most.
        offsets: objective -> what is added to the sum before it is compared with its limit (the base of a simulation).

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise MissingExtraError("scipy", "search") from error
    made = _program(choices)
    goal = _goal(made.objectives, OBJECTIVES.index(minimise))
    constraints = [LinearConstraint(made.rows, made.low, made.high)]
    for name, most in limits.items():
        row = made.objectives[OBJECTIVES.index(name)]
        scale = max(float(np.abs(row).max()), 1e-300)
        constraints.append(
            LinearConstraint(row[None] / scale, -np.inf, (most - (offsets or {}).get(name, 0.0)) / scale)
        )
    small = len(choices.groups) <= EXACT_CHOICES
    solved = milp(
        goal, integrality=made.integral, bounds=Bounds(0, made.upper), constraints=constraints,
        options={"mip_rel_gap": 0.0 if small else GAP, "time_limit": LIMIT_S},
    )  # fmt: skip
    if solved.x is None:
        return None
    taken = solved.x[: len(choices.groups) * len(choices.options)].reshape(len(choices.groups), -1)
    return tuple(int(i) for i in taken.argmax(axis=1))


def _goal(objectives: Floats, wanted: int) -> Floats:
    """The objective in units of its mean column, with a trace of all others."""
    scaled = [row / max(float(np.abs(row).sum()), 1e-300) for row in objectives]
    return np.asarray(scaled[wanted] + _TIE * sum(scaled[i] for i in range(len(scaled)) if i != wanted)) * 1e3


def _program(choices: Choices) -> Program:
    from scipy.sparse import lil_array

    count, width, kinds = len(choices.groups), len(choices.options), choices.kinds
    casts = sorted({(e.tensor, k) for e in choices.edges for k in set(kinds)})
    place = {c: count * width + i for i, c in enumerate(casts)}
    shares = [(e, k) for e in choices.edges for k in sorted(set(kinds)) if e.error.get(k, 0.0) > 0]
    first = count * width + len(casts)
    columns = first + len(shares)
    objectives = np.zeros((len(OBJECTIVES), columns))
    finite = np.isfinite(choices.own)
    objectives[:, : count * width] = np.where(finite, choices.own, 0.0).reshape(count * width, -1).T
    for cast, column in place.items():
        objectives[:, column] = choices.cast[cast[0]]
    for number, (edge, kind) in enumerate(shares):
        objectives[0, first + number] = edge.error[kind]
    bound = [(e, k, place[e.tensor, k]) for e in choices.edges for k in sorted(set(kinds))]
    bound += [(e, k, first + n) for n, (e, k) in enumerate(shares)]
    rows = lil_array((count + len(bound), columns))
    low = np.zeros(count + len(bound))
    high = np.full(count + len(bound), np.inf)
    for choice in range(count):  # one option each
        rows[choice, choice * width : (choice + 1) * width] = 1
        low[choice] = high[choice] = 1
    for number, (edge, kind, column) in enumerate(bound):  # cast >= reader wants the type - writer stores it
        row = count + number
        rows[row, column] = 1
        for option in range(width):
            if kinds[option] == kind:
                rows[row, edge.reader * width + option] = -1
                rows[row, edge.writer * width + option] = 1
    upper = np.ones(columns)
    upper[: count * width] = finite.all(axis=2).ravel()
    integral = np.zeros(columns)
    integral[: count * width] = 1
    return Program(columns, objectives, rows.tocsr(), low, high, upper, integral)


# ---- the whole front ---------------------------------------------------------------------------------------------------


def exact_front(choices: Choices) -> list[Picks]:
    """Every assignment that no other one beats in all objectives; of equal ones the first. For networks of few choices.

    Dynamic programming: choices are taken in turn; of partial assignments that agree on every choice that a later one still has an
    edge to, those that another one beats are dropped, since what follows costs both the same.
    """
    order, last = range(len(choices.groups)), _last_use(choices)
    partial: list[Picks] = [()]
    for choice in order:
        grown = [
            (*p, o)
            for p in partial
            for o in range(len(choices.options))
            if np.isfinite(choices.own[choice, o]).all()
        ]
        alive = [c for c in range(choice + 1) if last[c] > choice]
        states: dict[tuple[int, ...], list[Picks]] = {}
        for picks in grown:
            states.setdefault(tuple(picks[c] for c in alive), []).append(picks)
        partial = [p for same in states.values() for p in _undominated(_part(choices, choice + 1), same)]
    return sorted(partial)


def _last_use(choices: Choices) -> list[int]:
    """For each choice the last one that shares a tensor with it: until then, what it picks matters."""
    members: dict[str, set[int]] = {}
    for edge in choices.edges:
        members.setdefault(edge.tensor, set()).update((edge.writer, edge.reader))
    found = list(range(len(choices.groups)))
    for together in members.values():
        for choice in together:
            found[choice] = max(found[choice], *together)
    return found


def _part(choices: Choices, count: int) -> Choices:
    """The first choices alone."""
    edges = tuple(e for e in choices.edges if e.reader < count and e.writer < count)
    return Choices(
        groups=choices.groups[:count],
        options=choices.options,
        own=choices.own[:count],
        edges=edges,
        cast=choices.cast,
    )


def _undominated(choices: Choices, picks: Sequence[Picks]) -> list[Picks]:
    values = np.asarray([choices.total(p) for p in picks])
    return [picks[i] for i in pareto(values)]


def pareto(values: Floats) -> list[int]:
    """Indices of rows that no other row is at most in all columns and less in one; of equal rows the first."""
    order = sorted(range(len(values)), key=lambda i: (*values[i], i))
    kept: list[int] = []
    for i in order:
        if not any((values[k] <= values[i]).all() for k in kept):
            kept.append(i)
    return sorted(kept)
