"""Why each segment is cut so: what binds it, what other tile counts and more hardware would do (`--why`), in one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from npusim.reports.markup import named, number, table

Segment = Mapping[str, Any]

#: A change smaller than this shows as none (our choice: a digit of what is printed).
LEAST_CHANGE = 5e-4


def reasons(segments: Iterable[Segment]) -> str:
    """HTML: one row for segments with the same reasons, the heaviest first; empty where nothing was explained."""
    groups: dict[str, list[Segment]] = {}
    for segment in segments:
        if segment.get("why"):
            groups.setdefault(repr((segment["kind"], segment["tile_count"], segment["why"])), []).append(
                segment
            )
    if not groups:
        return ""
    heaviest = sorted(groups.values(), key=lambda group: -sum(float(s["latency_ms"]) for s in group))
    changes = list(dict.fromkeys(str(p["change"]) for s in heaviest for p in s[0]["why"].get("levers", ())))
    head = ("segment", "tiles", "alone (ms)", "bound by", "with fewer tiles", "with more tiles", *changes)
    rows = (_row(group, changes) for group in heaviest)
    return (
        "<h3>Why so many tiles</h3><p>Each segment simulated on its own: nothing is loaded before it, nothing overlaps it. "
        "Beside what binds it, the next tile counts and why they lose, and its latency on more hardware. Heaviest first.</p>"
        + table(head, rows, label="why so many tiles", text=(3, 4, 5), wrapped=(4, 5))
    )


def _row(group: Sequence[Segment], changes: Sequence[str]) -> Sequence[str]:
    segment, why = group[0], group[0]["why"]
    latency, chosen = alone_ms(segment), int(segment["tile_count"])
    points = sorted(why.get("next_best", ()), key=lambda p: abs(int(p["tile_count"]) - chosen))
    levers = {str(p["change"]): p for p in why.get("levers", ())}
    return (
        named(group, ""), number(chosen, str(chosen)), number(latency, f"{latency:.4f}"), escape(str(why["bound_by"])),
        _alternatives([p for p in points if p["tile_count"] < chosen], latency),
        _alternatives([p for p in points if p["tile_count"] > chosen], latency),
        *(against(levers[c]["latency_ms"], latency) if c in levers else "–" for c in changes),
    )  # fmt: skip


def alone_ms(segment: Segment) -> float:
    """Latency of a segment on its own, where it was simulated so; else in the run."""
    return float(segment["why"].get("alone_ms", segment["latency_ms"]))


def _alternatives(points: Sequence[Mapping[str, Any]], latency_ms: float) -> str:
    """The nearest tile count with what it costs and why; the others folded."""
    if not points:
        return '<span class="quiet">–</span>'
    first, *others = (_alternative(p, latency_ms) for p in points)
    if not others:
        return first
    lines = "".join(f"<li>{line}</li>" for line in others)
    return f'{first}<details class="like"><summary>{len(others)} more</summary><ul>{lines}</ul></details>'


def _alternative(point: Mapping[str, Any], latency_ms: float) -> str:
    reason = f'<span class="quiet">{escape(str(point["reason"]))}</span>'
    return f"<b>{point['tile_count']}</b>: {against(point['latency_ms'], latency_ms)}, {reason}"


def against(found_ms: float | None, base_ms: float) -> str:
    """HTML: how much longer or shorter than `base_ms`, in percent, with the latency beside it; None does not fit."""
    if found_ms is None:
        return "does not fit"
    change = float(found_ms) / base_ms - 1 if base_ms else 0.0
    if abs(change) < LEAST_CHANGE:
        return number(found_ms, "±0 %")
    kind = "worse" if change > 0 else "better"
    sign = "+" if change > 0 else "−"
    return f'<span class="{kind}">{number(found_ms, f"{sign}{100 * abs(change):.1f} %")}</span>'
