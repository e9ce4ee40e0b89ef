"""One evaluation of BK-SDM-Tiny at full size by its Program, against onnxruntime in FP32, on two cores: run with `make bench`.

Both are timed in turn in one process; memory is measured in another one, without onnxruntime. To measure a model that is there
already: `python benchmarks/test_executor.py time w8a16 model.onnx`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

#: Most times onnxruntime's FP32 time, by precision, and most memory beside the weights.
ASKED = {"fp32": 4.0, "w8a16": 10.0}
MEMORY_BYTES = 2 * 10**9
CORES, ROUNDS = 2, 3

Evaluation = Callable[[], Mapping[str, Any]]


def evaluation(model: Path, precision: str) -> tuple[Evaluation, dict[str, Any]]:
    """One evaluation by the executor, ready to run, and its inputs."""
    from npusim.api import load_graph, profile
    from npusim.calibrate import choose_scales, measure_ranges, seeded_inputs
    from npusim.execute.formats import numbers_for
    from npusim.execute.run import execute
    from npusim.scheduler.problem import Infeasible
    from npusim.weights import open_weights

    graph = load_graph(model)
    inputs = next(seeded_inputs(graph))
    found = profile(graph, precision=precision)
    assert not isinstance(found, Infeasible)
    weights = open_weights(model, graph)
    scales = None
    if precision.startswith("w"):
        scales = choose_scales(graph, found.plan, measure_ranges(graph, weights, [inputs]))
    numbers = numbers_for(graph, found.plan, weights, scales)
    return lambda: execute(graph, found.plan, found.program, numbers, inputs), inputs


def onnxruntime_evaluation(model: Path, inputs: Mapping[str, Any]) -> Evaluation:
    """One evaluation by onnxruntime, with as many threads as cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(int64)": "int64", "tensor(float)": "float32"}
    feeds = {i.name: np.asarray(inputs[i.name], kinds[i.type]) for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    return lambda: dict(zip(names, session.run(names, feeds), strict=True))


def seconds(evaluate: Evaluation) -> float:
    """Wall time of one evaluation, after a pause in which threads of the other side fall asleep."""
    time.sleep(0.2)
    started = time.perf_counter()
    evaluate()
    return time.perf_counter() - started


def measure_time(model: Path, precision: str) -> dict[str, float]:
    """Least seconds of each side, of rounds in turn, and their ratio."""
    ours, inputs = evaluation(model, precision)
    theirs = onnxruntime_evaluation(model, inputs)
    theirs()
    rounds = [(seconds(theirs), seconds(ours)) for _ in range(ROUNDS)]
    reference, found = (min(side) for side in zip(*rounds, strict=True))
    return {"onnxruntime_s": reference, "executor_s": found, "ratio": found / reference}


def measure_memory(model: Path, precision: str) -> dict[str, float]:
    """Bytes of the weights' files, and peak bytes of a process that profiles, calibrates and evaluates."""
    evaluate, _ = evaluation(model, precision)
    evaluate()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = sum(p.stat().st_size for p in model.parent.glob(f"{model.name}*"))
    return {"weights_bytes": weights, "peak_bytes": peak, "beside_weights_bytes": peak - weights}


def measured(what: str, precision: str, model: Path) -> dict[str, float]:
    """What a process of its own, on two cores, finds."""
    command = [sys.executable, __file__, what, precision, str(model)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from npusim.models.checkpoints import build

    return build("bk-sdm-tiny", out=tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.mark.parametrize("precision", ASKED)
def test_one_evaluation(precision: str, model: Path, benchmark: BenchmarkFixture) -> None:
    found = benchmark.pedantic(measured, args=("time", precision, model), rounds=1)
    found |= measured("memory", precision, model)
    benchmark.extra_info.update({k: round(v, 2) for k, v in found.items()}, asked=ASKED[precision])
    sys.stderr.write(
        f"\n{precision}: {found['ratio']:.2f} x onnxruntime's {found['onnxruntime_s']:.2f} s (asked: {ASKED[precision]:g}), "
        f"{found['beside_weights_bytes'] / 1e9:.2f} GB beside the weights (asked: {MEMORY_BYTES / 1e9:g})\n"
    )


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))
    measure = {"time": measure_time, "memory": measure_memory}[sys.argv[1]]
    sys.stdout.write(json.dumps(measure(Path(sys.argv[3]), sys.argv[2])) + "\n")
