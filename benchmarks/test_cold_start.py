"""Cold start of the command line against the bare imports it cannot do without: run with `make bench`.

Machines differ, ratios less: each benchmark's `extra_info` holds the ratio of medians and the peak memory.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

IMPORTS = (sys.executable, "-c", "import numpy, networkx, simpy, onnx")
NPUSIM = (str(Path(sys.executable).with_name("npusim")),)
#: Ratio to the bare imports that is asked of `profile --tiles auto`, and peak memory in MiB.
ASKED = {"bk-sdm-tiny": 9.5, "sd-v1.5": 16.0, "sdxl": 38.0}
MEMORY_MIB = 400


def run(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """(seconds, peak MiB of all children so far) of one run."""
    started = time.perf_counter()
    subprocess.run(
        command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "100"}
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return time.perf_counter() - started, peak


def ratio(command: Sequence[str], folder: Path, rounds: int = 5) -> tuple[float, float]:
    """Median of the ratios of pairs run in turn, and the peak memory."""
    ratios = []
    peak = 0.0
    for _ in range(rounds):
        bare, _ = run(IMPORTS, folder)
        mine, peak = run(command, folder)
        ratios.append(mine / bare)
    return statistics.median(ratios), peak


@pytest.mark.parametrize("model", sorted(ASKED))
def test_profile_cold(model: str, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    command = (*NPUSIM, "profile", model, "--tiles", "auto")
    found, peak = ratio(command, tmp_path, rounds=3)
    benchmark.extra_info.update(ratio=round(found, 2), asked=ASKED[model], peak_mib=round(peak))
    benchmark.pedantic(run, args=(command, tmp_path), rounds=2)
    sys.stderr.write(f"\n{model}: {found:.1f} x the bare imports (asked: {ASKED[model]}), {peak:.0f} MiB\n")


def test_help(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(run, args=((*NPUSIM, "--help"), tmp_path), rounds=3)
