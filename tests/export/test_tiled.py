"""`onnx-tiled`: the graph that is written tile by tile computes what the network computes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from npusim import api
from npusim.errors import ExportError
from npusim.execute.measure import closeness
from npusim.export.registry import export
from npusim.export.source import ExportSource

from .conftest import NETWORKS, Case, deployed, run_models

#: Little SRAM and several tiles: many pieces.
SMALL = {"precision": "fp32", "tiles": "4", "sram_bytes": 16384}
#: Less SRAM and no segments: more pieces.
PIECES = {"precision": "fp32", "tiles": "none", "sram_bytes": 8192}

#: The U-Net's largest images.
FULL_SIZE = (1, 320, 64, 64)


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


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        *((name, PIECES) for name in ("conv_silu_conv", "grouped", "resize_pool", "rearranged")),
        *((name, SMALL) for name in ("conv_silu_conv", "grouped", "resize_pool")),
    ],
)
def test_convolution_and_elementwise_chains_are_bit_identical(
    cases: Callable[..., Case], tmp_path: Path, name: str, plan: dict[str, Any]
) -> None:
    case = cases(name, **plan)
    assert [s.kind for s in case.source.plan.segments] == ([] if plan is PIECES else ["rows"])
    pairs = _whole_and_tiled(case.source, case.model, case.inputs, tmp_path)
    if name == "resize_pool" and plan is SMALL:  # a linear Resize in bands is written by its taps
        np.testing.assert_allclose(*pairs.pop(), rtol=0, atol=1e-6)
    for whole, tiled in pairs:
        np.testing.assert_array_equal(tiled, whole)


@pytest.mark.parametrize("tiles", ["none", "7", "16"])
def test_a_residual_block_of_full_size_is_bit_identical(net: Any, tmp_path: Path, tiles: str) -> None:
    """Convolution, SiLU, convolution, sum at the U-Net's largest size, on the default hardware: 128 pixels and more in a band, which
    the runtime's matrix product adds up in one order."""
    builder = net()
    x = builder.input("x", 1, 320, 64, 64)
    y = x
    for _ in range(2):
        weights = [builder.weight(320, 320, 3, 3), builder.weight(320)]
        y = builder.node("Conv", [y, *weights], FULL_SIZE, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        y = builder.node("Mul", [y, builder.node("Sigmoid", [y], FULL_SIZE)], FULL_SIZE)
    builder.output(builder.node("Add", [y, x], FULL_SIZE))
    _assert_bit_identical(builder, tmp_path, tiles, np.random.default_rng(3).standard_normal(FULL_SIZE))


@pytest.mark.parametrize("tiles", ["none", "7", "32", "64"])
def test_with_sums_that_no_order_rounds_every_tiling_is_bit_identical(
    net: Any, tmp_path: Path, tiles: str
) -> None:
    """Small integers for weights and inputs: FP32 holds every partial sum, so that the tiles alone could make a difference."""
    drawn = np.random.default_rng(4)
    builder = net()
    x = builder.input("x", 1, 320, 64, 64)
    y = x
    for _ in range(2):
        weights = builder.constant(drawn.integers(-2, 3, (320, 320, 3, 3)).astype(np.float32))
        y = builder.node("Conv", [y, weights], FULL_SIZE, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        y = builder.node("Relu", [y], FULL_SIZE)
    builder.output(builder.node("Add", [y, x], FULL_SIZE))
    _assert_bit_identical(builder, tmp_path, tiles, drawn.integers(-2, 3, FULL_SIZE))


def _assert_bit_identical(builder: Any, folder: Path, tiles: str, x: Any) -> None:
    model = folder / "m.onnx"
    model.write_bytes(builder.bytes())
    found = api.profile(model, tiles=tiles)
    assert isinstance(found, api.Profile)
    assert [s.kind for s in found.plan.segments] == ([] if tiles == "none" else ["rows"])
    inputs = {"x": x.astype(np.float32)}
    source = deployed(folder / "run", found, model, inputs)
    for whole, tiled in _whole_and_tiled(source, model, inputs, folder / "out"):
        assert np.abs(whole).max() < 2**24
        np.testing.assert_array_equal(tiled, whole)


def _whole_and_tiled(
    source: ExportSource, model: Path, inputs: Mapping[str, Any], folder: Path
) -> list[tuple[Any, Any]]:
    """Each output of the model and of its tiled graph, without the runtime's own fusions: those differ between a whole and its pieces."""
    export(source, "onnx-tiled", folder / "tiled.onnx")
    (folder / "whole.onnx").write_bytes(model.read_bytes())
    for name in ("tiled", "whole"):
        np.savez(folder / f"{name}.npz", **inputs)
    found = run_models(Path(sys.executable), folder, "basic")
    return [(values, found["tiled"][output]) for output, values in found["whole"].items()]


@pytest.mark.parametrize(("name", "kind"), [("self_attention", "attention"), ("conv_silu_conv", "rows")])
def test_nodes_are_named_after_layer_and_tile_and_every_tile_of_the_plan_is_there(
    cases: Callable[..., Case], tmp_path: Path, name: str, kind: str
) -> None:
    case = cases(name, **SMALL)
    export(case.source, "onnx-tiled", tmp_path / "t.onnx")
    graph = onnx.load(tmp_path / "t.onnx").graph
    (segment,) = case.source.plan.segments
    assert segment.kind == kind
    assert segment.tile_count > 1
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
