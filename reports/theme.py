"""Colours and wording shared by all figures. The palette is told apart by the colour-blind (after Okabe and Ito, 2008)."""

from __future__ import annotations

from typing import Any

#: Why a command runs, as the reader sees it: name -> colour. The order is that of the legend.
CATEGORIES: dict[str, str] = {
    "product with weights": "#009E73",
    "attention product": "#E69F00",
    "softmax": "#CC79A7",
    "normalization": "#7B5EA7",
    "other vector work": "#8A8A8A",
    "DMA: weights": "#0072B2",
    "DMA: inputs and outputs": "#56B4E9",
    "DMA: intermediates": "#D55E00",
}

#: What an engine does with its time: state -> colour.
STATES: dict[str, str] = {
    "busy": "#009E73",
    "waiting for DMA": "#D55E00",
    "waiting for a dependency": "#E69F00",
    "waiting for its turn": "#56B4E9",
    "idle": "rgba(128,128,128,0.3)",
}

#: What an SRAM address holds: kind of tensor -> colour.
KINDS: dict[str, str] = {
    "weight": "#0072B2",
    "input": "#009E73",
    "intermediate": "#DDBB66",
    "state": "#CC79A7",
    "output": "#D55E00",
}

#: What energy goes to: key of `cost.energy_pj` -> colour.
ENERGY: dict[str, str] = {
    "macs_pj": "#009E73",
    "vector_pj": "#CC79A7",
    "sram_pj": "#DDBB66",
    "dram_pj": "#D55E00",
}

ACCENT, LIMIT = "#0072B2", "#D55E00"

Figure = dict[str, Any]


def layout(*, x: str, y: str, height: int = 380, **more: Any) -> dict[str, Any]:
    """A layout with axis titles; colours of text and grid are set by the page, so that it can be light or dark."""
    base: dict[str, Any] = {
        "height": height,
        "margin": {"l": 60, "r": 16, "t": 12, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True},
    }
    return base | more


def plain(text: str) -> str:
    """A name as plotly shows it literally: its labels understand a little HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def block_of(scope: str, depth: int = 1) -> str:
    """The U-Net block of a module path: `down_blocks.0` (depth 1), `down_blocks.0.attentions.0` (depth 2)."""
    parts = scope.replace("/", ".").strip(".").split(".")
    kept: list[str] = []
    for part in parts:
        if len([p for p in kept if not p.isdigit()]) == depth and not part.isdigit():
            break
        kept.append(part)
    return ".".join(kept) or "(no module path)"
