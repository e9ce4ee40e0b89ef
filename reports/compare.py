"""Two runs side by side: what got slower or heavier, both timelines on one axis, Table 6 row by row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from npusim.errors import OutputError
from npusim.program import TABLE6_ROLES
from npusim.reports.layers import layer_figures
from npusim.reports.markup import assemble, embed, named, number, path_name, section, table
from npusim.reports.page import PALETTE, report_data
from npusim.reports.sections import compare_timeline_section
from npusim.reports.segments import ROLE_TITLES, attention_shape
from npusim.reports.source import Profiled
from npusim.units import PS_PER_MS, format_bytes

#: Figures of the whole run: key of `summary.json` -> name for readers. The unit is the end of the key.
WHOLE = {
    "latency_ms": "latency", "serial_latency_ms": "latency, serial", "dram_read_bytes": "DRAM read",
    "dram_write_bytes": "DRAM written", "spill_bytes": "intermediates through DRAM", "peak_sram_bytes": "SRAM peak",
    "handover_ms": "hand-over", "energy_mj": "energy",
}  # fmt: skip
SHOWN_ROWS, SHOWN_SHARE = 40, 5e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure in both runs.

    Attributes:
        where: `the run`, or the name of a segment, an attention or a layer.
        what: the figure's name.
        unit: `ms`, `bytes` or `mj`.
        before, after: in that unit.
        share: the increase as a share of the same figure of the whole first run; rows are sorted by it.
    """

    where: str
    what: str
    unit: str
    before: float
    after: float
    share: float

    @property
    def increase(self) -> float:
        """After less before: positive is slower or heavier."""
        return self.after - self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two runs: its summary, and the data its page draws."""

    summary: Mapping[str, Any]
    data: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Model, hardware and what was asked for."""
        s = self.summary
        return f"{s['model']} on {s['npu']}, tiles {s['tiles']}, {s['precision']}, {s['policy']}"


def side(run: Profiled | Path) -> Side:
    """A profile, or a run directory, as one side of a comparison.

    Raises:
        OutputError: the directory lacks the summary or the report of a run.
    """
    if not isinstance(run, Path):
        return Side(summary=run.summary, data=report_data(run, layer_figures(run)))
    try:
        summary = json.loads((run / "summary.json").read_text("utf-8"))
        page = (run / "report.html").read_text("utf-8")
        found = re.search(r'<script type="application/json" id="report-data">([^<]*)</script>', page)
        data = json.loads(found[1]) if found else None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OutputError(f"{run}: holds no complete run ({error}); profile the model again") from error
    if not (isinstance(summary, dict) and isinstance(data, dict) and data.get("runs") and data.get("layers")):
        raise OutputError(f"{run}: report.html holds no data of a run; profile the model again")
    return Side(summary=summary, data=data)


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    """Every figure that two summaries have in common and that differs, what got worse first.

    Segments and attentions are matched by name; an attention's time is that of its block.
    """
    found = list(_whole(a, b))
    for where, before, after in _pairs(a["segments"], b["segments"]):
        found.append(
            _change(
                where, "segment's latency", "ms", before["latency_ms"], after["latency_ms"], a["latency_ms"]
            )
        )
        found.append(
            _change(where, "segment's DRAM", "bytes", before["dram_bytes"], after["dram_bytes"], _dram(a))
        )
    for where, before, after in _pairs(a["attention"], b["attention"]):
        found.append(
            _change(where, "attention's time", "ms", _block_ms(before), _block_ms(after), a["latency_ms"])
        )
        for role in TABLE6_ROLES:
            values = before["rows"][role], after["rows"][role]
            found.append(_change(where, f"attention: {ROLE_TITLES[role]}", "ms", *values, a["latency_ms"]))
    return sorted((c for c in found if c.increase), key=lambda c: -c.share)


def layer_changes(a: Side, b: Side) -> list[Change]:
    """The same for layers (matched by name): time on the critical path, and DRAM bytes."""
    found = []
    first, second = (dict(zip(s.data["layers"]["name"], range(10**9), strict=False)) for s in (a, b))
    columns_a, columns_b = a.data["layers"], b.data["layers"]
    for name in first.keys() & second.keys():
        i, j = first[name], second[name]
        times = (columns_a["critical_ps"][i] / PS_PER_MS, columns_b["critical_ps"][j] / PS_PER_MS)
        found.append(_change(name, "layer's latency", "ms", *times, a.summary["latency_ms"]))
        moved = (columns_a["dram_bytes"][i], columns_b["dram_bytes"][j])
        found.append(_change(name, "layer's DRAM", "bytes", *moved, _dram(a.summary)))
    return sorted((c for c in found if c.increase), key=lambda c: (-c.share, c.where, c.what))


