"""Segments: their tiles, what they cost, why they are cut so; and the paper's Table 6 of every attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from npusim.program import TABLE6_ROLES
from npusim.reports.markup import named, number, plot, section, table
from npusim.reports.tiles import curve_points
from npusim.reports.why import against, reasons
from npusim.units import format_bytes, format_mib

ROLE_TITLES = {
    "load_qk": "load Q, K", "qk": "Q × Kᵀ", "store_scores": "store scores", "load_scores": "load scores",
    "softmax": "softmax", "store_probs": "store probs", "load_probs_v": "load probs, V", "pv": "probs × V",
    "store_out": "store out",
}  # fmt: skip
KIND_TITLES = {"rows": "row chain"}
#: What tells segments and attentions apart though they cost the same.
NAMES = ("name", "layers")


def alike(items: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Items whose figures are the same, together, in the order of their firsts."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        groups.setdefault(repr({k: v for k, v in item.items() if k not in NAMES}), []).append(item)
    return list(groups.values())


def segment_section(summary: Mapping[str, Any]) -> str:
    """The segments: their tiles, their cost, and the tile-count curve of the one chosen."""
    segments = summary["segments"]
    if not segments:
        return section(
            "segments", "Segments", "<p>No layers are scheduled together (<code>--tiles none</code>).</p>"
        )
    kinds = list(segments[0]["busy_ms"])
    head = (
        "segment",
        "tiles",
        "latency (ms)",
        *(f"{k.replace('dma', 'DMA')} busy (ms)" for k in kinds),
        "hand-over (ms)",
        "DRAM",
        "SRAM peak",
    )
    groups = alike(segments)
    body = table(head, map(_segment_row, groups), label="segments")
    drawn = sum(len(curve_points(s)) > 1 for s in segments)
    if drawn:
        body += (
            '<h3>Latency over tile count</h3><div class="tools"><label>segment <select id="curve-choice"></select></label></div>'
            + plot("curve-plot", "latency and DRAM bytes over the tile count of the chosen segment")
        )
    if drawn < len(segments):
        body += (
            f'<p class="quiet">{len(segments) - drawn} of {len(segments)} segments have no tile-count curve: their tiles were '
            "asked for, or chosen in closed form. <code>--tiles auto --why</code> simulates other counts.</p>"
        )
    return section("segments", "Segments and their tiles", body + reasons(segments))


def what_it_is(segment: Mapping[str, Any]) -> str:
    """The kind of a segment, and into how many parts each axis is cut: `attention, 8 along heads × 16 along rows`."""
    cuts = [f"{n}\u00a0along\u00a0{axis}" for axis, n in segment.get("tiles", {}).items() if n > 1]
    return f"{KIND_TITLES.get(segment['kind'], segment['kind'])}{', ' if cuts else ''}{' × '.join(cuts)}"


def _segment_row(group: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    s = group[0]
    peak, handover_ms, moved = (
        int(s["peak_sram_bytes"]),
        float(s.get("handover_ms", 0.0)),
        int(s["dram_bytes"]),
    )
    return (
        named(group, what_it_is(s)), number(s["tile_count"], str(s["tile_count"])),
        number(s["latency_ms"], f"{s['latency_ms']:.4f}"), *(number(v, f"{v:.4f}") for v in s["busy_ms"].values()),
        number(handover_ms, f"{handover_ms:.4f}"), number(moved, format_bytes(moved)), number(peak, format_mib(peak)),
    )  # fmt: skip


def gap_section(summary: Mapping[str, Any]) -> str:
    """From the lower bound to the latency, cause by cause (`gap` of the summary); empty where the run has none."""
    causes = summary.get("gap") or ()
    if not causes:
        return ""
    latency, bound = float(summary["latency_ms"]), float(summary["lower_bound_ms"])
    steps: list[tuple[str, float, float]] = [("lower bound", 0.0, bound)]
    for cause in causes:
        steps.append((str(cause["cause"]), steps[-1][2], steps[-1][2] + float(cause["ms"])))
    steps.append(("latency", 0.0, latency))
    ends = (0, len(steps) - 1)
    widest = max(max(low, high) for _, low, high in steps) or 1.0
    rows = [
        (
            escape(name),
            _step(low, high, widest, total=i in ends),
            number(high - low, f"{high - low:{'' if i in ends else '+'}.3f}"),
            f"{100 * (high - low) / latency:.1f} %" if latency else "–",
        )
        for i, (name, low, high) in enumerate(steps)
    ]
    text = "<p>What no plan can avoid, then what this one adds to it, cause by cause. Each row starts where the one above ends.</p>"
    body = text + table(
        ("cause", "", "ms", "of the latency"), rows, label="gap between bound and latency", text=(1,)
    )
    levers = [
        (
            escape(str(p["change"])),
            number(p["latency_ms"], f"{p['latency_ms']:.3f}"),
            against(p["latency_ms"], latency),
        )
        for p in summary.get("levers", ())
    ]
    if levers:
        head = ("change", "latency (ms)", "against this")
        body += "<h3>What more hardware would buy</h3>" + table(
            head, levers, label="the network on more hardware"
        )
    return section("gap", "From the bound to the latency", body)


def _step(low: float, high: float, widest: float, *, total: bool) -> str:
    left, width = 100 * min(low, high) / widest, 100 * abs(high - low) / widest
    return f'<span class="step{" total" if total else ""}"><i style="left:{left:.3f}%;width:{width:.3f}%"></i></span>'


def table6_section(summary: Mapping[str, Any]) -> str:
    """The rows of the paper's Table 6, for every attention of the network."""
    blocks = summary["attention"]
    if not blocks:
        return section("table6", "Attention blocks (Table 6)", "<p>The network has no attention.</p>")
    head = ("attention", *(ROLE_TITLES[r] for r in TABLE6_ROLES), "other")
    body = (
        "<p>Milliseconds in which a step of each role runs, row by row as in Table 6 of the EdgeFusion paper. Under the "
        "decoupled policy rows overlap, and <i>other</i> is then negative: it is the block's time less the rows. "
        "A dash is a step that tiling removed.</p>"
    )
    rows = map(_attention_row, alike(blocks))
    return section("table6", "Attention blocks (Table 6)", body + table(head, rows, label="Table 6"))


def attention_shape(block: Mapping[str, Any]) -> str:
    """Heads, queries, keys and head size, in words."""
    return f"{block['heads']} heads, {block['queries']} × {block['keys']}, head size {block['head_dim']}"


def _attention_row(group: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    block = group[0]
    values = [float(block["rows"][role]) for role in TABLE6_ROLES]
    cells = [number(value, f"{value:.4f}" if value else "–") for value in values]
    other = float(block["other_ms"])
    return (
        named(group, attention_shape(block)), *cells, number(other, f"{other:.4f}" if abs(other) >= 5e-5 else "–")
    )  # fmt: skip
