"""What a verified run found, kept beside its plan (`verify.json`) and shown on its page."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from npusim.cost import Work
from npusim.deployment import Deployment, RunResult
from npusim.execute.measure import Closeness
from npusim.files import write_aside
from npusim.reports.page import write_report
from npusim.results import Profile
from npusim.run_directory import REPORT, VERIFIED, dump_json, load_summary
from npusim.simulate import simulate

SCHEMA = 1


def record(directory: Path, result: RunResult) -> None:
    """Write `verify.json` into a run directory, and its page anew with the quantization error.

    Raises:
        OutputError: the directory lacks its summary, or cannot be written.
    """
    found = as_json(result)
    profile = simulated(result.deployment, load_summary(directory))
    write_aside(directory / VERIFIED, lambda path: _write(path, dump_json(found)))
    write_aside(directory / REPORT, lambda path: write_report(profile, path, found))


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def as_json(result: RunResult) -> dict[str, Any]:
    """A verified run as `verify.json` holds it; a ratio that is infinite (equal to FP32) is null."""
    return {
        "schema_version": SCHEMA,
        "precision": result.deployment.plan.options.precision,
        "notes": list(result.notes),
        "outputs": {name: _close(x) for name, x in result.closeness.items()},
        "layers": [
            {"name": x.name, "op": x.op, **_close(x.closeness), "own_noise_db": _finite(x.own_noise_db)} for x in result.layers
        ],
    }  # fmt: skip


def _close(x: Closeness) -> dict[str, float | None]:
    return {
        "sqnr_db": _finite(x.sqnr_db), "cosine": x.cosine, "max_error": x.max_error, "relative_error": x.relative_error,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def simulated(deployment: Deployment, summary: Mapping[str, Any]) -> Profile:
    """The profile of a run directory, simulated again: what its page was drawn from."""
    npu, program = deployment.plan.npu, deployment.program
    work = Work(program, npu)
    traces = {
        "serial": simulate(program, npu, "serial", work=work),
        "decoupled": simulate(program, npu, "decoupled", work=work),
    }
    return Profile(
        graph=deployment.graph,
        plan=deployment.plan,
        program=program,
        traces=traces,
        work=work,
        summary=summary,
    )
