"""npusim: how fast a network runs on a described NPU, where the time goes, and whether it stays right."""

from __future__ import annotations

__version__ = "0.1.0"
