"""The page of a precision search: the front, each point, and which layer loses what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from npusim.reports.markup import embed, fill, number, path_name, plot, section, table
from npusim.reports.theme import ACCENT, LIMIT, Figure, layout, plain
from npusim.units import format_bytes

#: Layers that the page lists.
SHOWN_LAYERS = 40
_FRONT, _UNIFORM = "#009E73", "#8A8A8A"
#: Figure's place -> (key, title of the axis, factor).
_COSTS = {
    "latency-plot": ("latency_ms", "latency (ms)", 1.0),
    "dram-plot": ("dram_bytes", "DRAM traffic (MB)", 1e-6),
    "energy-plot": ("energy_mj", "energy (mJ)", 1.0),
}


def write_precision_page(result: Mapping[str, Any], path: Path) -> None:
    """Write one HTML file that works offline; `result` is `search.json`."""
    figures = {place: front_figure(result["points"], *cost) for place, cost in _COSTS.items()}
    sections = [
        section("front", "Error against latency", f"<p>{_front_note(result)}</p>" + plot("latency-plot", "Error against latency")),
        section("points", "Points", "<p>Save a point as a run directory with <code>npusim search MODEL --save N</code>, or plan it with "
                "<code>npusim profile MODEL --precision points/N.json</code>.</p>" + _points(result["points"])),
        section("which", "Which layer", f"<p>{_layers_note(result)}</p>" + _layers(result)),
        section("dram", "Error against DRAM traffic", plot("dram-plot", "Error against DRAM traffic")),
        section("energy", "Error against energy", plot("energy-plot", "Error against energy")),
    ]  # fmt: skip
    values = {
        "title": escape(f"Precision of {result['model']}"), "subtitle": _subtitle(result), "sections": "\n".join(sections),
        "data": embed(figures),
    }  # fmt: skip
    path.write_text(fill("plain.html", ("figures.js",), values), "utf-8")


def front_figure(points: Sequence[Mapping[str, Any]], key: str, title: str, factor: float) -> Figure:
    """Plotly figure: SQNR of every point over one cost; the front, the uniform precisions by name, the paper's choice."""
    drawn = layout(x=title, y="SQNR of the output (dB)", height=440)
    mixed = [p for p in points if p["name"] == "mixed"]
    uniform = [p for p in points if p["name"] != "mixed" and not p["paper"]]
    paper = [p for p in points if p["paper"]]
    traces = [
        _dots(mixed, key, factor, "a precision for every layer", {"size": 9, "color": _FRONT}),
        _dots(
            uniform,
            key,
            factor,
            "one precision",
            {"size": 11, "color": ACCENT, "symbol": "diamond-open"},
            named=True,
        ),
        _dots(
            paper,
            key,
            factor,
            "the paper's choice",
            {"size": 14, "color": LIMIT, "symbol": "star"},
            named=True,
        ),
    ]
    return {"data": [t for t in traces if t["x"]], "layout": drawn}


def _dots(
    points: Sequence[Mapping[str, Any]], key: str, factor: float, name: str, marker: Mapping[str, Any], *, named: bool = False
) -> dict[str, Any]:  # fmt: skip
    shown = [p for p in points if _sqnr(p) is not None]
    return {
        "type": "scatter", "mode": "markers+text" if named else "markers", "name": name, "marker": dict(marker),
        "x": [p[key] * factor for p in shown], "y": [_sqnr(p) for p in shown],
        "text": [plain(p["name"]) if named else _mixture(p) for p in shown], "textposition": "top center",
        "customdata": [f"{p['number']}" for p in shown], "cliponaxis": False,
        "hovertemplate": "point %{customdata}: %{text}<br>%{x:,.4g}<br>%{y:.1f} dB<extra></extra>",
    }  # fmt: skip


def _sqnr(point: Mapping[str, Any]) -> float | None:
    """Measured where the point was executed, else predicted."""
    found: float | None = point.get("measured_sqnr_db", point["predicted_sqnr_db"])
    return found


def _mixture(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{n} {plain(o)}" for o, n in point["precisions"].items())


def _subtitle(result: Mapping[str, Any]) -> str:
    return (
        f"on {escape(result['npu'])}, {escape(result['policy'])}, tiles {escape(result['tiles'])}; each layer in one of "
        f"{escape(', '.join(result['options']))}; error on {escape(result['inputs'])}; {result['simulated']} networks simulated."
    )


def _front_note(result: Mapping[str, Any]) -> str:
    count, close = result["proposed"], result["within_2_percent"]
    executed = "as executed" if "measured_sqnr_db" in result["points"][0] else "as predicted"
    return (
        f"Every point is a simulated network; its error is {executed}. Up and left is better. Of {count} points with several precisions, "
        f"{close} were simulated within 2 % of the latency that was predicted for them."
    )


def _points(points: Sequence[Mapping[str, Any]]) -> str:
    executed = "measured_sqnr_db" in points[0]
    conditioned = "conditioning_sqnr_db" in points[0]
    head = ["point", "layers", "SQNR predicted"]
    head += ["executed"] if executed else []
    head += ["of conditioning"] if conditioned else []
    head += ["latency", "predicted", "DRAM", "energy"]
    rows = []
    for p in points:
        mark = " (the paper's)" if p["paper"] else ""
        beaten = "" if p["on_front"] else '<br><span class="quiet">not on the front</span>'
        row = [
            f"{p['number']}: {escape(p['name'])}{mark}{beaten}",
            escape(_mixture(p)),
            _db(p["predicted_sqnr_db"]),
        ]
        row += [_db(p["measured_sqnr_db"])] if executed else []
        row += [_db(p["conditioning_sqnr_db"])] if conditioned else []
        row += [
            number(p["latency_ms"], f"{p['latency_ms']:,.3f} ms"),
            number(p["predicted_latency_ms"], f"{p['predicted_latency_ms']:,.3f} ms"),
        ]
        row += [
            number(p["dram_bytes"], format_bytes(p["dram_bytes"])),
            number(p["energy_mj"], f"{p['energy_mj']:,.4g} mJ"),
        ]
        rows.append(row)
    note = (
        "<p>SQNR of conditioning: of the output with the text minus the output without it, quantized against FP32.</p>"
        if conditioned
        else ""
    )
    return note + table(head, rows, label="Points", numbers=2)


def _db(value: float | None) -> str:
    return "exact" if value is None else number(value, f"{value:.1f} dB")


def _plain_db(value: float | None) -> str:
    return "exact" if value is None else number(value, f"{value:.1f}")


def _layers_note(result: Mapping[str, Any]) -> str:
    shown, total = min(SHOWN_LAYERS, len(result["layers"])), len(result["layers"])
    return (
        f"SQNR of the output when this layer alone has a precision, its inputs rounded to it, and the time it takes in a network of that "
        f"precision. The {shown} of {total} layers that lose most; search.json has all."
    )


def _layers(result: Mapping[str, Any]) -> str:
    options = result["options"]
    head = ["layer", "operator", *(f"{o} (dB)" for o in options), *(f"{o} (ms)" for o in options)]
    rows = (
        [
            path_name(x["name"]), escape(x["op"]), *(_plain_db(x["sqnr_db"][o]) for o in options),
            *(number(x["time_ms"][o], f"{x['time_ms'][o]:.3f}") for o in options),
        ]
        for x in result["layers"][:SHOWN_LAYERS]
    )  # fmt: skip
    return table(head, rows, label="Layers by what they lose", numbers=2)
