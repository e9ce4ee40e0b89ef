"""The tile-count curve of a segment: latency and DRAM bytes over the number of tiles, the chosen point, the paper's rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from npusim.reports.theme import ACCENT, CATEGORIES, LIMIT, Figure, layout

MARKS = (
    ("chosen", "chosen", "star", LIMIT),
    ("paper_rule", "the paper's rule", "diamond-open", CATEGORIES["product with weights"]),
)


def tile_curve(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Plotly figure of one segment's curve (points of `summary.json`, `segments[i].tile_curve`)."""
    ordered = sorted(points, key=lambda p: int(p["tile_count"]))
    count = [int(p["tile_count"]) for p in ordered]
    latency = [float(p["latency_ms"]) for p in ordered]
    data = [_curve(ordered, count, latency), *_dram(ordered, count)]
    for key, name, symbol, colour in MARKS:
        marked = [i for i, p in enumerate(ordered) if p.get(key)]
        if marked:
            data.append({
                "type": "scatter", "mode": "markers", "name": name, "hoverinfo": "skip",
                "x": [count[i] for i in marked], "y": [latency[i] for i in marked],
                "marker": {"symbol": symbol, "size": 13, "color": colour, "line": {"width": 2, "color": colour}},
            })  # fmt: skip
    figure_layout = layout(x="tiles", y="latency (ms)", height=340)
    figure_layout["xaxis"] |= {"type": "log", "tickvals": count, "ticktext": [str(c) for c in count]}
    figure_layout["yaxis"] |= {"rangemode": "tozero"}
    figure_layout["yaxis2"] = {
        "title": {"text": "DRAM (MB)"}, "overlaying": "y", "side": "right", "rangemode": "tozero", "showgrid": False,
        "automargin": True, "tickmode": "auto",
    }  # fmt: skip
    figure_layout["margin"] = {"l": 60, "r": 60, "t": 12, "b": 48}
    return {"data": data, "layout": figure_layout}


def _curve(ordered: Sequence[Mapping[str, Any]], count: list[int], latency: list[float]) -> Figure:
    texts = [
        f"SRAM peak {float(p.get('peak_sram_bytes') or 0) / 2**20:.3f} MiB, "
        f"hand-over {float(p.get('handover_ms') or 0):.4f} ms"
        for p in ordered
    ]
    return {
        "type": "scatter", "mode": "lines+markers", "name": "latency", "x": count, "y": latency, "text": texts,
        "line": {"color": ACCENT, "width": 2},
        "hovertemplate": "%{x} tiles: %{y:.4f} ms<br>%{text}<extra></extra>",
    }  # fmt: skip


def _dram(ordered: Sequence[Mapping[str, Any]], count: list[int]) -> list[Figure]:
    if not ordered or "dram_bytes" not in ordered[0]:
        return []
    megabytes = [int(p["dram_bytes"]) / 1e6 for p in ordered]
    return [{
        "type": "scatter", "mode": "lines+markers", "name": "DRAM bytes", "x": count, "y": megabytes, "yaxis": "y2",
        "line": {"color": CATEGORIES["attention product"], "width": 2, "dash": "dot"},
        "hovertemplate": "%{x} tiles: %{y:.3f} MB<extra></extra>",
    }]  # fmt: skip


def curves(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name and figure of each segment that has a curve; segments with the same curve share an entry."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for segment in summary["segments"]:
        if segment.get("tile_curve"):
            groups.setdefault(repr(segment["tile_curve"]), []).append(segment)
    return [
        {
            "name": group[0]["name"] + (f" and {len(group) - 1} more like it" if len(group) > 1 else ""),
            "figure": tile_curve(group[0]["tile_curve"]),
        }
        for group in groups.values()
    ]
