"""The roofline (Williams et al., 2009): what each layer reaches against what DRAM and multipliers allow it."""

from __future__ import annotations

import numpy as np

from npusim.dtypes import PAIRS, PRECISIONS
from npusim.reports.layers import LayerFigures, peak_macs_per_s
from npusim.reports.source import Profiled
from npusim.reports.theme import ACCENT, CATEGORIES, LIMIT, Figure, layout, plain
from npusim.units import PS_PER_S


def roofline(profile: Profiled, figures: LayerFigures) -> Figure:
    """Plotly figure: MACs per second over MACs per DRAM byte, one dot per layer that multiplies.

    A layer that moves no DRAM byte has no intensity: it stands at the right edge, as a triangle.
    """
    chosen = np.flatnonzero(figures.macs > 0)
    moved = figures.dram_bytes[chosen]
    intensity = figures.macs[chosen] / np.maximum(1, moved)
    edge = 4 * max(1.0, float(intensity[moved > 0].max(initial=1.0)))
    intensity = np.where(moved > 0, intensity, edge)
    reached = figures.macs[chosen] * float(PS_PER_S) / np.maximum(1, figures.busy_ps[chosen])
    names = [profile.program.layers[i] for i in chosen.tolist()]
    size = 6 + 22 * np.sqrt(figures.critical_ps[chosen] / max(1, int(figures.critical_ps.max(initial=1))))
    low = max(0.1, float(intensity.min(initial=1.0)) / 2)
    dots = {
        "type": "scatter", "mode": "markers", "name": "layer (area: share of the latency)",
        "x": intensity.tolist(), "y": (reached / 1e12).tolist(), "text": [plain(n) for n in names],
        "marker": {
            "size": size.tolist(), "color": CATEGORIES["product with weights"], "opacity": 0.65,
            "symbol": np.where(moved > 0, "circle", "triangle-right").tolist(), "line": {"width": 1, "color": "#444"},
        },
        "hovertemplate": "%{text}<br>%{x:.3s} MAC per DRAM byte<br>%{y:.3f} TMAC/s<extra></extra>",
    }  # fmt: skip
    lines = _roofs(profile, low, edge)
    figure_layout = layout(x="multiply-accumulates per DRAM byte", y="TMAC/s", height=440)
    figure_layout["xaxis"] |= {"type": "log"}
    figure_layout["yaxis"] |= {"type": "log"}
    return {"data": [dots, *lines], "layout": figure_layout}


def _roofs(profile: Profiled, low: float, edge: float) -> list[Figure]:
    """The roof of each operand pair that the precision uses, under the common DRAM slope."""
    bandwidth = profile.plan.npu.dram.dram_shared_bytes_per_s
    lines: list[Figure] = []
    styles = iter(("solid", "dash", "dot", "dashdot"))
    for pair in _pairs(profile):
        peak = peak_macs_per_s(profile, pair)
        if peak <= 0:
            continue
        knee = peak / bandwidth
        lines.append({
            "type": "scatter", "mode": "lines", "name": f"limit, {pair.replace('x', ' × ')}",
            "x": [low, knee, edge * 2], "y": [low * bandwidth / 1e12, peak / 1e12, peak / 1e12],
            "line": {"color": LIMIT if not lines else ACCENT, "width": 2, "dash": next(styles, "dot")},
            "hoverinfo": "skip",
        })  # fmt: skip
    return lines


def _pairs(profile: Profiled) -> list[str]:
    used = set(profile.program.commands.pair.tolist())
    pairs = [name for i, name in enumerate(PAIRS) if i in used]
    precision = PRECISIONS.get(profile.plan.options.precision)
    return pairs or ([precision.weight_pair] if precision else [])
