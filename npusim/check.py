"""The gate: keeps DRAM cost and latency from creeping up, and names the segments to blame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from npusim.errors import BadInputError
from npusim.units import format_bytes

Summary = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One limit that does not hold: what, found against allowed, and who contributes most."""

    what: str
    found: float
    allowed: float
    blame: tuple[str, ...]

    def sentence(self) -> str:
        """The violation as people read it."""
        shown = [
            format_bytes(v) if "bytes" in self.what else f"{v:.3f} ms" for v in (self.found, self.allowed)
        ]
        cause = f"; most of it: {', '.join(self.blame)}" if self.blame else ""
        return f"{self.what}: {shown[0]}, allowed are {shown[1]}{cause}"


def dram_bytes(summary: Summary) -> int:
    """Bytes read and written."""
    return int(summary["dram_read_bytes"]) + int(summary["dram_write_bytes"])


def check_limits(
    summary: Summary, *, max_dram_bytes: int | None, max_latency_ms: float | None
) -> list[Violation]:
    """Absolute limits on one run."""
    found = []
    if max_dram_bytes is not None and dram_bytes(summary) > max_dram_bytes:
        blame = _largest({s["name"]: s["dram_bytes"] for s in summary["segments"]})
        found.append(
            Violation(what="DRAM bytes", found=dram_bytes(summary), allowed=max_dram_bytes, blame=blame)
        )
    if max_latency_ms is not None and summary["latency_ms"] > max_latency_ms:
        slow = {s["name"]: s["latency_ms"] for s in summary["segments"]}
        blame = tuple(f"{name} {slow[name]:.3f} ms" for name in sorted(slow, key=lambda n: -slow[n])[:3])
        found.append(
            Violation(what="latency", found=summary["latency_ms"], allowed=max_latency_ms, blame=blame)
        )
    return found


def check_baseline(summary: Summary, baseline: Summary, *, tolerance_percent: float) -> list[Violation]:
    """A run against an earlier one of the same model on the same hardware.

    Raises:
        BadInputError: the two are not comparable.
    """
    for key in ("model", "npu", "precision"):
        if summary[key] != baseline[key]:
            raise BadInputError(
                f"the baseline is of another {key} ('{baseline[key]}', the run has '{summary[key]}'); "
                "give the summary of a comparable run"
            )
    factor = 1 + tolerance_percent / 100
    found = []
    if dram_bytes(summary) > dram_bytes(baseline) * factor:
        grown = _growth(summary, baseline)
        found.append(
            Violation(
                what="DRAM bytes", found=dram_bytes(summary), allowed=dram_bytes(baseline) * factor, blame=_largest(grown)
            )
        )  # fmt: skip
    if summary["latency_ms"] > baseline["latency_ms"] * factor:
        found.append(
            Violation(
                what="latency", found=summary["latency_ms"], allowed=baseline["latency_ms"] * factor, blame=()
            )
        )
    return found


def _growth(summary: Summary, baseline: Summary) -> dict[str, int]:
    """More DRAM bytes per segment than in the baseline; what lies outside segments is one entry."""
    before = {s["name"]: s["dram_bytes"] for s in baseline["segments"]}
    after = {s["name"]: s["dram_bytes"] for s in summary["segments"]}
    grown = {name: after.get(name, 0) - before.get(name, 0) for name in {**before, **after}}
    outside = (dram_bytes(summary) - sum(after.values())) - (dram_bytes(baseline) - sum(before.values()))
    return {**grown, "layers outside segments": outside}


def _largest(sizes: Mapping[str, int]) -> tuple[str, ...]:
    names = sorted((n for n in sizes if sizes[n] > 0), key=lambda n: (-sizes[n], n))[:3]
    return tuple(f"{name} {format_bytes(sizes[name])}" for name in names)
