"""What a sweep wants small: figures of a point, or its place on an axis."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from npusim.errors import BadInputError
from npusim.sweep.evaluate import Cell
from npusim.sweep.spec import Spec

#: Figures of `summary.json` that are numbers, and larger or smaller at one design than at another.
FIGURES = (
    "latency_ms", "serial_latency_ms", "decoupled_latency_ms", "energy_mj", "dram_bytes", "dram_read_bytes", "dram_write_bytes",
    "spill_bytes", "dram_bound_bytes", "macs", "peak_sram_bytes", "sram_utilization", "handover_ms", "lower_bound_ms", "commands",
)  # fmt: skip


def check_objectives(spec: Spec) -> None:
    """Refuse an objective that is neither a figure nor an axis of numbers.

    Raises:
        BadInputError: which, and what is allowed.
    """
    numeric = [n for n, a in spec.axes.items() if all(not isinstance(s[0], str) for s in a.settings(n))]
    allowed = [*FIGURES, *numeric]
    for objective in spec.objectives:
        name = objective.removeprefix("-")
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=2)
            guess = f" (did you mean {' or '.join(repr(c) for c in close)}?)" if close else ""
            raise BadInputError(
                f"objectives: '{name}' is no figure of a run and no axis of numbers{guess}; allowed are {', '.join(allowed)}"
            )


def value_of(objective: str, axes: Mapping[str, object], row: Mapping[str, Cell]) -> float:
    """The number to be made small."""
    name = objective.removeprefix("-")
    value = number_of(name, axes, row)
    return -value if objective.startswith("-") else value


def number_of(name: str, axes: Mapping[str, object], row: Mapping[str, Cell]) -> float:
    """A figure of a point, or its place on an axis."""
    if name == "dram_bytes":
        return float(row["dram_read_bytes"] or 0) + float(row["dram_write_bytes"] or 0)
    return float(axes[name] if name in axes else row[name])  # type: ignore[arg-type]


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point beats: at most as large in every objective and smaller in one (Pareto, 1896).

    Points are visited in lexicographic order, so that only those kept so far can beat the next one.
    """
    order = sorted(range(len(points)), key=lambda i: tuple(points[i]))
    kept: list[int] = []
    for i in order:
        mine = points[i]
        beaten = any(
            all(a <= b for a, b in zip(points[k], mine, strict=True)) and tuple(points[k]) != tuple(mine)
            for k in kept
        )
        if not beaten:
            kept.append(i)
    return sorted(kept)
