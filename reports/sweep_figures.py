"""Figures of a sweep: pure functions of its points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, log2
from statistics import fmean
from typing import TYPE_CHECKING, Any

from npusim.reports.theme import Figure, layout, plain
from npusim.units import MIB, format_bytes

if TYPE_CHECKING:
    from npusim.reports.sweep import PagePoint, SweepPage

SRAM, LATENCY = "sram.sram_bytes", "latency_ms"
#: Networks in order (Okabe and Ito, 2008), then again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B5EA7", "#8A8A8A")
#: Colours of the lines of parallel coordinates, from the best to the worst; seen on light and on dark ground.
SHADES = ("#D55E00", "#E69F00", "#7d93a6", "#8d9daa", "#9aa5ae", "#a6adb3")
_LABELS = {
    LATENCY: "latency (ms)", "serial_latency_ms": "serial latency (ms)", "decoupled_latency_ms": "decoupled latency (ms)",
    "energy_mj": "energy (mJ)", "dram_bytes": "DRAM traffic (MB)", "dram_read_bytes": "DRAM read (MB)",
    "dram_write_bytes": "DRAM written (MB)", "spill_bytes": "spilled (MB)", "peak_sram_bytes": "SRAM peak (MiB)",
    "handover_ms": "hand-over (ms)", "lower_bound_ms": "lower bound (ms)", SRAM: "SRAM (MiB)",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unit:
    """How a number is scaled for an axis, and shown."""

    scale: float
    show: Callable[[float], str]


def unit_of(name: str) -> Unit:
    """SRAM sizes in MiB, DRAM traffic in MB, rates in GB/s, all else as it is."""
    if name in (SRAM, "peak_sram_bytes"):
        return Unit(1 / MIB, lambda v: f"{v / MIB:.4g} MiB")
    if name.endswith("bytes_per_s") or name == "bandwidth":
        return Unit(1e-9, lambda v: f"{v / 1e9:.4g} GB/s")
    if name.endswith("_bytes"):
        return Unit(1e-6, lambda v: format_bytes(int(v)))
    return Unit(1, lambda v: f"{v:,.5g}")


def label_of(name: str) -> str:
    """A figure or axis as readers know it."""
    return _LABELS.get(name, f"{name} (GB/s)" if unit_of(name).scale == 1e-9 else name)


def colour_of(page: SweepPage, network: str) -> str:
    """The colour of a network on this page."""
    return COLOURS[page.networks.index(network) % len(COLOURS)]


def _describe(page: SweepPage, point: PagePoint) -> str:
    places = [f"{plain(n)}: {plain(_shown(n, point.axes[n]))}" for n in page.axes]
    return "<br>".join([plain(str(point.axes["network"])), *places])


def _shown(name: str, value: Any) -> str:
    return unit_of(name).show(float(value)) if isinstance(value, int | float) else str(value)


def pareto_figure(page: SweepPage) -> Figure | None:
    """Points in the plane of the first two objectives, by network; those on the front filled, and joined by steps if there are just two."""
    names = [o.removeprefix("-") for o in page.objectives]
    x, y = (names[1], names[0]) if len(names) > 1 else (_other(page, names[0]), names[0])
    if not page.points:
        return None
    drawn = layout(x=label_of(x), y=label_of(y), height=520)
    for key, name in (("xaxis", x), ("yaxis", y)):
        if min(p.value(name) for p in page.points) > 0:
            drawn[key] |= {"type": "log"}
    on_front = set(page.front)
    traces = []
    for network in page.networks:
        mine = [i for i, p in enumerate(page.points) if p.axes["network"] == network]
        kept = sorted((i for i in mine if i in on_front), key=lambda i: page.points[i].value(x))
        rest = [i for i in mine if i not in on_front]
        colour = colour_of(page, network)
        traces.append(
            _dots(
                page,
                rest,
                x,
                y,
                {"size": 6, "color": colour, "opacity": 0.35, "symbol": "circle-open"},
                network,
                show=False,
            )
        )
        front = _dots(page, kept, x, y, {"size": 9, "color": colour}, network, show=True)
        if len(names) == 2:
            rising = page.objectives[0].startswith("-") != page.objectives[1].startswith("-")
            front |= {
                "mode": "lines+markers",
                "line": {"color": colour, "width": 1, "shape": "vh" if rising else "hv"},
            }
        traces.append(front)
    return {"data": traces, "layout": drawn}


def _other(page: SweepPage, objective: str) -> str:
    return next(n for n in (LATENCY, "energy_mj") if n != objective)


def _dots(
    page: SweepPage,
    indices: Sequence[int],
    x: str,
    y: str,
    marker: Mapping[str, Any],
    network: str,
    *,
    show: bool,
) -> Figure:
    points = [page.points[i] for i in indices]
    return {
        "type": "scatter", "mode": "markers", "name": plain(network), "legendgroup": network, "showlegend": show,
        "x": [p.value(x) * unit_of(x).scale for p in points], "y": [p.value(y) * unit_of(y).scale for p in points],
        "customdata": [p.key for p in points], "marker": dict(marker), "text": [_describe(page, p) for p in points],
        "hovertemplate": f"%{{text}}<br>{label_of(x)}: %{{x:.5g}}<br>{label_of(y)}: %{{y:.5g}}<extra>%{{customdata}}</extra>",
    }  # fmt: skip


# ---- latency against SRAM -----------------------------------------------------------------------------------------------


def at_base(page: SweepPage, network: str, free: str) -> list[PagePoint]:
    """Points of a network where every axis but one has the value nearest to the NPU's own, by that axis."""
    found = [
        p
        for p in page.points
        if p.axes["network"] == network and all(p.axes[n] == page.base[n] for n in page.axes if n != free)
    ]
    return sorted(found, key=lambda p: p.value(free))


