"""The sections of the page that Python writes: headline, busy and waiting, critical path, segments, Table 6, layers, hints."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from npusim.cost import energy_pj
from npusim.program import TABLE6_ROLES
from npusim.reports.engines import engine_states
from npusim.reports.hints import critical_by_category, hints
from npusim.reports.layers import LayerFigures
from npusim.reports.markup import card, number, path_name, plot, resource, section, table
from npusim.reports.source import Profiled, planned_trace
from npusim.reports.theme import CATEGORIES
from npusim.units import PS_PER_MS, format_bytes, format_mib

ROLE_TITLES = {
    "load_qk": "load Q, K", "qk": "Q × Kᵀ", "store_scores": "store scores", "load_scores": "load scores",
    "softmax": "softmax", "store_probs": "store probs", "load_probs_v": "load probs, V", "pv": "probs × V",
    "store_out": "store out",
}  # fmt: skip


def headline(profile: Profiled, figures: LayerFigures) -> str:
    """The figures that one looks for first."""
    cards = "".join(_time_cards(profile, figures) + _memory_cards(profile))
    notes = "".join(f"<li>{escape(a)}</li>" for a in profile.summary["assumptions"])
    return section(
        "headline", "Headline",
        f'<dl class="cards">{cards}</dl><h3>What the figures rest on</h3><ul class="hints">{notes}</ul>'
        f"<details><summary>Every figure of summary.json</summary>{_all_figures(profile.summary)}</details>",
    )  # fmt: skip


def _time_cards(profile: Profiled, figures: LayerFigures) -> list[str]:
    summary = profile.summary
    latency, bound = float(summary["latency_ms"]), float(summary["lower_bound_ms"])
    policy = str(summary["policy"])
    other = "serial" if policy == "decoupled" else "decoupled"
    other_ms = profile.traces[other].makespan_ps / PS_PER_MS if other in profile.traces else None
    use = float(figures.peak_s.sum()) * 1e3 / latency if latency else 0.0
    gap = f"{100 * (latency / bound - 1):.1f} % above it" if bound else ""
    if summary.get("bound_by"):
        gap += f"; it is set by: {escape(str(summary['bound_by']))}"
    energy = energy_pj(profile.program, profile.plan.npu)
    shares = ", ".join(f"{k.removesuffix('_pj')} {v / 1e9:.1f}" for k, v in energy.items())
    return [
        card(f"latency, {policy}", number(summary["latency_ms"], f"{latency:.3f} ms")),
        card(
            f"latency, {other}", number(other_ms, f"{other_ms:.3f} ms") if other_ms is not None else "not run"
        ),
        card("lower bound", number(bound, f"{bound:.3f} ms"), gap),
        card("bound by", escape(_bound_by(profile, figures)), "what holds most of the critical path"),
        card(
            "MAC utilization",
            number(use, f"{100 * use:.1f} %"),
            "of the peak of all multipliers, at the precision used",
        ),
        card("multiply-accumulates", number(summary["macs"], f"{summary['macs'] / 1e9:.2f} G")),
        card(
            "hand-over",
            number(summary["handover_ms"], f"{summary['handover_ms']:.3f} ms"),
            "engine time, may overlap",
        ),
        card(
            "energy", number(summary["energy_mj"], f"{summary['energy_mj']:.1f} mJ"), f"mJ: {escape(shares)}"
        ),
    ]


def _bound_by(profile: Profiled, figures: LayerFigures) -> str:
    held = critical_by_category(profile, figures)
    kinds = {"DMA": 0, "tensor engines": 0, "vector engines": 0}
    for name, time_ps in held.items():
        kind = (
            "DMA" if name.startswith("DMA") else "tensor engines" if "product" in name else "vector engines"
        )
        kinds[kind] += time_ps
    worst = max(kinds, key=lambda name: kinds[name])
    return f"{worst}, {100 * kinds[worst] / max(1, sum(kinds.values())):.0f} %"


def _memory_cards(profile: Profiled) -> list[str]:
    summary = profile.summary
    capacity = profile.plan.npu.sram.sram_bytes
    peak, average = int(summary["peak_sram_bytes"]), float(summary["sram_utilization"])
    coverage = summary["coverage"]
    least = min(float(coverage[k]) for k in ("nodes", "macs", "bytes"))
    unknown = ", ".join(f"{op} ({len(names)})" for op, names in coverage["unmodelled"].items())
    return [
        card("DRAM read", _bytes(summary["dram_read_bytes"])),
        card("DRAM written", _bytes(summary["dram_write_bytes"])),
        card(
            "of these, intermediates", _bytes(summary["spill_bytes"]), "what spilled, written and read again"
        ),
        card("DRAM lower bound", _bytes(summary["dram_bound_bytes"]), "no order of the layers can move less"),
        card(
            "SRAM peak",
            number(peak, format_mib(peak)),
            f"{100 * peak / capacity:.1f} % of {format_mib(capacity)}",
        ),
        card(
            "SRAM average",
            number(average, f"{100 * average:.1f} %"),
            f"{format_mib(average * capacity)} over time",
        ),
        card("coverage", number(least, f"{100 * least:.1f} %"), escape(unknown or "every node is modelled")),
        card(
            "commands",
            number(len(profile.program), f"{len(profile.program):,}"),
            f"{len(profile.program.layers)} layers",
        ),
    ]


def _bytes(value: int) -> str:
    return number(int(value), format_bytes(value))


def _all_figures(summary: Mapping[str, Any]) -> str:
    scalars = {k: v for k, v in summary.items() if isinstance(v, str | int | float)}
    for name, share in summary["engine_busy"].items():
        scalars[f"engine_busy.{name}"] = share
    rows = [
        (escape(k), f'<span data-key="{escape(k)}">{escape(json.dumps(v))}</span>')
        for k, v in scalars.items()
    ]
    return table(("key", "value"), rows, label="every figure of summary.json")


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


def segment_section(summary: Mapping[str, Any]) -> str:
    """The segments: their tiles, their cost, and the tile-count curve of the one chosen."""
    segments = summary["segments"]
    if not segments:
        return section(
            "segments", "Segments", "<p>No layers are scheduled together (<code>--tiles none</code>).</p>"
        )
    rows = [_segment_row(s) for s in segments]
    kinds = list(segments[0]["busy_ms"])
    head = (
        "segment",
        "tiles",
        "latency (ms)",
        *(f"{k} busy (ms)" for k in kinds),
        "hand-over (ms)",
        "DRAM",
        "SRAM peak",
    )
    body = table(head, rows, label="segments")
    if any(s.get("tile_curve") for s in segments):
        body += (
            '<h3>Latency over tile count</h3><div class="tools"><label>segment <select id="curve-choice"></select></label></div>'
            + plot("curve-plot", "latency and DRAM bytes over the tile count of the chosen segment")
        )
    else:
        body += '<p class="quiet">This run did not keep a tile-count curve (a search with <code>--tiles auto</code> does).</p>'
    return section("segments", "Segments and their tiles", body)


def _segment_row(s: Mapping[str, Any]) -> Sequence[str]:
    split = " × ".join(f"{axis}\u00a0{n}" for axis, n in s.get("tiles", {}).items())
    peak, handover_ms = int(s["peak_sram_bytes"]), float(s.get("handover_ms", 0.0))
    return (
        f'{path_name(s["name"])}<br><span class="quiet">{escape(s["kind"])}, {escape(split)}</span>',
        number(s["tile_count"], str(s["tile_count"])), number(s["latency_ms"], f"{s['latency_ms']:.4f}"),
        *(number(v, f"{v:.4f}") for v in s["busy_ms"].values()), number(handover_ms, f"{handover_ms:.4f}"),
        _bytes(s["dram_bytes"]), number(peak, format_mib(peak)),
    )  # fmt: skip


def table6_section(summary: Mapping[str, Any]) -> str:
    """The rows of the paper's Table 6, for every attention of the network."""
    blocks = summary["attention"]
    if not blocks:
        return section("table6", "Attention blocks (Table 6)", "<p>The network has no attention.</p>")
    head = ("attention", *(ROLE_TITLES[r] for r in TABLE6_ROLES), "other")
    rows = [_attention_row(block) for block in blocks]
    body = (
        "<p>Milliseconds in which a step of each role runs, row by row as in Table 6 of the EdgeFusion paper. Under the "
        "decoupled policy rows overlap, and <i>other</i> is then negative: it is the block's time less the rows. "
        "A dash is a step that tiling removed.</p>"
    )
    return section("table6", "Attention blocks (Table 6)", body + table(head, rows, label="Table 6"))


def attention_name(block: Mapping[str, Any]) -> str:
    """Name and shape of an attention, as HTML."""
    shape = f"{block['heads']} heads, {block['queries']} × {block['keys']}, head size {block['head_dim']}"
    return f'{path_name(block["name"])}<br><span class="quiet">{escape(shape)}</span>'


def _attention_row(block: Mapping[str, Any]) -> Sequence[str]:
    values = [float(block["rows"][role]) for role in TABLE6_ROLES]
    cells = [number(value, f"{value:.4f}" if value else "–") for value in values]
    other = float(block["other_ms"])
    return (attention_name(block), *cells, number(other, f"{other:.4f}" if abs(other) >= 5e-5 else "–"))


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
