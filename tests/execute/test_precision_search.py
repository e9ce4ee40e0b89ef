"""From a model with weights to precisions layer by layer: what is promised is simulated and executed."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npusim import cli
from npusim.api import load_graph, profile
from npusim.cost import command_energy_pj, energy_pj
from npusim.hardware import load_npu
from npusim.precision_search.answer import Goal, Measured, begin, choose, measure_model
from npusim.precision_search.costs import layer_costs, total_costs
from npusim.precision_search.search import CLOSE, Planner, Search, start_search
from npusim.results import Profile
from npusim.run_directory import load_summary
from npusim.sensitivity.errors import Sensitivity, cast_edges, sqnr_db
from npusim.sensitivity.run import Measuring
from npusim.units import PS_PER_MS

from .conftest import NETWORKS


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["npusim", *arguments])
    try:
        cli.main()
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return NETWORKS["geglu"](tmp_path_factory.mktemp("model") / "geglu.onnx")


@pytest.fixture(scope="module")
def measured(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    how = Measuring(cache=tmp_path_factory.mktemp("cache"))
    return measure_model(str(model), load_graph(model), "seeded", how)


def searching(measured: Measured) -> Search:
    return begin(measured, Planner(npu=load_npu("toy"), tiles="sram"))


@pytest.mark.parametrize("name", ["geglu", "self_attention", "group_norm_skip"])
def test_costs_of_layers_add_up_to_the_network_they_were_simulated_in(tmp_path: Path, name: str) -> None:
    graph = load_graph(NETWORKS[name](tmp_path / "model.onnx"))
    found = profile(graph, npu="toy", precision="w8a8")
    assert isinstance(found, Profile)
    parts = layer_costs(found, [x.name for x in graph.layers])
    np.testing.assert_allclose(parts.sum(axis=0), total_costs(found))
    assert (parts >= 0).all()
    energy = command_energy_pj(found.program, found.plan.npu).sum()
    assert energy == pytest.approx(sum(energy_pj(found.program, found.plan.npu).values()))


def test_the_front_contains_or_beats_every_uniform_precision(measured: Measured) -> None:
    search = searching(measured)
    search.explore(2)
    front = [p.values for p in search.front()]
    for option in search.choices.options:
        uniform = search.points[search.choices.uniform(option)].values
        assert any((values <= uniform).all() for values in front), option
    for a in front:
        assert not any((b <= a).all() and (b < a).any() for b in front)


def test_the_front_of_a_tiny_network_is_that_of_simulating_everything(measured: Measured) -> None:
    search, other = searching(measured), searching(measured)
    search.explore(1)
    count, width = len(search.choices.groups), len(search.choices.options)
    for picks in product(range(width), repeat=count):
        other.simulate(picks)
    everything = np.asarray([p.values for p in other.points.values()])
    kept = {tuple(v) for v in everything if not any((w <= v).all() and (w < v).any() for w in everything)}
    assert {tuple(p.values) for p in search.front()} == kept


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_chosen_point_keeps_its_limits_as_simulated_and_sums_are_re_based_on_it(
    measured: Measured, share: float
) -> None:
    search = searching(measured)
    uniform = np.asarray([p.values for p in search.points.values()])
    low, high = uniform.min(axis=0), uniform.max(axis=0)
    middle = low + share * (high - low)
    wanted = sqnr_db(float(np.exp(np.log(low[0]) + share * np.log(high[0] / low[0]))))
    for goal in (
        Goal(min_sqnr_db=wanted),
        Goal(max_latency_ms=float(middle[1]) / PS_PER_MS),
        Goal(max_dram_bytes=int(middle[2])),
        Goal(min_sqnr_db=wanted, max_dram_bytes=int(high[2])),
    ):
        point = choose(search, goal)
        again = search.planner.profile(measured.graph, search.choices.precisions(point.picks))
        np.testing.assert_array_equal(total_costs(again), point.values[1:])
        for name, most in goal.limits.items():
            column = ("error", "latency_ps", "dram_bytes").index(name)
            assert point.values[column] <= most
        np.testing.assert_allclose(
            search.predicted(point.picks)[1:], point.values[1:]
        )  # sums are re-based on it


@pytest.mark.slow
def test_latency_of_a_full_size_network_turns_out_as_predicted_after_few_simulations() -> None:
    """Errors are drawn from a seed here: what is tested is the sum of parts against the simulation."""
    graph, drawn = load_graph("bk-sdm-tiny"), np.random.default_rng(0)
    layers, options = tuple(x.name for x in graph.layers), ("w8a8", "w8a16", "w16a16", "fp16")
    own = np.exp(1.5 * drawn.standard_normal((len(layers), 1))) * [1e-2, 1e-4, 1e-6, 1e-7] / len(layers)
    cast = {e: {"int8": 3e-5 * float(np.exp(drawn.standard_normal()))} for e in cast_edges(graph)}
    errors = Sensitivity(layers=layers, options=options, own=own, cast=cast)
    search = start_search(graph, Planner(npu=load_npu("exynos2400")), errors)
    point = choose(search, Goal(max_latency_ms=48.0))
    assert not point.name
    assert abs(point.predicted_ps / point.values[1] - 1) <= CLOSE
    assert len(search.points) <= len(options) + 5


def test_auto_writes_a_run_that_executes_and_says_what_was_predicted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shared = ["--npu", "toy", "--calibration", "seeded", "--cache", str(tmp_path / "cache")]
    asked = ["profile", str(model), "--precision", "auto", "--min-sqnr", "35", "--out", str(out), *shared]
    assert run(monkeypatch, *asked) == 0
    text = capsys.readouterr().out
    assert "dB executed" in text
    assert "ms simulated" in text
    assert sum(load_summary(out)["precisions"].values()) >= len(load_graph(model).layers)
    assert run(monkeypatch, "run", str(out), "--model", str(model)) == 0
    assert "calibrated on seeded inputs" not in capsys.readouterr().out


def test_search_writes_points_that_profile_takes_and_saves_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "search"
    shared = ["--npu", "toy", "--tiles", "sram"]
    asked = [
        str(model),
        "--calibration",
        "seeded",
        "--cache",
        str(tmp_path / "cache"),
        "--budgets",
        "2",
        "--out",
        str(out),
    ]
    assert run(monkeypatch, "search", *asked, *shared, "--save", "0") == 0
    assert "the paper's choice" in capsys.readouterr().out
    result = json.loads((out / "search.json").read_text())
    assert sum(p["paper"] for p in result["points"]) == 1
    assert {p["name"] for p in result["points"]} >= {"w8a8", "w8a16", "w16a16", "fp16"}
    assert "<script" in (out / "search.html").read_text()
    saved = load_summary(out / "runs" / "0")
    point: dict[str, Any] = result["points"][0]
    assert saved["latency_ms"] == pytest.approx(point["latency_ms"])
    last = result["points"][-1]
    again = tmp_path / "again"
    given = ["--precision", str(out / "points" / f"{last['number']}.json"), "--out", str(again), "--quiet"]
    assert run(monkeypatch, "profile", str(model), *given, *shared) == 0
    assert load_summary(again)["latency_ms"] == pytest.approx(last["latency_ms"])
    assert run(monkeypatch, "search", *asked, *shared, "--save", "99", "--quiet") == 2
    assert "points are numbered from 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("profile", "toy-net", "--precision", "auto"), "give --min-sqnr DB, --max-latency MS or --max-dram BYTES"),
        (("profile", "bk-sdm-tiny", "--precision", "auto", "--min-sqnr", "40"), "give an ONNX file with its weights"),
        (("profile", "MODEL", "--precision", "auto", "--min-sqnr", "40"), "give --calibration X.npz"),
        (("profile", "MODEL", "--precision", "auto", "--min-sqnr", "nan"), "a finite number is needed"),
        (("profile", "MODEL", "--precision", "auto", "--min-sqnr", "40", "--tiles", "8"), "goes with --tiles none, sram or auto"),
        (("profile", "MODEL", "--max-dram", "9"), "--max-dram goes with --precision auto"),
        (("profile", "MODEL", "--precision", "none.json"), "is no readable JSON"),
        (("profile", "MODEL", "--precision", "BAD"), "allowed are w8a16"),
        (("search", "bk-sdm-tiny"), "give an ONNX file with its weights"),
        (("search", "MODEL"), "give --calibration X.npz"),
        (("search", "MODEL", "--calibration", "seeded", "--tiles", "7"), "allowed are none, sram, auto"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_with_a_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('{"default": "int4"}')
    places = {"MODEL": str(model), "BAD": "bad.json", "toy-net": str(model)}
    assert run(monkeypatch, *(places.get(a, a) for a in arguments)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "npusim-runs").exists()


def test_a_goal_that_nothing_reaches_says_what_was(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = [
        "--npu",
        "toy",
        "--tiles",
        "sram",
        "--calibration",
        "seeded",
        "--cache",
        str(tmp_path / "cache"),
    ]
    out = ["--out", str(tmp_path / "run")]
    assert (
        run(
            monkeypatch,
            "profile",
            str(model),
            "--precision",
            "auto",
            "--max-latency",
            "0.0001",
            *shared,
            *out,
        )
        == 2
    )
    assert "keeps --max-latency 0.0001 on toy; reached, each on its own:" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
