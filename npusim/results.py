"""What a profile is from Python: typed figures, and pictures that a notebook shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from npusim.cost import Work
from npusim.files import write_aside
from npusim.graph import Graph
from npusim.plan import Plan
from npusim.program import Program
from npusim.reports import compare, layers, page
from npusim.reports.layers import LayerRow
from npusim.reports.markup import table
from npusim.run_directory import write_run
from npusim.trace import Trace
from npusim.units import MIB, format_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentResult:
    """Layers that run together tile by tile, and what they cost.

    Attributes:
        name, kind: the segment, and which kind it is of (`attention`, ...).
        layers: names, in execution order.
        tile_count: slices in all; `tiles` says how many along each axis.
        latency_ms: from the start of its first command to the end of its last.
        busy_ms: kind of engine -> time in which one of that kind works for it.
        dram_bytes: bytes across the DRAM bus.
        peak_sram_bytes: of its slots.
        tile_curve: the tile counts that were simulated, with what each costs.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    tile_count: int
    tiles: Mapping[str, int]
    latency_ms: float
    busy_ms: Mapping[str, float]
    dram_bytes: int
    peak_sram_bytes: int
    tile_curve: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A planned and simulated deployment.

    Attributes:
        graph: the network's layers.
        plan: the decisions.
        program: the command stream that the plan lowers to.
        traces: simulated runs, by policy (`serial`, `decoupled`).
        work: what each command asks of the hardware.
        summary: the figures of `summary.json`.
    """

    graph: Graph
    plan: Plan
    program: Program
    traces: Mapping[str, Trace]
    work: Work
    summary: Mapping[str, Any]

    @cached_property
    def trace(self) -> Trace:
        """The run under the planned policy."""
        return self.traces[self.plan.options.policy]

    @property
    def latency_ms(self) -> float:
        """Latency under the planned policy."""
        return float(self.summary["latency_ms"])

    @property
    def lower_bound_ms(self) -> float:
        """Latency that no plan on this hardware at this precision can beat."""
        return float(self.summary["lower_bound_ms"])

    @property
    def dram_bytes(self) -> int:
        """Bytes read from and written to DRAM."""
        return int(self.summary["dram_read_bytes"]) + int(self.summary["dram_write_bytes"])

    @property
    def spill_bytes(self) -> int:
        """Of these, bytes of intermediates."""
        return int(self.summary["spill_bytes"])

    @property
    def peak_sram_bytes(self) -> int:
        """Most SRAM in use at one time."""
        return int(self.summary["peak_sram_bytes"])

    @property
    def energy_mj(self) -> float:
        """Energy of one evaluation."""
        return float(self.summary["energy_mj"])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions, linear layers and attention products."""
        return int(self.summary["macs"])

    @cached_property
    def layers(self) -> tuple[LayerRow, ...]:
        """The layer table, in execution order."""
        return tuple(layers.layer_rows(self, layers.layer_figures(self)))

    @cached_property
    def segments(self) -> tuple[SegmentResult, ...]:
        """The segments, in execution order."""
        return tuple(_segment(s) for s in self.summary["segments"])

    @property
    def figures(self) -> Figures:
        """The pictures of this run, as plotly figures."""
        return Figures(self)

    def layers_csv(self) -> str:
        """The layer table as CSV text."""
        return layers.as_csv(self.layers)

    def save(self, directory: str | Path, *, images: str | None = None) -> Path:
        """Write the run directory: plan, summary, trace and report; with `images` (`png` or `svg`) also the figures.

        Raises:
            OutputError: the place holds something that is not a run of ours, or cannot be written.
        """
        write_run(self, Path(directory), images=images)
        return Path(directory)

    def compare(self, other: Profile) -> Comparison:
        """What changes from this run to another."""
        return Comparison(a=self, b=other)

    def _headline(self) -> list[tuple[str, str]]:
        s, capacity = self.summary, self.plan.npu.sram.sram_bytes
        return [
            ("latency", f"{s['decoupled_latency_ms']:.3f} ms decoupled, {s['serial_latency_ms']:.3f} ms serial"),
            ("lower bound", f"{self.lower_bound_ms:.3f} ms"),
            ("DRAM", f"{format_bytes(self.dram_bytes)}, of these {format_bytes(self.spill_bytes)} intermediates"),
            ("SRAM peak", f"{self.peak_sram_bytes / MIB:.2f} of {capacity / MIB:.2f} MiB"),
            ("energy", f"{self.energy_mj:.1f} mJ"),
        ]  # fmt: skip

    def _title(self) -> str:
        s = self.summary
        return f"{s['model']} on {s['npu']}, {s['precision']}, tiles {s['tiles']}, {s['policy']}"

    def __repr__(self) -> str:
        return f"<Profile of {self._title()}: {self.latency_ms:.3f} ms, {format_bytes(self.dram_bytes)} DRAM>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in self._headline())
        return f"<b>{escape(self._title())}</b><table>{rows}</table>"


class Figures(Mapping[str, "go.Figure"]):
    """Figures of a run by name; each is a `plotly.graph_objects.Figure`, which a notebook shows.

    Names: `timeline`, `sram`, `bandwidth`, `engines`, `roofline`, and `tiles: SEGMENT` for each segment with a curve.
    """

    def __init__(self, profile: Profile) -> None:
        self._described = page.figures(profile)

    def __getitem__(self, name: str) -> go.Figure:
        return page.figure(self._described[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)

    def __repr__(self) -> str:
        return f"<Figures: {', '.join(self)}>"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs: what got slower or heavier from `a` to `b`."""

    a: Profile
    b: Profile

    @cached_property
    def changes(self) -> tuple[compare.Change, ...]:
        """Figures that differ, what got worse first."""
        return tuple(compare.changes(self.a.summary, self.b.summary))

    def write(self, path: str | Path) -> Path:
        """Write the page that compares both runs."""
        write_aside(Path(path), lambda aside: compare.write_compare(self.a, self.b, aside))
        return Path(path)

    def __repr__(self) -> str:
        return f"<Comparison: {self.a.latency_ms:.3f} ms -> {self.b.latency_ms:.3f} ms, {len(self.changes)} changes>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the heaviest changes."""
        head = ("where", "figure", "A", "B", "change", "of the run's")
        rows = [compare.change_row(c) for c in sorted(self.changes, key=lambda c: -abs(c.share))[:20]]
        return table(head, rows, label="changes", numbers=2)


def _segment(s: Mapping[str, Any]) -> SegmentResult:
    return SegmentResult(
        name=s["name"], kind=s["kind"], layers=tuple(s["layers"]), tile_count=s["tile_count"], tiles=s["tiles"],
        latency_ms=s["latency_ms"], busy_ms=s["busy_ms"], dram_bytes=s["dram_bytes"], peak_sram_bytes=s["peak_sram_bytes"],
        tile_curve=cast("tuple[Mapping[str, Any], ...]", tuple(s["tile_curve"])),
    )  # fmt: skip
