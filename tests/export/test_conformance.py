"""ONNX's own node tests, written anew by the exporters and run by onnxruntime."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from npusim.api import Profile, load_graph, profile
from npusim.calibrate import seeded_inputs
from npusim.deployment import run_onnxruntime
from npusim.execute.measure import closeness
from npusim.execute.untiled import execute_untiled
from npusim.export.onnx_graph import GraphWriter
from npusim.export.onnx_numbers import FloatNumbers
from npusim.export.onnx_signature import Signature
from npusim.export.onnx_tiled import write_tiled
from npusim.export.onnx_whole import write_whole
from npusim.export.registry import export
from npusim.graph import Graph
from npusim.onnx_reader import read_onnx
from npusim.plan import Plan
from npusim.program import Program
from npusim.weights import open_weights

from .conftest import deployed

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
#: What the executor runs and the exporters do not write, with reasons.
LISTED = Path(__file__).with_name("conformance.txt")


def _conformance() -> Any:
    """The executor's harness, which lives beside its tests."""
    import sys

    path = Path(__file__).parents[1] / "execute" / "conformance.py"
    spec = importlib.util.spec_from_file_location("execute_conformance", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("tiled", [True, False], ids=["by pieces", "whole"])
def test_what_the_executor_runs_the_exporters_write(tiled: bool) -> None:
    conformance = _conformance()

    def compute(
        graph: Graph, plan: Plan, program: Program, model: Path, inputs: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        shapes = {w.name: list(w.shape) for w in graph.inputs if w.shape}
        signature = Signature({n: v.dtype for n, v in read_onnx(model, shapes=shapes).values.items()})
        with GraphWriter(opset=18) as writer:
            if tiled:
                write_tiled(graph, program, open_weights(model, graph), signature, writer)
            else:
                write_whole(graph, FloatNumbers(graph, open_weights(model, graph), writer), signature, writer)
            writer.save(model.with_name("written.onnx"), "test", {})
        return run_onnxruntime(model.with_name("written.onnx"), inputs)

    def names(path: Path) -> set[str]:
        return {line.split(":")[0] for line in path.read_text().splitlines() if line.startswith("test_")}

    outcomes = conformance.all_outcomes(compute)
    failed = {o.name: o.reason for o in outcomes if o.reason}
    unexpected = set(failed) - names(LISTED) - names(conformance.REPORT)
    assert not unexpected, {n: failed[n] for n in sorted(unexpected)}
    assert len(outcomes) - len(failed) >= 450


@pytest.mark.slow
@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet", "light_resnet50"])
def test_foreign_networks_are_what_they_were_tile_by_tile_and_quantized(name: str, tmp_path: Path) -> None:
    """Convolutional networks of the onnx package, which nobody here exported: their own inputs, the default hardware."""
    path = LIGHT / f"{name}.onnx"
    graph = load_graph(path)
    found = profile(graph)
    assert isinstance(found, Profile)
    inputs = next(seeded_inputs(graph))
    source = deployed(tmp_path / "run", found, path, inputs)
    export(source, "onnx-tiled", tmp_path / "t.onnx")
    export(source, "onnx-qdq", tmp_path / "q.onnx")
    ours = execute_untiled(graph, source.numbers, inputs)
    tiled, quantized = (run_onnxruntime(tmp_path / f"{t}.onnx", inputs) for t in "tq")
    for output, reference in run_onnxruntime(path, inputs).items():
        assert closeness(tiled[output], reference).relative_error < 1e-5
        lost, expected = (closeness(v[output], reference).sqnr_db for v in (quantized, ours))
        assert abs(lost - expected) < 0.2
