"""The pytest plugin, used by a suite of its own: baselines, limits, blame, what benchmarks carry."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["pytester"]

SUITE = """
import pytest

@pytest.fixture(scope="session")
def unet(npu_profile):
    return npu_profile("unet.onnx", npu={npu!r}, tiles={tiles!r}, dims={{}})

def test_cost(unet, assert_dma_cost, request):
    assert_dma_cost(unet{arguments})
"""
PLUGINS = ("-p", "npusim.pytest_plugin", "-p", "pytest_benchmark.plugin")


@pytest.fixture
def suite(
    pytester: pytest.Pytester, net: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A folder with a model; plugins are named, because the entry point needs an installation."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.path.joinpath("unet.onnx").write_bytes(net().unet(size=16).bytes())
    return pytester


def write(suite: pytest.Pytester, *, npu: str = "toy", tiles: str = "auto", arguments: str = "") -> None:
    suite.makepyfile(test_unet=SUITE.format(npu=npu, tiles=tiles, arguments=arguments))


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return suite.runpytest_inprocess(*PLUGINS, *arguments)


def baseline(suite: pytest.Pytester) -> Path:
    return Path(suite.path, "npusim_baselines", "test_unet.test_cost.json")


def test_without_a_baseline_the_test_fails_and_says_what_to_do(suite: pytest.Pytester) -> None:
    write(suite)
    found = run(suite)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(
        ["*there is no baseline npusim_baselines/test_unet.test_cost.json; run 'pytest --npusim-update*"]
    )
    assert not baseline(suite).exists()


def test_the_flag_writes_the_baseline_which_then_holds(suite: pytest.Pytester) -> None:
    write(suite)
    written = run(suite, "--npusim-update-baselines")
    written.assert_outcomes(passed=1)
    written.stdout.fnmatch_lines(["wrote npusim_baselines/test_unet.test_cost.json"])
    kept = baseline(suite).read_text("utf-8")
    held = run(suite)
    held.assert_outcomes(passed=1)
    held.stdout.no_fnmatch_line("*npusim: DMA cost*")
    assert baseline(suite).read_text("utf-8") == kept


def test_growth_fails_and_names_the_layers_that_grew(suite: pytest.Pytester) -> None:
    write(suite)
    run(suite, "--npusim-update-baselines")
    known = json.loads(baseline(suite).read_text("utf-8"))
    heavy = max(known["layer_dram_bytes"], key=lambda name: known["layer_dram_bytes"][name])
    known["layer_dram_bytes"][heavy] -= 1000
    known["dram_read_bytes"] -= 1000
    baseline(suite).write_text(json.dumps(known), "utf-8")
    found = run(suite)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(
        ["*DRAM bytes: *, allowed are *; most of it: *1.00 kB*", "*if this is meant: run 'pytest --npusim*"]
    )
    write(suite, arguments=", tolerance_percent=50")
    run(suite).assert_outcomes(passed=1)


def test_a_cheaper_run_passes_and_says_that_the_baseline_can_be_tightened(suite: pytest.Pytester) -> None:
    write(suite)
    run(suite, "--npusim-update-baselines")
    known = json.loads(baseline(suite).read_text("utf-8")) | {"latency_ms": 1e9}
    baseline(suite).write_text(json.dumps(known), "utf-8")
    found = run(suite)
    found.assert_outcomes(passed=1)
    found.stdout.fnmatch_lines(["npusim_baselines/test_unet.test_cost.json: latency *% lower; *tightens it"])


def test_a_baseline_of_another_policy_or_npu_is_refused(suite: pytest.Pytester) -> None:
    write(suite)
    run(suite, "--npusim-update-baselines")
    write(suite, npu="exynos2400")
    found = run(suite)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*the baseline is of another npu ('toy', the run has 'exynos2400')*"])


@pytest.mark.parametrize(
    ("limit", "line"), [("max_dram_bytes=1", "*DRAM bytes: *"), ("max_latency_ms=0.0", "*latency: *")]
)
def test_limits_need_no_baseline(suite: pytest.Pytester, limit: str, line: str) -> None:
    write(suite, arguments=f", {limit}")
    found = run(suite)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines([line])
    write(suite, arguments=", max_dram_bytes=10**12, max_latency_ms=1e9")
    run(suite).assert_outcomes(passed=1)


def test_what_does_not_fit_fails_with_the_reason(suite: pytest.Pytester) -> None:
    toy = files("npusim.presets").joinpath("toy.toml").read_text("utf-8")
    small = re.sub(r"^sram_bytes = .*$", "sram_bytes = 256", toy, flags=re.M)
    suite.path.joinpath("tiny.toml").write_text(small, "utf-8")
    write(suite, npu="tiny.toml")
    found = run(suite)
    found.assert_outcomes(errors=1)
    found.stdout.fnmatch_lines(["*npusim: *bytes of SRAM*"])


def test_benchmarks_and_junit_files_carry_the_simulated_figures(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)  # pytest-benchmark does nothing in a worker
    write(suite)
    run(suite, "--npusim-update-baselines")
    suite.makepyfile(
        test_unet=SUITE.format(npu="toy", tiles="auto", arguments="")
        + "    request.getfixturevalue('benchmark')(int)\n"
    )
    source = suite.path.joinpath("test_unet.py").read_text("utf-8").replace("request)", "request, benchmark)")
    suite.path.joinpath("test_unet.py").write_text(source, "utf-8")
    run(suite, "--benchmark-json=speed.json", "--junitxml=junit.xml").assert_outcomes(passed=1)
    extra = json.loads(suite.path.joinpath("speed.json").read_text("utf-8"))["benchmarks"][0]["extra_info"]
    known = json.loads(baseline(suite).read_text("utf-8"))
    assert extra["npusim_latency_ms"] == known["latency_ms"]
    assert extra["npusim_dram_bytes"] == known["dram_read_bytes"] + known["dram_write_bytes"]
    assert f'name="npusim_latency_ms" value="{known["latency_ms"]}"' in suite.path.joinpath(
        "junit.xml"
    ).read_text("utf-8")


def test_names_of_parametrized_tests_keep_apart() -> None:
    name = import_module("npusim.pytest_plugin")._file_name
    assert name("test_a.test_b[w8a8]") == "test_a.test_b-w8a8"
    assert len({name("t[a/b]"), name("t[a_b]"), name("t[a:b]")}) == 3


def test_the_package_registers_the_plugin() -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    assert settings["project"]["entry-points"]["pytest11"] == {"npusim": "npusim.pytest_plugin"}
