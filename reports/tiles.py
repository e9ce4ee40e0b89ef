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
    moved = _dram(ordered, count)
    data = [_curve(ordered, count, latency), *moved]
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
    if moved:
        figure_layout["yaxis2"] = {
            "title": {"text": "DRAM (MB)"}, "overlaying": "y", "side": "right", "rangemode": "tozero", "showgrid": False,
            "automargin": True, "tickmode": "auto",
        }  # fmt: skip
    figure_layout["margin"] = {"l": 60, "r": 60 if moved else 12, "t": 12, "b": 48}
    return {"data": data, "layout": figure_layout}


def _curve(ordered: Sequence[Mapping[str, Any]], count: list[int], latency: list[float]) -> Figure:
    texts = [
        f"SRAM peak {float(p['peak_sram_bytes']) / 2**20:.3f} MiB, hand-over {float(p['handover_ms']):.4f} ms"
        if "peak_sram_bytes" in p and "handover_ms" in p
        else "simulated on its own"
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
    """Name and figure of each segment that has a curve, the heaviest first; segments with the same curve share an entry."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for segment in summary["segments"]:
        points = curve_points(segment)
        if len(points) > 1:
            groups.setdefault(repr(points), []).append(segment)
    heaviest = sorted(groups.values(), key=lambda group: -sum(float(s["latency_ms"]) for s in group))
    return [
        {
            "name": group[0]["name"] + (f" and {len(group) - 1} more like it" if len(group) > 1 else ""),
            "figure": tile_curve(curve_points(group[0])),
        }
        for group in heaviest
    ]


def curve_points(segment: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What the search simulated of a segment; where that is one point, what `--why` simulated of it on its own."""
    searched: Sequence[Mapping[str, Any]] = segment.get("tile_curve") or ()
    why = segment.get("why")
    if len(searched) > 1 or not why:
        return searched
    chosen = {"tile_count": segment["tile_count"], "latency_ms": why["alone_ms"], "chosen": True}
    return [chosen, *(p for p in why["next_best"] if p["latency_ms"] is not None)]