def knee(sizes: Sequence[float], values: Sequence[float]) -> int | None:
    """Index of the knee of a falling curve: the point farthest below the chord from its first to its last point.

    Sizes count in doublings. Both axes run from 0 to 1. None with fewer than three points, or where nothing lies a tenth below.

    Source: Satopaa et al., Finding a "Kneedle" in a Haystack (2011), without its smoothing.
    """
    if len(sizes) < 3 or max(values) <= min(values):
        return None
    first, last = log2(sizes[0]), log2(sizes[-1])
    low, high = min(values), max(values)
    begin, end = (values[0] - low) / (high - low), (values[-1] - low) / (high - low)
    below = []
    for size, value in zip(sizes, values, strict=True):
        along = (log2(size) - first) / (last - first)
        below.append(begin + (end - begin) * along - (value - low) / (high - low))
    best = max(range(len(below)), key=lambda i: below[i])
    return best if below[best] > 0.1 else None


def sram_figure(page: SweepPage) -> tuple[Figure | None, str]:
    """Latency over SRAM size, one line per network relative to its slowest point, the knee marked; and what is to be known of it."""
    if SRAM not in page.axes:
        return None, ""
    traces: list[Figure] = []
    told = []
    for network in page.networks:
        line = at_base(page, network, SRAM)
        if len(line) < 2:
            continue
        sizes, values = [p.value(SRAM) for p in line], [p.value(LATENCY) for p in line]
        traces.append(_sram_line(page, network, line))
        at = knee(sizes, values)
        if at is not None:
            traces.append(_knee_mark(page, network, line[at], max(values)))
            told.append(f"{network} {_shown(SRAM, sizes[at])} ({values[at]:,.4g} ms)")
    if not traces:
        return None, ""
    drawn = layout(x=label_of(SRAM), y="latency, share of the slowest", height=420)
    drawn["xaxis"] |= {"type": "log", "tickvals": [v * unit_of(SRAM).scale for v in page.axes[SRAM]]}
    drawn["xaxis"]["ticktext"] = [f"{v * unit_of(SRAM).scale:.3g}" for v in page.axes[SRAM]]
    drawn["yaxis"] |= {"rangemode": "tozero", "tickformat": ".0%"}
    others = ", ".join(f"{n} {_shown(n, page.base[n])}" for n in page.axes if n != SRAM)
    note = f"At {others}. " if others else ""
    note += (
        f"Knees: {'; '.join(told)}." if told else "No curve has a knee: none bends by a tenth of its height."
    )
    return {"data": traces, "layout": drawn}, plain(note)


