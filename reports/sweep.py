"""The page of a sweep: Pareto front, parallel coordinates, sensitivity of each axis, latency against SRAM size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from npusim.reports.markup import embed, fill, number, plot, section, table
from npusim.reports.sweep_figures import (
    label_of,
    parallel_figure,
    pareto_figure,
    sensitivity_figure,
    sram_figure,
    unit_of,
)

#: Rows of the front that the table shows.
SHOWN_ROWS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePoint:
    """A computed point: the start of its key, its place on each axis, its figures, and its report if it was opened."""

    key: str
    axes: Mapping[str, Any]
    figures: Mapping[str, float]
    report: str = ""

    def value(self, name: str) -> float:
        """A figure, or the place on an axis of numbers."""
        return float(self.figures[name] if name in self.figures else self.axes[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPage:
    """All that the page shows.

    Attributes:
        axes: axes with more than one value, and their values in order; `fixed` those with one; `base` the value nearest to the NPU's own.
        objectives: what is to be small (`-` before one: large).
        front: indices of the points that no other point of their network beats.
        left_out: points without figures: status -> how many, and the first reason.
        open_command: what opens a point, but for its key.
        sampled: whether points were proposed by a search.
    """

    name: str
    title: str
    npu: str
    networks: tuple[str, ...]
    axes: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any]
    base: Mapping[str, Any]
    objectives: tuple[str, ...]
    points: tuple[PagePoint, ...]
    front: tuple[int, ...]
    left_out: Mapping[str, tuple[int, str]]
    open_command: str
    sampled: bool


def write_sweep_page(page: SweepPage, path: Path) -> None:
    """Write one HTML file that works offline."""
    figures, sections = _figures(page)
    values = {
        "title": escape(page.title or page.name), "subtitle": _subtitle(page), "sections": "\n".join(sections),
        "data": embed(_data(page, figures)),
    }  # fmt: skip
    path.write_text(fill("plain.html", ("sweep.js",), values, styles=("page.css", "sweep.css")), "utf-8")


def _figures(page: SweepPage) -> tuple[dict[str, Any], list[str]]:
    """Figures by the name of their place, and the sections that hold these places."""
    found: dict[str, Any] = {}
    sections: list[str] = []

    def add(name: str, title: str, figure: Any, note: str) -> None:
        if figure is not None:
            found[f"{name}-plot"] = figure
            sections.append(section(name, title, f"<p>{note}</p>" + plot(f"{name}-plot", title)))

    add("pareto", "Pareto front", pareto_figure(page), _pareto_note(page))
    sections.append(_chosen())
    add("sram", "Latency against SRAM size", *sram_figure(page))
    add("sensitivity", "Sensitivity", *sensitivity_figure(page))
    add("parallel", "Parallel coordinates", parallel_figure(page), _PARALLEL)
    sections.append(section("front", "Points on the front", _front_table(page)))
    return found, sections


_PARALLEL = (
    "One line a point, through its place on each axis and its figures (logarithmic; of several networks, each over the least of its own). "
    "Vermilion: the best sixth of a network in the first objective; orange: the second. A click on a dot chooses its point."
)


def _pareto_note(page: SweepPage) -> str:
    wanted = " and ".join(
        label_of(o.removeprefix("-")) + (" (large)" if o.startswith("-") else "") for o in page.objectives
    )
    return (
        f"Filled: no other point of the same network is at least as good in {escape(wanted)} and better in one of them. "
        "A click on a point chooses it."
    )


def _subtitle(page: SweepPage) -> str:
    axes = " × ".join(f"{len(v)} {escape(n)}" for n, v in page.axes.items())
    fixed = ", ".join(f"{escape(n)} {escape(str(v))}" for n, v in page.fixed.items())
    how = "sampled from" if page.sampled else "points of"
    networks = f"{len(page.networks)} network{'s' * (len(page.networks) > 1)}"
    text = (
        f"{len(page.points):,} {how} {' × '.join(filter(None, (networks, axes)))} around {escape(page.npu)}"
    )
    text += f"; {fixed}" if fixed else ""
    for status, (count, reason) in page.left_out.items():
        what = "do not fit the SRAM" if status == "infeasible" else "were refused"
        text += f". {count:,} points {what} (the first: {escape(reason)})"
    return text + "."


def _chosen() -> str:
    body = (
        '<div class="detail" id="chosen-facts" role="status">Click a point in a figure, or a key in the table.</div>'
        '<div class="tools" id="chosen-tools" hidden><code id="chosen-command"></code> <button id="chosen-copy">Copy</button> '
        '<a id="chosen-report" hidden>Report of this run</a></div>'
    )
    return section("chosen", "The chosen point", body)


def _front_table(page: SweepPage) -> str:
    objectives = [o.removeprefix("-") for o in page.objectives]
    figures = (
        [*objectives, *(n for n in page.points[0].figures if n not in objectives)]
        if page.points
        else objectives
    )
    head = ["network", *page.axes, *(label_of(n) for n in figures if n not in page.axes), "key"]
    chosen = [page.points[i] for i in page.front]
    sign = -1 if page.objectives[0].startswith("-") else 1
    chosen.sort(key=lambda p: (p.axes["network"], sign * p.value(objectives[0])))
    rows = [
        (
            escape(str(p.axes["network"])), *(escape(_shown(n, p.axes[n])) for n in page.axes),
            *(number(p.value(n), unit_of(n).show(p.value(n))) for n in figures if n not in page.axes),
            f'<button class="point" data-key="{escape(p.key)}">{escape(p.key)}</button>',
        )
        for p in chosen[:SHOWN_ROWS]
    ]  # fmt: skip
    more = (
        f"<p>The first {SHOWN_ROWS} of {len(chosen):,}; the store has all.</p>"
        if len(chosen) > SHOWN_ROWS
        else ""
    )
    return more + table(head, rows, label="Points on the front", text=(len(head) - 1,))


def _shown(name: str, value: Any) -> str:
    return unit_of(name).show(float(value)) if isinstance(value, int | float) else str(value)


def _data(page: SweepPage, figures: Mapping[str, Any]) -> dict[str, Any]:
    """What the script needs: figures, and the points as columns."""
    names = list(page.points[0].figures) if page.points else []
    axes = ["network", *page.axes]
    return {
        "figures": figures,
        "command": page.open_command,
        "labels": {n: label_of(n) for n in (*axes, *names)},
        "keys": [p.key for p in page.points],
        "reports": {p.key: p.report for p in page.points if p.report},
        "columns": {n: [p.axes[n] for p in page.points] for n in axes} | {n: [p.figures[n] for p in page.points] for n in names},
        "shown": {n: {str(v): _shown(n, v) for v in values} for n, values in page.axes.items()},
    }  # fmt: skip