def _whole(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    for key, name in WHOLE.items():
        if key in a and key in b:
            yield _change("the run", name, key.rpartition("_")[2], a[key], b[key], a[key])


def _change(where: str, what: str, unit: str, before: float, after: float, whole: float) -> Change:
    share = (after - before) / whole if whole else float(after > before)
    return Change(where=where, what=what, unit=unit, before=before, after=after, share=share)


def _pairs(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    others = {item["name"]: item for item in b}
    for item in a:
        if item["name"] in others:
            yield item["name"], item, others[item["name"]]


def _block_ms(block: Mapping[str, Any]) -> float:
    return float(sum(block["rows"].values()) + block["other_ms"])


def _dram(summary: Mapping[str, Any]) -> int:
    return int(summary["dram_read_bytes"]) + int(summary["dram_write_bytes"])


def write_compare(a: Profiled | Path, b: Profiled | Path, path: Path) -> None:
    """Write the page that compares two runs (profiles or run directories).

    Raises:
        OutputError: a directory holds no complete run.
    """
    path.write_text(compare_html(side(a), side(b)), "utf-8")


def compare_html(a: Side, b: Side) -> str:
    """The page, as text."""
    titles = (
        ("headline", "headline"),
        ("timeline", "timelines"),
        ("changes", "changes"),
        ("table6", "attention"),
    )
    return assemble({
        "title": "A and B, compared",
        "subtitle": f"A: {escape(a.title)}<br>B: {escape(b.title)}",
        "nav": "".join(f'<a href="#{name}">{title}</a>' for name, title in titles),
        "sections": "\n".join((
            _headline(a.summary, b.summary), compare_timeline_section(), _change_section(a, b),
            _table6(a.summary, b.summary),
        )),
        "data": embed({
            "palette": PALETTE, "runs": [a.data["runs"][0], b.data["runs"][0]], "layers": None, "figures": {}, "curves": [],
        }),
    })  # fmt: skip


def _headline(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    rows = [change_row(c)[1:] for c in _whole(a, b)]
    return section(
        "headline", "Headline", table(("figure", "A", "B", "change", "of A"), rows, label="whole run")
    )


def _change_section(a: Side, b: Side) -> str:
    found = sorted(changes(a.summary, b.summary) + layer_changes(a, b), key=lambda c: -c.share)
    inner = [c for c in found if c.where != "the run" and abs(c.share) >= SHOWN_SHARE]
    worse = alike_changes(c for c in inner if c.increase > 0)[:SHOWN_ROWS]
    better = alike_changes(c for c in reversed(inner) if c.increase < 0)[:SHOWN_ROWS]
    head = ("where", "figure", "A", "B", "change", "of the run's")
    body = "".join(
        f"<h3>{title}</h3>"
        + (table(head, map(_group_row, rows), label=title, numbers=2) if rows else "<p>Nothing.</p>")
        for title, rows in (("Slower or heavier", worse), ("Faster or lighter", better))
    )
    note = f'<p class="quiet">At most {SHOWN_ROWS} rows each; changes under {100 * SHOWN_SHARE} % of the run are left out.</p>'
    return section("changes", "What changed, the heaviest first", body + note)


def alike_changes(found: Iterable[Change]) -> list[list[Change]]:
    """Changes of the same figure by the same amount, together, in the order of their firsts."""
    groups: dict[tuple[str, float, float], list[Change]] = {}
    for change in found:
        groups.setdefault((change.what, change.before, change.after), []).append(change)
    return list(groups.values())


def _group_row(group: Sequence[Change]) -> Sequence[str]:
    return (named([{"name": change.where} for change in group], ""), *change_row(group[0])[1:])


def change_row(change: Change) -> Sequence[str]:
    """Cells of one change, as HTML."""
    kind = "worse" if change.increase > 0 else "better" if change.increase < 0 else ""
    sign = "+" if change.increase > 0 else "−" if change.increase < 0 else ""
    moved = f'<span class="{kind}">{sign}{_shown(abs(change.increase), change.unit)}</span>'
    return (
        path_name(change.where), escape(change.what), number(change.before, _shown(change.before, change.unit)),
        number(change.after, _shown(change.after, change.unit)), moved, f"{100 * change.share:+.2f} %".replace("-", "−"),
    )  # fmt: skip


def _shown(value: float, unit: str) -> str:
    return format_bytes(value) if unit == "bytes" else f"{value:.4f} {'mJ' if unit == 'mj' else unit}"


def _table6(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    head = ("attention", "run", *(ROLE_TITLES[r] for r in TABLE6_ROLES), "other", "block (ms)", "of A")
    alike: dict[str, list[tuple[Any, Any]]] = {}
    for _, before, after in _pairs(a["attention"], b["attention"]):
        key = repr([{k: v for k, v in block.items() if k != "name"} for block in (before, after)])
        alike.setdefault(key, []).append((before, after))
    rows = [row for blocks in alike.values() for row in _table6_rows(blocks)]
    if not rows:
        return section("table6", "Attention blocks (Table 6)", "<p>The runs share no attention.</p>")
    text = "<p>Each row as a percentage of the block's time in A, as in Table 6 of the EdgeFusion paper.</p>"
    return section(
        "table6", "Attention blocks (Table 6)", text + table(head, rows, label="Table 6 of both runs")
    )


def _table6_rows(blocks: Sequence[tuple[Any, Any]]) -> Iterator[Sequence[str]]:
    """Two lines, A and B, for blocks whose figures are the same."""
    before, after = blocks[0]
    whole = _block_ms(before)
    name = named([block for block, _ in blocks], attention_shape(before))
    for shown, run, block in ((name, "A", before), ("", "B", after)):
        values = [*(float(block["rows"][role]) for role in TABLE6_ROLES), float(block["other_ms"])]
        shares = [100 * value / whole if whole else 0.0 for value in values]
        cells = [
            number(v, f"{s:.1f}" if abs(s) >= 0.05 else "–") for v, s in zip(values, shares, strict=True)
        ]
        total = _block_ms(block)
        share = f"{100 * total / whole:.1f} %" if whole else "–"
        yield (shown, run, *cells, number(total, f"{total:.4f}"), share)