def _sram_line(page: SweepPage, network: str, line: Sequence[PagePoint]) -> Figure:
    values = [p.value(LATENCY) for p in line]
    return {
        "type": "scatter", "mode": "lines+markers", "name": plain(network), "x": [p.value(SRAM) / MIB for p in line],
        "y": [v / max(values) for v in values], "customdata": [p.key for p in line], "text": [f"{v:,.4g} ms" for v in values],
        "line": {"color": colour_of(page, network)}, "marker": {"size": 7},
        "hovertemplate": plain(network) + "<br>%{x:.3g} MiB: %{text}<extra>%{customdata}</extra>",
    }  # fmt: skip


def _knee_mark(page: SweepPage, network: str, point: PagePoint, highest: float) -> Figure:
    return {
        "type": "scatter", "mode": "markers", "name": "knee", "showlegend": False, "x": [point.value(SRAM) / MIB],
        "y": [point.value(LATENCY) / highest], "customdata": [point.key], "text": [f"{point.value(LATENCY):,.4g} ms"],
        "marker": {"size": 17, "symbol": "circle-open", "color": colour_of(page, network), "line": {"width": 3}},
        "hovertemplate": f"knee of {plain(network)}<br>%{{x:.3g}} MiB: %{{text}}<extra>%{{customdata}}</extra>",
    }  # fmt: skip


# ---- sensitivity --------------------------------------------------------------------------------------------------------


def main_effect(page: SweepPage, network: str, axis: str, figure: str) -> dict[Any, float]:
    """Geometric mean of a figure at each value of an axis, over all else that was computed of a network."""
    found: dict[Any, list[float]] = {}
    for p in page.points:
        if p.axes["network"] == network and p.value(figure) > 0:
            found.setdefault(p.axes[axis], []).append(log(p.value(figure)))
    return {value: exp(fmean(found[value])) for value in page.axes[axis] if value in found}


def sensitivity_figure(page: SweepPage) -> tuple[Figure | None, str]:
    """For each axis and network: by what factor latency moves between the axis's worst and best value; and how that is counted."""
    if not page.axes or not page.points:
        return None, ""
    traces: list[Figure] = []
    widest = 1.0
    for network in page.networks:
        factors, texts = [], []
        for axis in page.axes:
            effect = main_effect(page, network, axis, LATENCY)
            factors.append(max(effect.values()) / min(effect.values()) if effect else 1.0)
            texts.append("<br>".join(f"{plain(_shown(axis, v))}: {e:,.4g} ms" for v, e in effect.items()))
        widest = max(widest, *factors)
        traces.append({
            "type": "bar", "orientation": "h", "name": plain(network), "y": [plain(a) for a in page.axes], "x": factors, "hovertext": texts,
            "marker": {"color": colour_of(page, network)}, "text": [f"{f:.3g}×" for f in factors], "textposition": "outside",
            "hovertemplate": plain(network) + ", %{y}<br>%{hovertext}<extra></extra>", "cliponaxis": False,
        })  # fmt: skip
    drawn = layout(
        x="worst over best",
        y="",
        height=140 + 34 * len(page.axes) * max(1, len(traces)),
    )
    drawn["xaxis"] |= {"range": [0, 1.18 * widest]}
    drawn["yaxis"] |= {"autorange": "reversed"}
    note = "Geometric mean of the latency over all other axes at each value; the bar is its largest over its smallest."
    if page.sampled:
        note += " The points were proposed by a search, not evenly: take these factors as a hint."
    return {"data": traces, "layout": drawn}, note


# ---- parallel coordinates -----------------------------------------------------------------------------------------------


