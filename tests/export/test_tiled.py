"""`onnx-tiled`: the graph that is written tile by tile computes what the network computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from npusim.errors import ExportError
from npusim.execute.measure import closeness
from npusim.export.registry import export

from .conftest import NETWORKS, Case, run_models

#: Little SRAM and several tiles: many pieces.
SMALL = {"precision": "fp32", "tiles": "4", "sram_bytes": 16384}


@pytest.mark.parametrize("name", ["unet", *NETWORKS])
def test_every_kind_of_layer_in_pieces_is_within_1e_5_of_the_network(
    cases: Callable[..., Case], tmp_path: Path, name: str
) -> None:
    case = cases(name, **SMALL)
    found = _run(case, tmp_path)
    for output, values in found.items():
        assert closeness(values, case.reference[output]).relative_error < 1e-5


def _run(case: Case, folder: Path) -> dict[str, Any]:
    from npusim.deployment import run_onnxruntime

    export(case.source, "onnx-tiled", folder / "t.onnx")
    onnx.checker.check_model(str(folder / "t.onnx"), full_check=True)
    return run_onnxruntime(folder / "t.onnx", case.inputs)


@pytest.mark.parametrize("name", ["conv_silu_conv", "grouped", "resize_pool", "rearranged"])
def test_convolution_and_elementwise_chains_are_bit_identical(
    cases: Callable[..., Case], tmp_path: Path, name: str
) -> None:
    """Without the runtime's own fusions, which differ between a whole network and its pieces."""
    import sys

    case = cases(name, precision="fp32", tiles="none", sram_bytes=8192)
    export(case.source, "onnx-tiled", tmp_path / "tiled.onnx")
    (tmp_path / "whole.onnx").write_bytes(case.model.read_bytes())
    for model in ("tiled", "whole"):
        np.savez(tmp_path / f"{model}.npz", **case.inputs)
    found = run_models(Path(sys.executable), tmp_path, "basic")
    for output, values in found["whole"].items():
        np.testing.assert_array_equal(found["tiled"][output], values)


def test_nodes_are_named_after_layer_and_tile_and_every_tile_of_the_plan_is_there(
    cases: Callable[..., Case], tmp_path: Path
) -> None:
    case = cases("self_attention", **SMALL)
    export(case.source, "onnx-tiled", tmp_path / "t.onnx")
    graph = onnx.load(tmp_path / "t.onnx").graph
    segment = case.source.plan.segments[0]
    for layer in segment.layers:
        tiles = {int(m[1]) for n in graph.node if (m := re.match(re.escape(layer) + r"#tile(\d+)/", n.name))}
        assert tiles == set(range(segment.tile_count))


def test_a_file_says_which_model_plan_and_program_it_was_made_from(
    cases: Callable[..., Case], tmp_path: Path
) -> None:
    case = cases("geglu", **SMALL)
    export(case.source, "onnx-tiled", tmp_path / "t.onnx")
    props = {p.key: p.value for p in onnx.load(tmp_path / "t.onnx").metadata_props}
    assert props["npusim.target"] == "onnx-tiled"
    assert props["npusim.program_sha256"] == case.source.plan.program_sha256
    assert props["npusim.model_sha256"] == case.source.graph.model_sha256
    assert len(props["npusim.plan_sha256"]) == 64


@pytest.mark.parametrize("target", ["onnx-tiled", "onnx-qdq", "encodings", "trace", "csv"])
def test_the_same_deployment_gives_the_same_bytes(
    cases: Callable[..., Case], tmp_path: Path, target: str
) -> None:
    case = cases("unet")
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        files, _ = export(case.source, target, folder / f"x{_SUFFIX.get(target, '.onnx')}")
        written.append({f.name: f.read_bytes() for f in files})
    assert written[0] == written[1]


_SUFFIX = {"trace": ".json.gz", "csv": ".csv", "encodings": ".encodings"}


def test_large_constants_go_into_a_file_beside_the_model(
    cases: Callable[..., Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from npusim.export import targets

    monkeypatch.setattr(targets, "EXTERNAL_BYTES", 0)
    case = cases("unet", **SMALL)
    files, _ = export(case.source, "onnx-tiled", tmp_path / "t.onnx")
    assert [f.name for f in files] == ["t.onnx.data", "t.onnx"]
    found = _run(case, tmp_path)
    for output, values in found.items():
        assert closeness(values, case.reference[output]).relative_error < 1e-5


def test_a_layer_that_onnx_cannot_say_is_refused_by_name(
    cases: Callable[..., Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from npusim.export import onnx_functions

    case = cases("grouped", **SMALL)
    monkeypatch.setattr(
        onnx_functions, "UNARY", {k: v for k, v in onnx_functions.UNARY.items() if k != "clip"}
    )
    with pytest.raises(ExportError, match="'clip' has no spelling in ONNX"):
        export(case.source, "onnx-tiled", tmp_path / "t.onnx")
    assert not list(tmp_path.iterdir())


def test_every_function_that_the_executor_runs_can_be_written() -> None:
    from npusim.execute import functions
    from npusim.export import onnx_functions

    assert set(functions.UNARY) == set(onnx_functions.UNARY)
    assert set(functions.BINARY) == set(onnx_functions.BINARY)
