"""Reasons: what binds a segment, what other tile counts cost, what more hardware buys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from npusim import api
from npusim.cli import app
from npusim.hardware import load_npu, with_values
from npusim.scheduler.explain import LEVERS, doubled


@pytest.fixture(scope="module")
def transformer(net: Callable[..., Any]) -> Any:
    n = net()
    x, context = n.input("x", 1, 96, 32), n.input("context", 1, 7, 20)
    return n.output(n.transformer(n.transformer(x, 4, context=context), 4, context=context))


@pytest.fixture(scope="module")
def explained(transformer: Any) -> api.Profile:
    npu = with_values(load_npu("toy"), {"sram.sram_bytes": 24_576})
    made = api.profile(transformer.graph(), npu=npu, why=True)
    assert isinstance(made, api.Profile)
    return made


def test_every_segment_has_its_reasons(explained: api.Profile) -> None:
    assert explained.summary["segments"]
    for segment in explained.summary["segments"]:
        why = segment["why"]
        assert why["alone_ms"] > 0
        assert why["bound_by"].split(",")[0] in ("tensor engines", "vector engines", "DRAM transfers")
        fitting = [p["tile_count"] for p in why["next_best"] if p["latency_ms"] is not None]
        assert segment["tile_count"] not in fitting
        assert len(fitting) == len(set(fitting))
        assert all(p["reason"] for p in why["next_best"])


def test_twice_the_hardware_never_makes_a_segment_slower(explained: api.Profile) -> None:
    for segment in explained.summary["segments"]:
        why = segment["why"]
        assert [p["change"] for p in why["levers"]] == list(LEVERS)
        assert all(p["latency_ms"] <= why["alone_ms"] * (1 + 1e-9) for p in why["levers"])


def test_the_network_levers_are_searches_on_that_hardware(transformer: Any, explained: api.Profile) -> None:
    for lever in explained.summary["levers"]:
        again = api.profile(transformer.graph(), npu=doubled(explained.plan.npu, lever["change"]))
        assert isinstance(again, api.Profile)
        assert again.latency_ms == lever["latency_ms"]


def test_a_tile_that_does_not_fit_is_told_with_its_bytes(explained: api.Profile) -> None:
    told = [
        p for s in explained.summary["segments"] for p in s["why"]["next_best"] if p["latency_ms"] is None
    ]
    assert told
    assert all("of SRAM" in p["reason"] and "are free" in p["reason"] for p in told)


def test_doubling_changes_what_it_names() -> None:
    npu = load_npu("exynos2400")
    assert doubled(npu, "2 x SRAM").sram.sram_bytes == 2 * npu.sram.sram_bytes
    wider = doubled(npu, "2 x DRAM bandwidth")
    assert wider.dram.dram_shared_bytes_per_s == 2 * npu.dram.dram_shared_bytes_per_s
    assert wider.dma.channel_bytes_per_s == 2 * npu.dma.channel_bytes_per_s


def test_why_is_printed_and_written(
    transformer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "m.onnx").write_bytes(transformer.bytes())
    arguments = ["profile", str(tmp_path / "m.onnx"), "--npu", "toy", "--why", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "from the bound to the latency" in result.output
    assert "latency with 2 x SRAM" in result.output
    assert "why so many tiles" in result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert all("why" in s for s in summary["segments"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What more hardware would buy" in page
    assert "Why so many tiles" in page
