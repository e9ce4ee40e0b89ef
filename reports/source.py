"""What a report is drawn from: anything that has these attributes (`npusim.api.Profile` has)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from npusim.cost import Work
from npusim.graph import Graph
from npusim.plan import Plan
from npusim.program import Program
from npusim.trace import Trace


class Simulated(Protocol):
    """A planned and simulated deployment."""

    @property
    def graph(self) -> Graph:
        """The network's layers."""

    @property
    def plan(self) -> Plan:
        """The decisions."""

    @property
    def program(self) -> Program:
        """The command stream."""

    @property
    def traces(self) -> Mapping[str, Trace]:
        """Simulated runs, by policy."""

    @property
    def work(self) -> Work:
        """What each command asks of the hardware."""


class Profiled(Simulated, Protocol):
    """The same with its figures: the input of every figure and of the page."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """The figures of `summary.json`."""


def planned_trace(profile: Simulated) -> Trace:
    """The run under the planned policy."""
    return profile.traces[profile.plan.options.policy]
