"""A target of `npusim export`: how a compiler should cut each layer, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from npusim.export import Exporter, ExportError, ExportSource


def write(source: ExportSource, path: Path, options: Mapping[str, str]) -> tuple[str, ...]:
    """Write one hint per layer: its segment's tiles, or the rows and columns of its pieces."""
    segments = {name: s for s in source.plan.segments for name in s.layers}
    unknown = [layer.name for layer in source.graph.layers if layer.op == "unknown"]
    if unknown:
        raise ExportError(f"layer '{unknown[0]}': the target hints has no word for what npusim does not know")
    hints = {}
    for layer in source.plan.layers:
        if layer.name in segments:
            hints[layer.name] = {"tiles": dict(segments[layer.name].tiles)}
        elif layer.pieces is not None:
            hints[layer.name] = {"rows": layer.pieces.rows, "cols": layer.pieces.cols}
    indent = 2 if "pretty" in options else None
    path.write_text(json.dumps({"made_from": source.metadata, "hints": hints}, indent=indent) + "\n", "utf-8")
    return (f"{len(hints)} layers have hints",)


HINTS = Exporter(
    title="tiling hints for a compiler, JSON",
    suffix=".hints.json",
    carries="tiles of segments, rows and columns of pieces",
    loses="everything else: addresses, engines, precisions, times",
    write=write,
    flags={"pretty": "indented"},
)
