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

import onnx
import pytest
from onnx import compose
from pytest_benchmark.fixture import BenchmarkFixture

from npusim.models import zoo

IMPORTS = (sys.executable, "-c", "import numpy, networkx, simpy, onnx")
NPUSIM = (str(Path(sys.executable).with_name("npusim")),)
#: Ratio to the bare imports that is asked of `profile --tiles auto`, and peak memory in MiB.
ASKED = {"bk-sdm-tiny": 9.5, "sd-v1.5": 16.0, "sdxl": 38.0}
MEMORY_MIB = 400
#: What planning a network whose every block comes twice may cost, against the network itself.
DOUBLED = 1.3


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


def twice(model: str, path: Path) -> None:
    """A zoo network applied to its own output: every block comes twice, with weights of its own."""
    whole = onnx.load_from_string(zoo.graph_bytes(model))
    first, second = (compose.add_prefix(whole, prefix) for prefix in ("first/", "second/"))
    handed = second.graph.input[0].name
    for node in second.graph.node:
        for index, name in enumerate(node.input):
            if name == handed:
                node.input[index] = first.graph.output[0].name
    graph = first.graph
    graph.node.extend(second.graph.node)
    graph.initializer.extend(second.graph.initializer)
    graph.input.extend(second.graph.input[1:])
    del graph.output[:]
    graph.output.extend(second.graph.output)
    path.write_bytes(first.SerializeToString())


def cpu_seconds(command: Sequence[str], folder: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(command, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_network_with_its_blocks_doubled(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """Structure that repeats is planned once: the ratio of processor times, whole command lines in turn."""
    path = tmp_path / "twice.onnx"
    twice("bk-sdm-tiny", path)
    single, double = ((*NPUSIM, "profile", model) for model in ("bk-sdm-tiny", str(path)))
    ratios = [cpu_seconds(double, tmp_path) / cpu_seconds(single, tmp_path) for _ in range(5)]
    found = statistics.median(ratios)
    benchmark.extra_info.update(ratio=round(found, 2), asked=DOUBLED)
    benchmark.pedantic(run, args=(double, tmp_path), rounds=1)
    sys.stderr.write(f"\nblocks doubled: {found:.2f} x (asked: {DOUBLED})\n")


def test_profile_pipeline_cold(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """A whole picture: three networks, asked within 40 times the bare imports and 600 MiB."""
    command = (*NPUSIM, "profile", "edgefusion.toml")
    found, peak = ratio(command, tmp_path, rounds=3)
    benchmark.extra_info.update(ratio=round(found, 2), asked=40.0, peak_mib=round(peak))
    benchmark.pedantic(run, args=(command, tmp_path), rounds=2)
    sys.stderr.write(f"\nedgefusion.toml: {found:.1f} x the bare imports (asked: 40), {peak:.0f} MiB\n")


def test_help(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(run, args=((*NPUSIM, "--help"), tmp_path), rounds=3)
