"""Sections of the page that Python writes: busy and waiting, critical path, roofline, hints; and the frames of what scripts draw."""

from __future__ import annotations

import re
from html import escape

import numpy as np

from npusim.reports.engines import engine_states
from npusim.reports.hints import critical_by_category, hints
from npusim.reports.layers import LayerFigures
from npusim.reports.markup import number, path_name, plot, resource, section, table
from npusim.reports.source import Profiled, planned_trace
from npusim.reports.theme import CATEGORIES
from npusim.units import PS_PER_MS


def engine_section(profile: Profiled) -> str:
    """Busy and waiting time of each engine: a figure, and the same as a table."""
    trace = planned_trace(profile)
    states = engine_states(profile.program, trace)
    total = max(1, trace.makespan_ps)
    names = list(next(iter(states.values()), {}))
    rows = [
        (
            escape(lane),
            *(number(s[n] / PS_PER_MS, f"{s[n] / PS_PER_MS:.3f}") for n in names),
            f"{100 * s['busy'] / total:.1f} %",
        )
        for lane, s in states.items()
    ]
    head = ("engine", *(f"{n} (ms)" for n in names), "busy")
    body = plot("engines-plot", "stacked bars of busy and waiting time per engine")
    body += (
        "<details><summary>as a table</summary>"
        + table(head, rows, label="time of each engine")
        + "</details>"
    )
    return section("engines", "What the engines do with their time", body)


def critical_section(profile: Profiled, figures: LayerFigures) -> str:
    """What the chain of commands that decides the latency is made of."""
    held = critical_by_category(profile, figures)
    total = max(1, sum(held.values()))
    kinds = [
        (_swatch(n), _ms(v), _share(v, total)) for n, v in sorted(held.items(), key=lambda i: -i[1]) if v
    ]
    order = np.argsort(-figures.critical_ps, kind="stable")[:12].tolist()
    layers = [
        (path_name(profile.program.layers[i]), _ms(int(figures.critical_ps[i])), _share(int(figures.critical_ps[i]), total))
        for i in order if figures.critical_ps[i]
    ]  # fmt: skip
    steps = int((figures.command_critical_ps > 0).sum())
    body = (
        f"<p>Each of these {steps:,} commands waited for the one before it; together they are the whole latency. "
        "Only what shortens them shortens the run. They are underlined on the timeline.</p>"
        f'<div class="two"><div>{table(("what", "ms", "share"), kinds, label="critical path by kind")}</div>'
        f"<div>{table(('layer', 'ms', 'share'), layers, label='critical path by layer')}</div></div>"
    )
    return section("critical", "Critical path", body)


def _swatch(name: str) -> str:
    return f'<span class="swatch" style="background:{CATEGORIES[name]}"></span>{escape(name)}'


def _ms(time_ps: int) -> str:
    return number(time_ps / PS_PER_MS, f"{time_ps / PS_PER_MS:.4f}")


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %"


def layer_section() -> str:
    """The layer table's frame; the page fills it."""
    return section("layers", "Layers", resource("layers.html"))


def hint_section(profile: Profiled, figures: LayerFigures) -> str:
    """Hints, as a list."""
    kept = (re.sub(r"(\d) (?=([kMG]?B|m[sJ]|%))", "\\1\u00a0", hint) for hint in hints(profile, figures))
    lines = "".join(f"<li>{escape(hint)}</li>" for hint in kept)
    return section("hints", "Hints", f'<ul class="hints">{lines}</ul>')


def roofline_section(profile: Profiled) -> str:
    """The roofline's frame, with how to read it."""
    rate = profile.plan.npu.dram.dram_shared_bytes_per_s / 1e9
    return section(
        "roofline", "Roofline",
        f"<p>One dot per layer that multiplies, as large as its share of the latency. Left of the knee DRAM ({rate:.1f} GB/s) is "
        "the limit, right of it the multipliers. A triangle at the right edge moves no DRAM byte.</p>"
        + plot("roofline-plot", "roofline of the layers"),
    )  # fmt: skip


def timeline_section() -> str:
    """The timeline's frame: tools, legend, plot, what is selected."""
    return section("timeline", "Timeline", resource("timeline.html"))


def compare_timeline_section() -> str:
    """The frame of two timelines on one axis."""
    return section("timeline", "Both timelines", resource("timeline.html"))
