"""The gate: keeps DRAM cost and latency from creeping up, and names the segments to blame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npusim.errors import BadInputError
from npusim.run_directory import load_summary
from npusim.units import format_bytes

if TYPE_CHECKING:
    from npusim.results import Profile

Summary = Mapping[str, Any]

#: What must be the same in a run and its baseline.
COMPARABLE = ("model", "npu", "precision", "policy")
#: What a baseline keeps of `summary.json`.
BASELINE_KEYS = (
    "schema_version", "model", "npu", "tiles", "segments_kinds", "precision", "policy", "latency_ms", "dram_read_bytes",
    "dram_write_bytes", "spill_bytes", "peak_sram_bytes",
)  # fmt: skip


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
        blame = _largest(_parts(summary, by_layer="layer_dram_bytes" in summary))
        found.append(
            Violation(what="DRAM bytes", found=dram_bytes(summary), allowed=max_dram_bytes, blame=blame)
        )
    if max_latency_ms is not None and summary["latency_ms"] > max_latency_ms:
        blame = _slowest({s["name"]: s["latency_ms"] for s in summary["segments"]})
        found.append(
            Violation(what="latency", found=summary["latency_ms"], allowed=max_latency_ms, blame=blame)
        )
    return found


def check_baseline(summary: Summary, baseline: Summary, *, tolerance_percent: float) -> list[Violation]:
    """A run against an earlier one of the same model on the same hardware.

    Raises:
        BadInputError: the two are not comparable.
    """
    try:
        return _worse(summary, baseline, 1 + tolerance_percent / 100)
    except (KeyError, TypeError) as error:
        raise BadInputError(
            f"the baseline lacks {error}; write it again with this version of npusim"
        ) from error


def _worse(summary: Summary, baseline: Summary, factor: float) -> list[Violation]:
    for key in COMPARABLE:
        if key in baseline and summary[key] != baseline[key]:
            raise BadInputError(
                f"the baseline is of another {key} ('{baseline[key]}', the run has '{summary[key]}'); "
                "give the summary of a comparable run"
            )
    found = []
    if dram_bytes(summary) > dram_bytes(baseline) * factor:
        grown = _growth(summary, baseline)
        found.append(
            Violation(
                what="DRAM bytes", found=dram_bytes(summary), allowed=dram_bytes(baseline) * factor, blame=_largest(grown)
            )
        )  # fmt: skip
    if summary["latency_ms"] > baseline["latency_ms"] * factor:
        before = {s["name"]: s["latency_ms"] for s in baseline["segments"]}
        slower = {s["name"]: s["latency_ms"] - before.get(s["name"], 0.0) for s in summary["segments"]}
        found.append(
            Violation(
                what="latency", found=summary["latency_ms"], allowed=baseline["latency_ms"] * factor, blame=_slowest(slower)
            )
        )  # fmt: skip
    return found


def baseline_of(profile: Profile) -> dict[str, Any]:
    """What a committed baseline holds: a part of `summary.json`, and the DRAM bytes of every layer that moves any.

    It is a file that `npusim check --baseline` takes, and small enough that its diff can be reviewed.
    """
    summary = profile.summary
    return {
        **{key: summary[key] for key in BASELINE_KEYS},
        "segments": [{k: s[k] for k in ("name", "layers", "latency_ms", "dram_bytes")} for s in summary["segments"]],
        "layer_dram_bytes": summary["layer_dram_bytes"],
    }  # fmt: skip


def load_cost(path: Path) -> dict[str, Any]:
    """The summary of a run directory, a `summary.json` or a baseline. Of a pipeline's run the parts to blame are its networks.

    Raises:
        OutputError: no summary of ours.
    """
    summary = load_summary(path)
    if summary.get("kind") == "pipeline":
        parts = [
            {"name": n["name"], "layers": [], "latency_ms": n["total_ms"], "dram_bytes": n["dram_read_bytes"] + n["dram_write_bytes"]}
            for n in summary["networks"]
        ]  # fmt: skip
        return {**summary, "segments": parts}
    return summary


def cost_figures(summary: Summary) -> dict[str, float | int | str]:
    """The figures of a run that benchmarks and test reports carry, by name."""
    kept = ("model", "npu", "latency_ms", "serial_latency_ms", "spill_bytes", "peak_sram_bytes", "energy_mj")
    return {"npusim_dram_bytes": dram_bytes(summary), **{f"npusim_{key}": summary[key] for key in kept}}


def saving(summary: Summary, baseline: Summary) -> str:
    """How much cheaper a run is than its baseline, in words; empty if it is not."""
    pairs = (
        ("DRAM bytes", dram_bytes(baseline), dram_bytes(summary)),
        ("latency", baseline["latency_ms"], summary["latency_ms"]),
    )
    found = [f"{what} {100 * (1 - now / before):.2f} % lower" for what, before, now in pairs if now < before]
    return ", ".join(found)


def _growth(summary: Summary, baseline: Summary) -> dict[str, int]:
    """More DRAM bytes than in the baseline, by part."""
    by_layer = all("layer_dram_bytes" in run for run in (summary, baseline))
    before, after = (_parts(run, by_layer=by_layer) for run in (baseline, summary))
    return {name: after.get(name, 0) - before.get(name, 0) for name in {**before, **after}}


def _parts(run: Summary, *, by_layer: bool) -> dict[str, int]:
    """DRAM bytes of every segment, and of what lies outside: layer by layer, or as one entry."""
    segments = {s["name"]: int(s["dram_bytes"]) for s in run["segments"]}
    if not by_layer:
        return {**segments, "layers outside segments": dram_bytes(run) - sum(segments.values())}
    inside = {name for segment in run["segments"] for name in segment["layers"]}
    return {
        **segments,
        **{name: size for name, size in run["layer_dram_bytes"].items() if name not in inside},
    }


def _largest(sizes: Mapping[str, int]) -> tuple[str, ...]:
    names = sorted((n for n in sizes if sizes[n] > 0), key=lambda n: (-sizes[n], n))[:3]
    return tuple(f"{name} {format_bytes(sizes[name])}" for name in names)


def _slowest(times_ms: Mapping[str, float]) -> tuple[str, ...]:
    names = sorted((n for n in times_ms if times_ms[n] > 0), key=lambda n: (-times_ms[n], n))[:3]
    return tuple(f"{name} {times_ms[name]:.3f} ms" for name in names)