def parallel_figure(page: SweepPage) -> Figure | None:
    """One line a point through all axes and figures; the worst drawn first, the best last and darkest.

    Drawn as lines of one plane, not as plotly's own kind, which compiles code while it runs: the page's policy forbids that.
    """
    if not page.points or not page.axes:
        return None
    figures = list(dict.fromkeys([*(o.removeprefix("-") for o in page.objectives), LATENCY, "energy_mj"]))
    columns = (
        ["network"] * (len(page.networks) > 1) + list(page.axes) + [f for f in figures if f not in page.axes]
    )
    places = [_places(page, c) for c in columns]
    ranked = _ranked(page)
    traces = []
    for shade in reversed(range(len(SHADES))):
        mine = [i for i, s in enumerate(ranked) if s == shade]
        traces.append(_bundle(page, mine, places, shade))
    drawn = layout(x="", y="", height=460)
    drawn["xaxis"] |= {
        "tickvals": list(range(len(columns))),
        "ticktext": [plain(label_of(c)) for c in columns],
        "range": [-0.3, len(columns) - 0.55],
    }
    drawn["yaxis"] |= {"visible": False, "range": [-0.06, 1.06]}
    drawn["showlegend"] = False
    drawn["annotations"] = [a for k, c in enumerate(columns) for a in _marks(page, c, k)]
    return {"data": traces, "layout": drawn}


def _bundle(page: SweepPage, indices: Sequence[int], places: Sequence[Sequence[float]], shade: int) -> Figure:
    """Lines of one shade as a single trace: None parts one from the next."""
    x: list[float | None] = []
    y: list[float | None] = []
    keys: list[str] = []
    for i in indices:
        x += [*range(len(places)), None]
        y += [*(round(column[i], 4) for column in places), None]
        keys += [page.points[i].key] * (len(places) + 1)
    return {
        "type": "scatter", "mode": "lines+markers", "x": x, "y": y, "customdata": keys, "connectgaps": False, "hoverinfo": "none",
        "line": {"color": SHADES[shade], "width": 1}, "marker": {"size": 4}, "opacity": 0.9 if shade < 2 else 0.35,
    }  # fmt: skip


def _places(page: SweepPage, column: str) -> list[float]:
    """Height of each point on one vertical axis, from 0 to 1."""
    if column == "network" or column in page.axes:
        values = list(page.networks if column == "network" else page.axes[column])
        return [values.index(p.axes[column]) / max(1, len(values) - 1) for p in page.points]
    scaled = _relative(page, column)
    low, high = min(scaled), max(scaled)
    return [(v - low) / (high - low) if high > low else 0.5 for v in scaled]


def _relative(page: SweepPage, column: str) -> list[float]:
    """Logarithm of a figure over the least of its network, so that all networks share an axis; as it is, where it is not positive."""
    raw = [p.value(column) for p in page.points]
    if min(raw) <= 0:
        return raw
    least = {
        n: min((p.value(column) for p in page.points if p.axes["network"] == n), default=1.0)
        for n in page.networks
    }
    return [log(v / least[p.axes["network"]]) for v, p in zip(raw, page.points, strict=True)]


def _marks(page: SweepPage, column: str, at: int) -> list[dict[str, Any]]:
    """What stands beside a vertical axis: its values, or its least and most."""
    if column == "network" or column in page.axes:
        values = list(page.networks if column == "network" else page.axes[column])
        step = -(-len(values) // 8)
        chosen = {
            i / max(1, len(values) - 1): _shown(column, v) for i, v in enumerate(values) if i % step == 0
        }
    else:
        raw = [p.value(column) for p in page.points]
        if min(raw) > 0 and len(page.networks) > 1:
            chosen = {0.0: "least", 1.0: f"{exp(max(_relative(page, column))):.3g}×"}
        else:
            chosen = {0.0: unit_of(column).show(min(raw)), 1.0: unit_of(column).show(max(raw))}
    return [
        {
            "x": at,
            "y": height,
            "text": plain(text),
            "showarrow": False,
            "xanchor": "left",
            "xshift": 5,
            "font": {"size": 10},
        }
        for height, text in chosen.items()
    ]


def _ranked(page: SweepPage) -> list[int]:
    """Shade of each point: its rank by the first objective among the points of its network."""
    objective = page.objectives[0]
    name, sign = objective.removeprefix("-"), -1 if objective.startswith("-") else 1
    shades = [0] * len(page.points)
    for network in page.networks:
        mine = [i for i, p in enumerate(page.points) if p.axes["network"] == network]
        mine.sort(key=lambda i: sign * page.points[i].value(name))
        for rank, i in enumerate(mine):
            shades[i] = rank * len(SHADES) // len(mine)
    return shades
