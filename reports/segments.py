"""Segments: their tiles, what they cost, why they are cut so; and the paper's Table 6 of every attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from npusim.program import TABLE6_ROLES
from npusim.reports.markup import number, path_name, plot, section, table
from npusim.units import format_bytes, format_mib

ROLE_TITLES = {
    "load_qk": "load Q, K", "qk": "Q × Kᵀ", "store_scores": "store scores", "load_scores": "load scores",
    "softmax": "softmax", "store_probs": "store probs", "load_probs_v": "load probs, V", "pv": "probs × V",
    "store_out": "store out",
}  # fmt: skip
#: What tells segments and attentions apart though they cost the same.
NAMES = ("name", "layers")


def alike(items: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Items whose figures are the same, together, in the order of their firsts."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        groups.setdefault(repr({k: v for k, v in item.items() if k not in NAMES}), []).append(item)
    return list(groups.values())


def named(group: Sequence[Mapping[str, Any]], note: str) -> str:
    """HTML: the first's name, a note on what it is, and the names of those like it."""
    first = path_name(group[0]["name"]) + (f'<br><span class="quiet">{escape(note)}</span>' if note else "")
    if len(group) == 1:
        return first
    others = "".join(f"<li>{path_name(item['name'])}</li>" for item in group[1:])
    return f'{first}<details class="like"><summary>and {len(group) - 1} more like it</summary><ul>{others}</ul></details>'


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
        *(f"{k} busy (ms)" for k in kinds),
        "hand-over (ms)",
        "DRAM",
        "SRAM peak",
    )
    groups = alike(segments)
    body = table(head, map(_segment_row, groups), label="segments")
    if any(s.get("tile_curve") for s in segments):
        body += (
            '<h3>Latency over tile count</h3><div class="tools"><label>segment <select id="curve-choice"></select></label></div>'
            + plot("curve-plot", "latency and DRAM bytes over the tile count of the chosen segment")
        )
    else:
        body += '<p class="quiet">This run did not keep a tile-count curve (a search with <code>--tiles auto</code> does).</p>'
    return section("segments", "Segments and their tiles", body + _why(groups))


def _segment_row(group: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    s = group[0]
    split = " × ".join(f"{axis}\u00a0{n}" for axis, n in s.get("tiles", {}).items())
    peak, handover_ms, moved = (
        int(s["peak_sram_bytes"]),
        float(s.get("handover_ms", 0.0)),
        int(s["dram_bytes"]),
    )
    return (
        named(group, f"{s['kind']}, {split}"), number(s["tile_count"], str(s["tile_count"])),
        number(s["latency_ms"], f"{s['latency_ms']:.4f}"), *(number(v, f"{v:.4f}") for v in s["busy_ms"].values()),
        number(handover_ms, f"{handover_ms:.4f}"), number(moved, format_bytes(moved)), number(peak, format_mib(peak)),
    )  # fmt: skip


def _why(groups: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """What binds each segment, the next-best tile counts, and what more hardware would buy (`segments[i].why`)."""
    found = [group for group in groups if group[0].get("why")]
    if not found:
        return ""
    text = "<p>Times here are of a segment simulated on its own: nothing is loaded before it, nothing overlaps it.</p>"
    return "<h3>Why so many tiles</h3>" + text + "".join(_reasons(group) for group in found)


def _reasons(group: Sequence[Mapping[str, Any]]) -> str:
    why = group[0]["why"]
    latency = float(why.get("alone_ms", group[0]["latency_ms"]))
    more = f" and {len(group) - 1} more like it" if len(group) > 1 else ""
    next_best = [
        (f"{p['tile_count']} tiles", *_against(p, latency), escape(str(p["reason"])))
        for p in why.get("next_best", ())
    ]
    levers = [(escape(str(p["change"])), *_against(p, latency)) for p in why.get("levers", ())]
    tables = []
    if next_best:
        columns = ("next best", "latency (ms)", "against this", "because")
        tables.append(table(columns, next_best, label="next-best tile counts", text=(3,)))
    if levers:
        head = ("change", "latency (ms)", "against this")
        tables.append(table(head, levers, label="what more hardware would buy"))
    return (
        f'<details class="why"><summary>{path_name(group[0]["name"])}{more}: bound by {escape(str(why["bound_by"]))}</summary>'
        f'<div class="two">{"".join(f"<div>{t}</div>" for t in tables)}</div></details>'
    )


def _against(point: Mapping[str, Any], latency_ms: float) -> tuple[str, str]:
    if point["latency_ms"] is None:
        return "does not fit", "–"
    found = float(point["latency_ms"])
    return number(found, f"{found:.4f}"), f"{100 * (found / latency_ms - 1):+.1f} %" if latency_ms else "–"


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
    widest = max(max(low, high) for _, low, high in steps) or 1.0
    rows = [
        (
            escape(name),
            _step(low, high, widest, total=i in (0, len(steps) - 1)),
            number(high - low, f"{high - low:+.3f}"),
            f"{100 * (high - low) / latency:.1f} %" if latency else "–",
        )
        for i, (name, low, high) in enumerate(steps)
    ]
    text = "<p>What no plan can avoid, then what this one adds to it, cause by cause. Each row starts where the one above ends.</p>"
    body = text + table(
        ("cause", "", "ms", "of the latency"), rows, label="gap between bound and latency", text=(1,)
    )
    levers = [(escape(str(p["change"])), *_against(p, latency)) for p in summary.get("levers", ())]
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
