"""Runs against the installed wheel, outside the checkout (copied there by tools/check_wheel.sh)."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import npusim
from npusim import api
from npusim.hardware import load_npu, preset_names
from npusim.models import zoo
from npusim.models.pipeline import load_pipeline, shipped_names
from npusim.pipeline import network_graph


def test_the_package_is_the_installed_one() -> None:
    assert "site-packages" in Path(npusim.__file__).parts


def test_every_package_is_in_the_wheel() -> None:
    for name in (
        "execute",
        "training.chain",
        "training.data",
        "training.grid",
        "training.metrics",
        "training.pages",
        "models.architectures",
        "lower",
        "passes",
        "export",
    ):
        assert find_spec(f"npusim.{name}") is not None, name


def test_every_zoo_network_and_preset_ships() -> None:
    assert all(len(zoo.graph_bytes(name)) > 1000 for name in zoo.names())
    assert {load_npu(name).name for name in preset_names()} == set(preset_names())


def test_every_pipeline_ships_with_the_graphs_it_names() -> None:
    assert set(shipped_names()) == {"edgefusion.toml", "edgefusion-toy.toml", "sd-v1.5.toml"}
    for name in shipped_names():
        given = load_pipeline(name)
        assert all(network_graph(given, network).layers for network in given.pipeline.network)


def test_pytest_finds_the_plugin(npu_profile: Any, assert_dma_cost: Any) -> None:
    found = npu_profile("bk-sdm-tiny", tiles="sram")
    assert npu_profile("bk-sdm-tiny", tiles="sram") is found
    assert_dma_cost(found, max_dram_bytes=10**12)


def test_every_export_target_loads_without_extras() -> None:
    from npusim.export.registry import offers

    assert {o.name: o.load().suffix for o in offers()}.keys() == {
        "onnx-qdq",
        "onnx-tiled",
        "encodings",
        "trace",
        "csv",
    }


def test_profiling_needs_no_torch() -> None:
    found = api.profile("bk-sdm-tiny", tiles="sram")
    assert isinstance(found, api.Profile)
    assert found.summary["macs"] == 242_754_519_040
    assert "torch" not in sys.modules
