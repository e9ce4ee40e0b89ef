"""The headline: what one looks for first, each figure with a bar that says what it is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from npusim.cost import energy_pj
from npusim.reports.events import CATEGORY, categories
from npusim.reports.hints import critical_by_category
from npusim.reports.layers import LayerFigures
from npusim.reports.markup import Part, bar, card, number, section, table
from npusim.reports.source import Profiled
from npusim.reports.theme import ACCENT, CATEGORIES, ENERGY
from npusim.units import PS_PER_MS, format_bytes, format_mib

#: What sets the lower bound (`bound_by` of the summary), in words.
BOUNDS = {"tensor": "tensor engines", "vector": "vector engines", "dram": "DRAM bandwidth"}


def headline(profile: Profiled, figures: LayerFigures) -> str:
    """The figures of the whole run, what they rest on, and every figure of the summary."""
    panels = (
        _latency_panel(profile, figures), _dram_panel(profile), _sram_panel(profile),
        _compute_panel(profile, figures), _energy_panel(profile),
    )  # fmt: skip
    notes = "".join(f"<li>{escape(a)}</li>" for a in profile.summary["assumptions"])
    return section(
        "headline", "Headline",
        f'<div class="panels">{"".join(panels)}</div><dl class="cards">{"".join(_cards(profile, figures))}</dl>'
        f'<h3>What the figures rest on</h3><ul class="hints">{notes}</ul>'
        f"<details><summary>Every figure of summary.json</summary>{_all_figures(profile.summary)}</details>",
    )  # fmt: skip


def _panel(label: str, figure: str, picture: str, note: str, *, wide: bool = False) -> str:
    kind = "panel wide" if wide else "panel"
    return f'<div class="{kind}"><h3>{escape(label)}</h3><p class="figure">{figure}</p>{picture}<p class="note">{note}</p></div>'


def _latency_panel(profile: Profiled, figures: LayerFigures) -> str:
    summary = profile.summary
    latency, bound, policy = float(summary["latency_ms"]), float(summary["lower_bound_ms"]), summary["policy"]
    held = sorted(critical_by_category(profile, figures).items(), key=lambda item: -item[1])
    total = max(1, sum(v for _, v in held))
    parts = [
        Part(f"{name} {v / PS_PER_MS:.3f} ms, {100 * v / total:.1f} %", v / total, CATEGORIES[name]) for name, v in held if v
    ]  # fmt: skip
    other = "serial" if policy == "decoupled" else "decoupled"
    other_ms = float(summary[f"{other}_latency_ms"])
    made_of = ", ".join(
        _keyed(CATEGORIES[n], f"{escape(n)} {100 * v / total:.0f} %") for n, v in held[:4] if v
    )
    by = (
        f", set by the {escape(BOUNDS.get(summary['bound_by'], summary['bound_by']))}"
        if summary.get("bound_by")
        else ""
    )
    above = f"{100 * (latency / bound - 1):.1f} % above the lower bound, " if bound else "lower bound "
    return _panel(
        f"latency, {policy} issue",
        f"{number(summary['latency_ms'], f'{latency:,.3f} ms')} <small>{number(other_ms, f'{other_ms:,.3f} ms')} {other}</small>",
        bar(parts, "what holds the critical path", mark=bound / latency if latency else None),
        f"Critical path: {made_of}.<br>{above}{number(bound, f'{bound:,.3f} ms')} (the mark){by}.",
        wide=True,
    )


def _keyed(colour: str, text: str) -> str:
    """HTML: a text with the colour that stands for it."""
    return f'<span class="keyed"><span class="swatch" style="background:{colour}"></span>{text}</span>'


def dram_by_category(profile: Profiled) -> dict[str, int]:
    """Category of transfers (a key of `theme.CATEGORIES`) -> DRAM bytes; they add up to those of the run."""
    moved = np.bincount(categories(profile.program), weights=profile.work.dram_bytes, minlength=len(CATEGORY))
    return {name: int(moved[i]) for name, i in CATEGORY.items() if name.startswith("DMA")}


def _dram_panel(profile: Profiled) -> str:
    summary = profile.summary
    read, written = int(summary["dram_read_bytes"]), int(summary["dram_write_bytes"])
    moved, bound = dram_by_category(profile), int(summary["dram_bound_bytes"])
    total = max(1, read + written)
    parts = [
        Part(f"{name}: {format_bytes(v)}", v / total, CATEGORIES[name]) for name, v in moved.items() if v
    ]
    spilled = number(summary["spill_bytes"], format_bytes(summary["spill_bytes"]))
    return _panel(
        "DRAM bytes", number(read + written, format_bytes(read + written)),
        bar(parts, "what crosses the DRAM", mark=bound / total),
        f"{_bytes(read)} read, {_bytes(written)} written; {_keyed(CATEGORIES['DMA: intermediates'], spilled)} of it are intermediates "
        f"that spilled. No order of the layers moves less than {_bytes(bound)} (the mark).",
    )  # fmt: skip


def _sram_panel(profile: Profiled) -> str:
    capacity = profile.plan.npu.sram.sram_bytes
    peak, average = int(profile.summary["peak_sram_bytes"]), float(profile.summary["sram_utilization"])
    rest = max(0.0, peak / capacity - average)
    parts = [
        Part("average", average, ACCENT),
        Part("peak", rest, "color-mix(in srgb, #0072B2 40%, transparent)"),
    ]
    return _panel(
        "SRAM, peak and average", number(peak, format_mib(peak)), bar(parts, "share of the SRAM in use: average, then peak"),
        f"{100 * peak / capacity:.1f} % of {format_mib(capacity)}; "
        f"{number(average, f'{100 * average:.1f} %')} on average over time.",
    )  # fmt: skip


def _compute_panel(profile: Profiled, figures: LayerFigures) -> str:
    latency, macs = float(profile.summary["latency_ms"]), int(profile.summary["macs"])
    use = float(figures.peak_s.sum()) * 1e3 / latency if latency else 0.0
    rate = macs / latency / 1e9 if latency else 0.0
    return _panel(
        "MAC utilization", number(use, f"{100 * use:.1f} %"),
        bar([Part("used", min(1.0, use), CATEGORIES["product with weights"])], "share of the multipliers' peak"),
        f"of the peak of all multipliers at the precision used: {number(macs, f'{macs / 1e9:,.2f} G')} "
        f"multiply-accumulates, {rate:.2f} T per second.",
    )  # fmt: skip


def _energy_panel(profile: Profiled) -> str:
    energy = energy_pj(profile.program, profile.plan.npu)
    total = max(1.0, float(sum(energy.values())))
    parts = [
        Part(f"{_part(k)}: {v / 1e9:.2f} mJ", v / total, ENERGY.get(k, "#8A8A8A")) for k, v in energy.items()
    ]
    made_of = ", ".join(
        _keyed(ENERGY.get(k, "#8A8A8A"), f"{escape(_part(k))} {v / 1e9:,.1f}") for k, v in energy.items()
    )
    shown = number(profile.summary["energy_mj"], f"{profile.summary['energy_mj']:,.1f} mJ")
    return _panel("energy", shown, bar(parts, "what the energy goes to"), f"mJ: {made_of}.")


def _part(key: str) -> str:
    return {"macs_pj": "products", "sram_pj": "SRAM", "dram_pj": "DRAM"}.get(key, key.removesuffix("_pj"))


def _cards(profile: Profiled, figures: LayerFigures) -> Sequence[str]:
    summary, coverage = profile.summary, profile.summary["coverage"]
    least = min(float(coverage[k]) for k in ("nodes", "macs", "bytes"))
    unknown = ", ".join(f"{op} ({len(names)})" for op, names in coverage["unmodelled"].items())
    return (
        card("bound by", escape(_bound_by(profile, figures)), "what holds most of the critical path"),
        card(
            "hand-over",
            number(summary["handover_ms"], f"{summary['handover_ms']:.3f} ms"),
            "between kinds of engines; may overlap",
        ),
        card("coverage", number(least, f"{100 * least:.1f} %"), escape(unknown or "every node is modelled")),
        card(
            "commands",
            number(len(profile.program), f"{len(profile.program):,}"),
            f"of {len(profile.program.layers):,} layers",
        ),
    )


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
