"""What a sweep came to, as its page shows it: every computed point with its figures, those that none beats, the knees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npusim.files import write_aside
from npusim.reports.sweep import PagePoint, SweepPage, write_sweep_page
from npusim.sweep.evaluate import DONE, INFEASIBLE, Cell
from npusim.sweep.objectives import FIGURES, front, number_of, value_of
from npusim.sweep.opened import SHORT, directory_of
from npusim.sweep.run import Progress, Sweep
from npusim.sweep.space import OPTIONS, Space, paths_of

PAGE = "sweep.html"
#: Figures on the page, besides the objectives.
_SHOWN = ("latency_ms", "energy_mj", "dram_bytes", "spill_bytes", "peak_sram_bytes")
SRAM = "sram.sram_bytes"


def write_page(sweep: Sweep, spec: Path) -> Path:
    """Write the page of what is in the store of a sweep; its path."""
    page = page_of(sweep, spec)
    path = sweep.folder / PAGE
    write_aside(path, lambda aside: write_sweep_page(page, aside))
    return path


def page_of(sweep: Sweep, spec: Path) -> SweepPage:
    """The results of a sweep as the page draws them."""
    space = sweep.space
    results = sweep.store.results(sweep.name)
    done = [(axes, row) for axes, row in results if row["status"] == DONE]
    points = tuple(_page_point(sweep, axes, row) for axes, row in done)
    varied = {d.name: d.values for d in space.dimensions if len(d.settings) > 1}
    return SweepPage(
        name=space.spec.name, title=space.spec.title, npu=space.spec.npu, networks=tuple(n.name for n in space.networks),
        axes=varied, fixed={d.name: d.values[0] for d in space.dimensions if len(d.settings) == 1},
        base={d.name: _base_value(space, d.name) for d in space.dimensions if len(d.settings) > 1},
        objectives=space.spec.objectives, points=points,
        front=_fronts(space.spec.objectives, done), left_out=_left_out(results),
        open_command=f"npusim sweep {spec} --out {sweep.store.path.parent} --point ", sampled=space.spec.search.method != "grid",
    )  # fmt: skip


def _page_point(sweep: Sweep, axes: Mapping[str, Any], row: Mapping[str, Cell]) -> PagePoint:
    names = dict.fromkeys([*(o.removeprefix("-") for o in sweep.space.spec.objectives), *_SHOWN])
    key = str(row["key"])
    report = directory_of(sweep, key) / "report.html"
    return PagePoint(
        key=key[:SHORT], axes=dict(axes),
        figures={n: number_of(n, axes, row) for n in names if n in FIGURES},
        report=report.relative_to(sweep.folder).as_posix() if report.is_file() else "",
    )  # fmt: skip


def _fronts(
    objectives: tuple[str, ...], done: list[tuple[dict[str, Any], dict[str, Cell]]]
) -> tuple[int, ...]:
    """Indices of the points that no other point of the same network beats."""
    found: list[int] = []
    for network in dict.fromkeys(axes["network"] for axes, _ in done):
        mine = [i for i, (axes, _) in enumerate(done) if axes["network"] == network]
        values = [[value_of(o, *done[i]) for o in objectives] for i in mine]
        found += [mine[i] for i in front(values)]
    return tuple(sorted(found))


def _base_value(space: Space, name: str) -> Any:
    """The value of an axis that is nearest to the hardware's own; the default of an option; else the middle one."""
    dimension = next(d for d in space.dimensions if d.name == name)
    key = dimension.keys[0]
    own = OPTIONS.get(key) if key in OPTIONS else dict(paths_of(space.npus[space.spec.npu])).get(key)
    values = dimension.values
    if isinstance(own, int | float) and all(isinstance(v, int | float) for v in values):
        return min(values, key=lambda v: abs(float(v) - own))
    return own if own in values else values[len(values) // 2]


def _left_out(results: list[tuple[dict[str, Any], dict[str, Cell]]]) -> dict[str, tuple[int, str]]:
    """What points without figures came to: status -> how many, and the first reason."""
    found: dict[str, tuple[int, str]] = {}
    for _, row in results:
        if row["status"] != DONE:
            count, reason = found.get(str(row["status"]), (0, str(row["reason"])))
            found[str(row["status"])] = (count + 1, reason)
    return found


def summary_lines(sweep: Sweep, progress: Progress) -> list[str]:
    """What a sweep came to, in a few lines."""
    results = sweep.store.results(sweep.name)
    left = _left_out(results)
    lines = [f"{len(results):,} points: {progress.computed:,} computed now, {progress.known:,} known before"]
    for status, (count, reason) in left.items():
        what = "do not fit" if status == INFEASIBLE else "were refused"
        lines.append(f"{count:,} of them {what}; the first: {reason}")
    done = [(axes, row) for axes, row in results if row["status"] == DONE]
    objective = sweep.space.spec.objectives[0]
    for network in dict.fromkeys(axes["network"] for axes, _ in done):
        axes, row = min(
            (d for d in done if d[0]["network"] == network), key=lambda d: value_of(objective, *d)
        )
        at = ", ".join(f"{k} {v}" for k, v in axes.items() if k != "network")
        name = objective.removeprefix("-")
        lines.append(
            f"best {name} of {network}: {number_of(name, axes, row):,.6g} at {at} ({str(row['key'])[:SHORT]})"
        )
    return lines
