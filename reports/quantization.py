"""Per-layer quantization error on the page: what `npusim run --verify` measured on real weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from npusim.reports.markup import number, path_name, plot, section, table
from npusim.reports.theme import ACCENT, LIMIT, Figure, layout, plain

#: A layer's verification, as `verify.json` holds it: name, op, sqnr_db (None: equal to FP32), cosine, max_error, own_noise_db.
Layer = Mapping[str, Any]
WORST = 12


def noise_added(layer: Layer) -> float:
    """By how much the noise, as a share of the signal's power, is larger after a layer than before it; 0 where it is not."""
    if layer["sqnr_db"] is None or layer["own_noise_db"] is None:
        return 0.0
    after, before = float(layer["sqnr_db"]), float(layer["sqnr_db"]) + float(layer["own_noise_db"])
    return max(0.0, 10 ** (-after / 10) - 10 ** (-before / 10))


def error_figure(layers: Sequence[Layer]) -> Figure:
    """Plotly figure: the noise that each layer adds, in execution order, and the SQNR after it."""
    names = [plain(str(x["name"])) for x in layers]
    order = list(range(1, len(layers) + 1))
    figure_layout = layout(x="layer, in execution order", y="noise added (% of signal power)", height=380)
    figure_layout["yaxis"] |= {"rangemode": "tozero", "exponentformat": "none"}
    figure_layout["yaxis2"] = {
        "title": {"text": "SQNR (dB)"}, "overlaying": "y", "side": "right", "showgrid": False, "automargin": True,
        "tickmode": "auto",
    }  # fmt: skip
    figure_layout["margin"] = {"l": 60, "r": 60, "t": 12, "b": 48}
    bars = {
        "type": "bar", "name": "noise added by the layer", "x": order, "y": [100 * noise_added(x) for x in layers],
        "text": names, "textposition": "none", "marker": {"color": LIMIT},
        "hovertemplate": "%{text}<br>adds %{y:.3g} %<extra></extra>",
    }  # fmt: skip
    line = {
        "type": "scatter", "mode": "lines+markers", "name": "SQNR after it", "x": order, "y": [x["sqnr_db"] for x in layers],
        "text": names, "yaxis": "y2", "line": {"color": ACCENT, "width": 1.5}, "marker": {"size": 4, "color": ACCENT},
        "hovertemplate": "%{text}<br>SQNR %{y:.1f} dB<extra></extra>",
    }  # fmt: skip
    return {"data": [bars, line], "layout": figure_layout}


def quantization_section(verified: Mapping[str, Any] | None) -> str:
    """Outputs against onnxruntime, and where the error comes from; empty until the run has been verified."""
    if not verified:
        return ""
    outputs = [
        (
            path_name(name), _db(x["sqnr_db"]), f"{x['cosine']:.6f}", number(x["max_error"], f"{x['max_error']:.3g}"),
            f"{100 * x['relative_error']:.2g} %",
        )
        for name, x in verified["outputs"].items()
    ]  # fmt: skip
    worst = sorted((x for x in verified["layers"] if noise_added(x)), key=lambda x: -noise_added(x))[:WORST]
    rows = [
        (
            path_name(x["name"]),
            escape(x["op"]),
            number(noise_added(x), f"{100 * noise_added(x):.3g} %"),
            _db(x["sqnr_db"]),
            f"{x['cosine']:.6f}",
            number(x["max_error"], f"{x['max_error']:.3g}"),
        )
        for x in worst
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in verified["notes"])
    head = ("output against onnxruntime", "SQNR", "cosine", "largest error", "of its largest value")
    body = (
        "<p>The simulated commands, executed on the model's weights, against FP32: signal to quantization noise (SQNR) after "
        "each layer, with all error gathered so far; and by how much the noise, as a share of the signal's power, is larger after a "
        "layer than before it.</p>"
        + table(head, outputs, label="outputs against FP32")
        + plot("quantization-plot", "SQNR after each layer, and the noise that it adds")
    )  # fmt: skip
    if rows:
        columns = (
            "layers that lose most",
            "operator",
            "noise added",
            "SQNR after",
            "cosine",
            "largest error",
        )
        body += table(columns, rows, label="layers that lose most", numbers=2)
    return section(
        "quantization",
        "Quantization error",
        body + (f'<ul class="hints quiet">{notes}</ul>' if notes else ""),
    )


def _db(value: float | None) -> str:
    return "exact" if value is None else number(value, f"{value:.1f} dB")


def sqnr_column(verified: Mapping[str, Any] | None, names: Sequence[str]) -> list[float | None] | None:
    """SQNR of each layer for the layer table, or nothing where the run has not been verified."""
    if not verified:
        return None
    known = {x["name"]: x["sqnr_db"] for x in verified["layers"]}
    return [known.get(name) for name in names]
