"""The page of a pipeline's run: the whole picture's timeline, what each network has of it, steps, and what the figures rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from npusim.pipeline_time import Event
from npusim.reports.markup import Part, bar, card, embed, fill, number, plot, section, table
from npusim.reports.source import Profiled, planned_trace
from npusim.reports.theme import Figure, layout, plain
from npusim.reports.timeline import Polygons, add_blocks, filled_traces
from npusim.units import PS_PER_MS, format_bytes

#: Colours of networks, in turn (after Okabe and Ito, 2008), and of what is no evaluation.
NETWORK_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
OTHER_COLOURS = {"launch": "#8A8A8A", "load": "#3B3B3B"}
_WIDTH_PX = 1600

Summary = Mapping[str, Any]


def write_pipeline_report(
    summary: Summary, profiles: Sequence[Profiled], events: Sequence[Event], path: Path
) -> None:
    """Write the page of one picture."""
    title = summary["title"] or summary["model"]
    plan = profiles[0].plan
    subtitle = f"{plan.npu.title}; {_steps(summary['steps'])}, {summary['policy']} issue; npusim {plan.npusim_version}"
    names = [n["name"] for n in summary["networks"]]
    sections = (
        _headline(summary),
        section("timeline", "Timeline of the whole picture", _HOW_TO_READ + plot("picture-plot", "timeline of the whole picture")),
        section("networks", "Networks", _networks(summary)),
        section("dominates", "What holds the critical path", _dominates(summary)),
        section("steps", "Other numbers of steps", _steps_table(summary)),
        section("assumptions", "What the figures rest on", _list(summary["assumptions"])),
    )  # fmt: skip
    values = {
        "title": escape(title), "subtitle": escape(subtitle), "sections": "\n".join(sections),
        "data": embed({"picture-plot": picture_timeline(names, profiles, events)}),
    }  # fmt: skip
    path.write_text(fill("plain.html", ("figures.js",), values), "utf-8")


_HOW_TO_READ = (
    "<p>The first row says which network runs; the rows below what its engines do, as high as they are busy. Drag to zoom, "
    "double-click for all. Each network's own page (below) shows every command of one evaluation.</p>"
)


def _steps(count: int) -> str:
    return f"{count} denoising step{'s' if count > 1 else ''}"


def _list(sentences: Sequence[str]) -> str:
    return '<ul class="hints">' + "".join(f"<li>{escape(s)}</li>" for s in sentences) + "</ul>"


def _colour(index: int) -> str:
    return NETWORK_COLOURS[index % len(NETWORK_COLOURS)]


def _headline(summary: Summary) -> str:
    networks = summary["networks"]
    parts = [
        Part(f"{n['name']} {n['total_ms']:.3f} ms, {n['share']:.1%}", n["share"], _colour(i))
        for i, n in enumerate(networks)
    ]
    keys = ", ".join(
        f'<span class="keyed"><span class="swatch" style="background:{_colour(i)}"></span>{escape(n["name"])} {n["share"]:.0%}</span>'
        for i, n in enumerate(networks)
    )
    other = "serial" if summary["policy"] == "decoupled" else "decoupled"
    traffic = summary["dram_read_bytes"] + summary["dram_write_bytes"]
    cards = (
        card(f"latency, {summary['policy']}", _ms(summary["latency_ms"]), f"{_ms(summary[f'{other}_latency_ms'])} {other}"),
        card("DRAM bytes", number(traffic, format_bytes(traffic)), f"{format_bytes(summary['spill_bytes'])} of it spilled intermediates"),
        card("energy", number(summary["energy_mj"], f"{summary['energy_mj']:,.0f} mJ")),
        card("launches", _ms(summary["launch_ms"]), "part of the latency"),
        card("loading weights", _ms(summary["load_ms"]), "part of the latency"),
        card("lower bound", _ms(summary["lower_bound_ms"]), "of the networks, without launches and loads"),
    )  # fmt: skip
    return section(
        "headline",
        "One picture",
        f'{bar(parts, "latency by network")}<p class="note">{keys}</p><dl class="cards">{"".join(cards)}</dl>',
    )


def _ms(value: float) -> str:
    return number(value, f"{value:,.3f} ms")


def _networks(summary: Summary) -> str:
    head = (
        "network", "model", "precision", "tiles, segments", "weights", "batch", "evaluations", "ms each", "launch each (ms)",
        "loads (ms)", "total (ms)", "share", "bound (ms each)", "DRAM", "energy (mJ)",
    )  # fmt: skip
    rows = []
    for n in summary["networks"]:
        moved = n["dram_read_bytes"] + n["dram_write_bytes"]
        load = f"{n['loads']} × {n['load_ps'] / PS_PER_MS:,.3f}" if n["loads"] else "none"
        rows.append((
            f'<a href="{escape(n["name"])}/report.html">{escape(n["name"])}</a>', escape(n["model"]), escape(n["precision"]),
            f"{escape(n['tiles'])}, {escape(n['segments_kinds'])}", escape(n["weights"]), str(n["batch"]), str(n["evaluations"]),
            number(n["evaluation_ps"] / PS_PER_MS, f"{n['evaluation_ms']:,.3f}"),
            number(n["launch_ps"] / PS_PER_MS, f"{n['launch_ps'] / PS_PER_MS:,.3f}"),
            load, number(n["total_ms"], f"{n['total_ms']:,.3f}"), f"{n['share']:.1%}",
            number(n["lower_bound_ms"], f"{n['lower_bound_ms']:,.3f}"), number(moved, format_bytes(moved)),
            number(n["energy_mj"], f"{n['energy_mj']:,.1f}"),
        ))  # fmt: skip
    total = f"evaluations × (ms each + launch) + loads × load, added up: {_ms(summary['latency_ms'])} = {summary['latency_ps']:,} ps."
    return table(head, rows, label="networks", text=(1, 2, 3, 4)) + f'<p class="note">{total}</p>'


def _dominates(summary: Summary) -> str:
    head = ("network", "kind of layer", "ms of one evaluation", "share of it")
    rows = [
        (escape(n["name"]), escape(d["what"]), number(d["ms"], f"{d['ms']:,.3f}"), f"{d['share']:.1%}")
        for n in summary["networks"]
        for d in n["dominated_by"]
    ]
    return table(head, rows, label="what holds the critical path", text=(1,))


def _steps_table(summary: Summary) -> str:
    head = ("steps", "latency (ms)", "DRAM", "energy (mJ)")
    rows = []
    for row in summary["steps_table"]:
        moved = row["dram_read_bytes"] + row["dram_write_bytes"]
        name = f"<b>{row['steps']}</b>" if row["steps"] == summary["steps"] else str(row["steps"])
        energy = number(row["energy_mj"], f"{row['energy_mj']:,.0f}")
        rows.append(
            (
                name,
                number(row["latency_ms"], f"{row['latency_ms']:,.3f}"),
                number(moved, format_bytes(moved)),
                energy,
            )
        )
    return table(head, rows, label="latency, traffic and energy by denoising steps")


def picture_timeline(names: Sequence[str], profiles: Sequence[Profiled], events: Sequence[Event]) -> Figure:
    """Plotly figure: which network runs when, and below what its engines do; equal evaluations are repeated where they run.

    Args:
        names, profiles: of the networks.
        events: everything that takes time; times of the figure are theirs.
    """
    end_ps = max((e.end_ps for e in events), default=0)
    lanes = profiles[0].program.lanes
    polygons: Polygons = {}
    for index, one in enumerate(profiles):
        starts = [e.start_ps for e in events if e.part == index and e.what == "evaluation"]
        trace = planned_trace(one)
        add_blocks(
            polygons, one.program, trace, window=(0, trace.makespan_ps), bin_ps=max(1, end_ps // _WIDTH_PX),
            shifts_ps=starts, lane=1,
        )  # fmt: skip
    drawn = layout(x="time (ms)", y="", height=170 + 26 * (len(lanes) + 1))
    drawn["yaxis"] |= {
        "tickvals": list(range(len(lanes) + 1)), "ticktext": ["network", *lanes], "range": [len(lanes) + 0.6, -0.6], "fixedrange": True,
        "showgrid": False, "zeroline": False,
    }  # fmt: skip
    drawn["xaxis"] |= {"range": [0, end_ps / PS_PER_MS]}
    drawn |= {"barmode": "overlay", "bargap": 0.1}
    return {"data": [*_event_bars(names, events), *filled_traces(polygons)], "layout": drawn}


def _event_bars(names: Sequence[str], events: Sequence[Event]) -> list[Figure]:
    """The first row: a bar per event, named and with its exact times."""
    groups: dict[str, tuple[str, list[Event]]] = {}
    for event in events:
        evaluated = event.what == "evaluation"
        name = names[event.part] if evaluated else event.what
        colour = _colour(event.part) if evaluated else OTHER_COLOURS[event.what]
        if event.end_ps > event.start_ps:
            groups.setdefault(name, (colour, []))[1].append(event)
    return [
        {
            "type": "bar", "orientation": "h", "name": plain(name), "y": [0] * len(mine), "width": 0.8,
            "base": [e.start_ps / PS_PER_MS for e in mine], "x": [(e.end_ps - e.start_ps) / PS_PER_MS for e in mine],
            "text": [plain(name)] * len(mine), "textposition": "inside", "insidetextanchor": "middle",
            "customdata": [[plain(names[e.part]), e.evaluation + 1, (e.end_ps - e.start_ps) / PS_PER_MS] for e in mine],
            "marker": {"color": colour},
            "hovertemplate": "%{customdata[0]}, evaluation %{customdata[1]}<br>from %{base:.4f} ms, %{customdata[2]:.4f} ms long",
        }
        for name, (colour, mine) in groups.items()
    ]  # fmt: skip
