"""Exporters: a planned deployment as files for other tools. What a plugin needs is here: `Exporter`, `ExportSource`, `ExportError`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from npusim.errors import ExportError
from npusim.export.registry import Exporter

if TYPE_CHECKING:
    from npusim.export.source import ExportSource

__all__ = ["ExportError", "ExportSource", "Exporter"]


def __getattr__(name: str) -> Any:
    """`ExportSource` brings the whole core with it; it is imported when it is asked for."""
    if name != "ExportSource":
        raise AttributeError(f"module 'npusim.export' has no attribute {name!r}")
    from npusim.export.source import ExportSource

    return ExportSource
