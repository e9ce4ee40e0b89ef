"""`search.json`: points of a search, the layers ranked, what was predicted and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from npusim.files import write_aside
from npusim.graph import Graph
from npusim.precision_search.answer import Measured, executed, point_figures, within_prediction
from npusim.precision_search.search import Search
from npusim.precisions import precisions_json
from npusim.progress import track
from npusim.reports.precision import write_precision_page
from npusim.run_directory import dump_json
from npusim.sensitivity.errors import Sensitivity, ranked, sqnr_db

SCHEMA = 1
RESULT, PAGE, POINTS = "search.json", "search.html", "points"
#: What the paper deploys its U-Net in.
PAPER = "w8a16"


def search_result(measured: Measured, search: Search, *, quiet: bool = True) -> dict[str, Any]:
    """Everything that a search found. Points are numbered by error, the least first; those of small networks are executed too."""
    front = search.front()
    uniform = [p for p in search.points.values() if p.name]
    shown = sorted({p.picks: p for p in (*front, *uniform)}.values(), key=lambda p: (*p.values, p.picks))
    on_front = {p.picks for p in front}
    points = []
    for number, point in enumerate(track(shown, "executing points", total=len(shown), quiet=quiet)):
        figures = point_figures(search, point)
        extra = executed(measured, figures["layers"]) if measured.is_small else {}
        points.append(
            {
                "number": number,
                "on_front": point.picks in on_front,
                "paper": point.name == PAPER,
                **figures,
                **extra,
            }
        )
    planner, proposed = search.planner, [p for p in points if p["name"] == "mixed"]
    return {
        "schema_version": SCHEMA, "model": measured.graph.name, "npu": planner.npu.name, "policy": planner.policy,
        "tiles": planner.tiles, "segments_kinds": planner.segments, "inputs": measured.note, "options": list(search.choices.options),
        "simulated": len(search.points),
        "within_2_percent": sum(map(within_prediction, proposed)), "proposed": len(proposed),
        "points": points, "layers": layer_table(measured.graph, measured.errors, search),
    }  # fmt: skip


def layer_table(graph: Graph, errors: Sensitivity, search: Search) -> list[dict[str, Any]]:
    """What each layer loses alone in each option (share of the output's power), and its time there; the most sensitive first."""
    coarsest = errors.options[0]
    shares = {o: dict(ranked(errors, o)) for o in errors.options}
    by_name = {x.name: x for x in graph.layers}
    times = search.layer_times_ms()
    return [
        {
            "name": name, "op": by_name[name].op,
            "sqnr_db": {o: _finite(sqnr_db(shares[o][name])) for o in errors.options},
            "share_of_noise": {o: shares[o][name] for o in errors.options},
            "time_ms": dict(times[name]),
        }
        for name, _ in ranked(errors, coarsest)
    ]  # fmt: skip


def _finite(value: float) -> float | None:
    return value if value not in (float("inf"), float("-inf")) else None


def write_search(result: Mapping[str, Any], folder: Path) -> None:
    """Write `search.json`, `search.html` and each point's assignment (`points/N.json`, for `npusim profile --precision`)."""
    slim = {**result, "points": [{k: v for k, v in p.items() if k != "layers"} for p in result["points"]]}
    write_aside(folder / RESULT, lambda path: path.write_text(dump_json(_finite_json(slim)), "utf-8"))
    write_aside(folder / PAGE, lambda path: write_precision_page(slim, path))
    for point in result["points"]:
        text = precisions_json(point["layers"])
        write_aside(folder / POINTS / f"{point['number']}.json", partial(_write, text=text))


def _write(path: Path, *, text: str) -> None:
    path.write_text(text, "utf-8")


def _finite_json(value: Any) -> Any:
    """The same data with null for what is infinite."""
    if isinstance(value, dict):
        return {k: _finite_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite_json(v) for v in value]
    return _finite(value) if isinstance(value, float) else value
