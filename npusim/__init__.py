"""npusim: how fast a network runs on a described NPU, where the time goes, and whether it stays right."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npusim.api import Comparison, Infeasible, Profile, load_graph, profile

__version__ = "0.1.0"
__all__ = ["Comparison", "Infeasible", "Profile", "load_graph", "profile"]


def __getattr__(name: str) -> Any:
    """Names of the API, imported when they are first asked for (PEP 562)."""
    if name in __all__:
        return getattr(import_module("npusim.api"), name)
    raise AttributeError(f"module 'npusim' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
