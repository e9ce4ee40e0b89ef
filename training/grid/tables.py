"""Tables and comparisons of what is finished: a function of the judged files alone, so that a resumed grid writes the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.training import checkpoints
from npusim.training.data.world import Combinations
from npusim.training.grid.cells import judged_path, load_correct, step_counts
from npusim.training.grid.plan import CELLS, COMPARISONS, Comparison, Table, tables
from npusim.training.grid.settings import grid_folder
from npusim.training.metrics.measures import NOT_COMPUTED
from npusim.training.metrics.paired import JUDGE, compare_correct, with_interval
from npusim.training.run import Run

GIVEN = {"is": "IS", "fid": "FID", "clip_score": "CLIP score"}
"""Measures that are computed only where their networks are given; a table without any leaves their columns out."""


def _row(run: Run, combinations: Combinations, cell: str, steps: int) -> dict[str, Any] | None:
    """A cell's figures at one step count, with the intervals of its two shares; None while it is not judged."""
    if not judged_path(run, cell).is_file():
        return None
    figures = checkpoints.read_json(judged_path(run, cell))[combinations][str(steps)]
    correct = load_correct(run, combinations, cell, steps)
    return {
        "attributes": with_interval(correct.mean(axis=1)),
        "all right": with_interval(np.asarray(correct.all(axis=1), np.float64)),
        "classifier_is": figures["classifier_is"],
        "classifier_fid": figures["classifier_fid"],
        **{name: figures[name] for name in GIVEN},
    }


def _comparison(run: Run, combinations: Combinations, comparison: Comparison) -> dict[str, Any]:
    """The comparison at each step count; empty while one of its cells is not judged."""
    pair = comparison.ours, comparison.rival
    if not all(judged_path(run, name).is_file() for name in pair):
        return {}
    return {
        str(steps): compare_correct(*(load_correct(run, combinations, name, steps) for name in pair))
        for steps in step_counts(run, CELLS[comparison.ours].kind)
    }


def tabulate(run: Run) -> dict[str, Any]:
    """All tables and comparisons, for each set of combinations that the world tests; null where nothing is judged yet."""
    sampling = run.preset.sampling
    layout = tables(sampling.teacher_steps, sampling.student_steps)
    return {
        name: {
            "tables": {
                t.name: [
                    {
                        "row": r.label,
                        "cell": r.cell,
                        "steps": r.steps,
                        "figures": _row(run, name, r.cell, r.steps),
                    }
                    for r in t.rows
                ]
                for t in layout
            },
            "comparisons": [
                {
                    "claim": c.claim,
                    "ours": c.ours,
                    "rival": c.rival,
                    "paper": c.paper,
                    "by steps": _comparison(run, name, c),
                }
                for c in COMPARISONS
            ],
        }
        for name in run.world().tested
    }


def write_tables(run: Run) -> dict[str, Any]:
    """Write OUT/grid/tables.json and tables.md. Returns what the first holds."""
    found = tabulate(run)
    checkpoints.write_json(grid_folder(run) / "tables.json", found)
    sampling = run.preset.sampling
    parts = [
        markdown(name, sets, tables(sampling.teacher_steps, sampling.student_steps))
        for name, sets in found.items()
    ]
    checkpoints.write_text(grid_folder(run) / "tables.md", "\n".join(parts))
    return found


def markdown(combinations: str, found: dict[str, Any], layout: tuple[Table, ...]) -> str:
    """The tables of one set of combinations as Markdown."""
    lines = [f"## Judged on {combinations} combinations", ""]
    for table in layout:
        lines += [f"### {table.title}", "", *_table_lines(found["tables"][table.name]), ""]
    if not any(_given(found["tables"][table.name]) for table in layout):
        lines += [f"IS, FID and CLIP score: {NOT_COMPUTED} (give --inception, --clip).", ""]
    lines += ["### Comparisons", ""]
    lines += [
        "| claim | steps | attributes, points | all right, points | automatic judge: ours / tie / rival | the paper |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for entry in found["comparisons"]:
        lines += _comparison_lines(entry)
    return "\n".join([*lines, ""])


def _given(entries: list[dict[str, Any]]) -> dict[str, str]:
    """The measures on the user's networks that were computed for any of these rows: name and title."""
    figures = [entry["figures"] for entry in entries if entry["figures"] is not None]
    return {name: title for name, title in GIVEN.items() if any(row[name] != NOT_COMPUTED for row in figures)}


def _table_lines(entries: list[dict[str, Any]]) -> list[str]:
    given = _given(entries)
    titles = ["attributes", "all right", "classifier IS", "classifier FID", *given.values()]
    head = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    return head + [_line(entry, tuple(given)) for entry in entries]


def _line(entry: dict[str, Any], given: tuple[str, ...]) -> str:
    figures = entry["figures"]
    if figures is None:
        return f"| {entry['row']} | {NOT_COMPUTED} |" + " |" * (3 + len(given))
    shares = [_percent(figures[key]) for key in ("attributes", "all right")]
    others = [str(figures[key]) for key in ("classifier_is", "classifier_fid", *given)]
    return "| " + " | ".join([entry["row"], *shares, *others]) + " |"


def _comparison_lines(entry: dict[str, Any]) -> list[str]:
    claim = f"{entry['claim']}: {entry['ours']} - {entry['rival']}"
    if not entry["by steps"]:
        return [f"| {claim} | | {NOT_COMPUTED} | | | {entry['paper']} |"]
    return [
        f"| {claim} | {steps} | {_points(found['attributes'])} | {_points(found['all right'])} | "
        + " / ".join(f"{100 * found[JUDGE][side]:.0f}" for side in ("ours", "tie", "rival"))
        + f" % | {entry['paper']} |"
        for steps, found in entry["by steps"].items()
    ]


def _percent(values: list[float]) -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:.1f} % ({low:.1f} to {high:.1f})"


def _points(values: list[float]) -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
