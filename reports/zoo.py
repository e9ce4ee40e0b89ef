"""The page of `npusim models compare`: latency against parameters, and the tables behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from npusim.reports.markup import embed, fill, number, plot, section, table
from npusim.reports.theme import ACCENT, LIMIT, Figure, layout, plain
from npusim.units import format_bytes, format_mib


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooRow:
    """One network: figures per evaluation (and per image at its own steps and guidance), by tiling rule.

    Attributes:
        coverage: share of nodes modelled.
        latency_ms, dram_bytes, peak_sram_bytes, energy_mj: one figure per rule of the rules compared; latency under `decoupled`.
    """

    name: str
    parameters: int
    macs: int
    precision: str
    evaluations: int
    inferred: bool
    coverage: float
    latency_ms: tuple[float, ...]
    dram_bytes: tuple[int, ...]
    peak_sram_bytes: tuple[int, ...]
    energy_mj: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemRow:
    """One system of Table 1: a zoo network with that system's steps and guidance."""

    name: str
    network: str
    steps: int
    guidance: bool
    published: str
    image_ms: tuple[float, ...]
    notes: str


def write_zoo_page(rows: Sequence[ZooRow], systems: Sequence[SystemRow], npu: str, path: Path) -> None:
    """Write one HTML file that works offline."""
    values = {
        "title": f"The zoo on {escape(npu)}",
        "subtitle": "One evaluation of each network, without tiling and with the paper's rule, under the decoupled policy.",
        "sections": "\n".join((
            section("figure", "Latency against parameters", plot("zoo-plot", "Latency of one evaluation against parameters")),
            section("networks", "Networks", _networks(rows)),
            section("systems", "Systems of Table 1", _systems(systems)),
        )),
        "data": embed({"zoo-plot": zoo_figure(rows)}),
    }  # fmt: skip
    path.write_text(fill("plain.html", ("figures.js",), values), "utf-8")


def zoo_figure(rows: Sequence[ZooRow]) -> Figure:
    """Plotly figure: latency of one evaluation over parameters, both logarithmic, one dot per network and rule."""
    drawn = layout(x="parameters (millions)", y="latency of one evaluation (ms)", height=520)
    drawn["xaxis"] |= {"type": "log"}
    drawn["yaxis"] |= {"type": "log"}
    traces = [
        {
            "type": "scatter", "mode": "markers+text" if rule else "markers", "name": name,
            "x": [r.parameters / 1e6 for r in rows], "y": [r.latency_ms[rule] for r in rows],
            "text": [plain(r.name) for r in rows], "textposition": _label_places(rows),
            "marker": {"size": 11, "color": colour, "symbol": symbol},
            "hovertemplate": "%{text}<br>%{x:,.1f} M parameters<br>%{y:,.1f} ms<extra>" + name + "</extra>",
        }
        for rule, name, colour, symbol in ((0, "without tiling", LIMIT, "circle-open"), (1, "the paper's rule", ACCENT, "circle"))
    ]  # fmt: skip
    return {"data": traces, "layout": drawn}


def _label_places(rows: Sequence[ZooRow]) -> list[str]:
    """Where each dot's name stands: by rank of size in turn below, right, above and left, so that neighbours keep apart."""
    places = ("bottom center", "middle right", "top center", "middle left")
    order = sorted(range(len(rows)), key=lambda i: (rows[i].parameters, rows[i].name))
    rank = {index: position for position, index in enumerate(order)}
    return [places[rank[i] % len(places)] for i in range(len(rows))]


def _networks(rows: Sequence[ZooRow]) -> str:
    head = (
        "network",
        "parameters",
        "GMAC",
        "ms, none",
        "ms, tiled",
        "DRAM, none",
        "DRAM, tiled",
        "peak SRAM",
        "mJ, tiled",
        "s per image",
        "precision",
    )
    lines = (
        (
            escape(r.name) + (" (inferred)" if r.inferred else ""), number(r.parameters, f"{r.parameters / 1e6:,.1f} M"),
            number(r.macs, f"{r.macs / 1e9:,.1f}"), *(number(v, f"{v:,.1f}") for v in r.latency_ms),
            *(number(v, format_bytes(v)) for v in r.dram_bytes), number(r.peak_sram_bytes[1], format_mib(r.peak_sram_bytes[1])),
            number(r.energy_mj[1], f"{r.energy_mj[1]:,.0f}"),
            f"{r.latency_ms[1] * r.evaluations / 1000:,.2f}", escape(r.precision),
        )
        for r in rows
    )  # fmt: skip
    return table(head, lines, label="Networks")


def _systems(systems: Sequence[SystemRow]) -> str:
    head = ("system", "network", "steps", "published", "s, none", "s, tiled", "notes")
    lines = (
        (
            escape(s.name), escape(s.network), f"{s.steps} × 2" if s.guidance else str(s.steps), escape(s.published),
            *(f"{v / 1000:,.2f}" for v in s.image_ms), escape(s.notes),
        )
        for s in systems
    )  # fmt: skip
    return table(head, lines, label="Systems of Table 1, denoising network per image")
