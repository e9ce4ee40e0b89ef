"""`report.html`: one file that works offline. It draws only what is in sight, so that a million commands open too."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npusim.dtypes import PAIRS
from npusim.program import OPCODES, ROLES
from npusim.reports.engines import engines
from npusim.reports.events import event_columns, gangs, quantum_ps, slices
from npusim.reports.headline import headline
from npusim.reports.layers import LayerFigures, layer_figures, layer_rows
from npusim.reports.markup import assemble, embed
from npusim.reports.memory import add_memory_columns, bandwidth, sram
from npusim.reports.quantization import error_figure, quantization_section, sqnr_column
from npusim.reports.roofline import roofline
from npusim.reports.sections import (
    critical_section,
    engine_section,
    hint_section,
    layer_section,
    roofline_section,
    timeline_section,
)
from npusim.reports.segments import gap_section, segment_section, table6_section
from npusim.reports.source import Profiled, planned_trace
from npusim.reports.theme import ACCENT, CATEGORIES, KINDS, LIMIT, Figure, block_of
from npusim.reports.tiles import curve_points, curves, tile_curve
from npusim.reports.timeline import timeline

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Section -> its name in the navigation.
TITLES = {
    "headline": "headline", "gap": "gap", "hints": "hints", "timeline": "timeline", "engines": "engines", "critical": "critical path",
    "roofline": "roofline", "segments": "segments", "table6": "attention",
    "quantization": "quantization", "layers": "layers",
}  # fmt: skip
PALETTE = {
    "categories": list(CATEGORIES.items()),
    "kinds": list(KINDS.items()),
    "accent": ACCENT,
    "limit": LIMIT,
}
STALLS = ("nothing", "DMA", "a dependency", "its turn in the queue")


#: What `npusim run --verify` found, as `verify.json` holds it; nothing before a run was verified.
Verified = Mapping[str, Any] | None


def write_report(profile: Profiled, path: Path, verified: Verified = None) -> None:
    """Write the page of one run."""
    path.write_text(report_html(profile, verified), "utf-8")


def report_html(profile: Profiled, verified: Verified = None) -> str:
    """The page of one run, as text."""
    figures, plan, summary = layer_figures(profile), profile.plan, profile.summary
    sections = {
        "headline": headline(profile, figures),
        "gap": gap_section(summary),
        "hints": hint_section(profile, figures),
        "timeline": timeline_section(),
        "engines": engine_section(profile),
        "critical": critical_section(profile, figures),
        "roofline": roofline_section(profile),
        "segments": segment_section(summary),
        "table6": table6_section(summary),
        "quantization": quantization_section(verified),
        "layers": layer_section(),
    }
    return assemble({
        "title": escape(f"{plan.model.name} on {plan.npu.name}"),
        "subtitle": escape(subtitle(profile)),
        "nav": "".join(f'<a href="#{name}">{TITLES[name]}</a>' for name, body in sections.items() if body),
        "sections": "\n".join(filter(None, sections.values())),
        "data": embed(report_data(profile, figures, verified)),
    })  # fmt: skip


def subtitle(profile: Profiled) -> str:
    """What was asked for, in one line."""
    plan, options = profile.plan, profile.plan.options
    return (
        f"{plan.npu.title}; tiles {options.tiles}, segments {options.segments}, precision {options.precision}, "
        f"{options.policy} issue; npusim {plan.npusim_version}"
    )


def report_data(profile: Profiled, figures: LayerFigures, verified: Verified = None) -> dict[str, Any]:
    """What the page's scripts draw."""
    layers = layer_columns(profile, figures)
    sqnr = sqnr_column(verified, layers["name"])
    return {
        "palette": PALETTE,
        "runs": [run_data(profile, figures, memory=True)],
        "layers": layers | ({"sqnr_db": sqnr} if sqnr else {}),
        "figures": {
            "engines-plot": engines(profile.program, planned_trace(profile)),
            "roofline-plot": roofline(profile, figures),
            **({"quantization-plot": error_figure(verified["layers"])} if verified else {}),
        },
        "curves": curves(profile.summary),
    }


def run_data(profile: Profiled, figures: LayerFigures, *, memory: bool) -> dict[str, Any]:
    """One run for the timeline: names, and the columns as text; with `memory` also SRAM and DRAM over time."""
    program, trace, plan = profile.program, planned_trace(profile), profile.plan
    quantum = quantum_ps(trace.makespan_ps)
    columns, counts = event_columns(program, trace, profile.work, quantum, figures.command_critical_ps > 0)
    if memory:
        add_memory_columns(columns, program, trace, quantum)
    precisions = {layer.name: layer.precision for layer in plan.layers}
    scopes = {layer.name: layer.scope for layer in profile.graph.layers}
    blocks = [block_of(scopes.get(name, "")) for name in program.layers]
    numbered = {name: i for i, name in enumerate(dict.fromkeys(blocks))}
    return {
        "quantum": quantum, "makespan": -(-trace.makespan_ps // quantum), "lanes": program.lanes,
        "gangs": gangs(program, counts), "layers": program.layers, "slices": slices(program),
        "blocks": list(numbered), "block_of": [numbered[name] for name in blocks],
        "precisions": [precisions.get(name, plan.options.precision) for name in program.layers],
        "segments": program.segments, "functions": program.functions, "tensors": program.tensors.name, "opcodes": OPCODES,
        "roles": ROLES, "pairs": PAIRS, "stalls": STALLS, "categories": len(CATEGORIES), "capacity": plan.npu.sram.sram_bytes,
        "dram_limit": plan.npu.dram.dram_shared_bytes_per_s, "index": columns.index(), "text": columns.text(),
    }  # fmt: skip


def layer_columns(profile: Profiled, figures: LayerFigures) -> dict[str, list[Any]]:
    """The layer table by columns; times as integer picoseconds, so that sums on the page are exact."""
    rows = layer_rows(profile, figures)
    named = ("name", "op", "block", "part", "precision", "slices", "macs", "dram_bytes", "spill_bytes")
    found: dict[str, list[Any]] = {key: [getattr(row, key) for row in rows] for key in named}
    found["shape"] = [" × ".join(map(str, row.shape)) for row in rows]
    found["mac_share"] = np.round(figures.mac_utilization, 6).tolist()
    found["critical_ps"], found["busy_ps"] = figures.critical_ps.tolist(), figures.busy_ps.tolist()
    return found


def figures(profile: Profiled) -> dict[str, Figure]:
    """Every figure of a run as a plain description, by name (for `figure`): what the page draws, for notebooks."""
    program, trace, plan = profile.program, planned_trace(profile), profile.plan
    return {
        "timeline": timeline(program, trace),
        "sram": sram(plan, program, trace),
        "bandwidth": bandwidth(plan, trace),
        "engines": engines(program, trace),
        "roofline": roofline(profile, layer_figures(profile)),
        **{
            f"tiles: {s['name']}": tile_curve(curve_points(s))
            for s in profile.summary["segments"]
            if curve_points(s)
        },
    }


def figure(description: dict[str, Any]) -> go.Figure:
    """A figure of this package as a plotly object, for notebooks (plotly is imported here, and only here)."""
    import plotly.graph_objects as go

    return go.Figure(description)
