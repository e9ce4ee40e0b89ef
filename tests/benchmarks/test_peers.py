"""The parts of benchmarks/peers.py that need no peer: workloads, messages, the table, the command line, time limits."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import sys
import time
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from onnx import checker

import npusim

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of benchmarks/ as the script does: from its own folder."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def workloads(load) -> ModuleType:
    return load("peer_workloads")


@pytest.fixture
def tables(load) -> ModuleType:
    return load("peer_table")


def test_workloads_are_valid_onnx_whose_macs_npusim_agrees_on(workloads: ModuleType) -> None:
    for workload in (w for pair in workloads.WORKLOADS for w in pair):
        model: onnx.ModelProto = workloads.to_onnx(workload)
        checker.check_model(model, full_check=True)
        found = npusim.profile(model.SerializeToString(), tiles="sram")
        assert found.summary["macs"] == workload.macs()
        assert found.summary["coverage"]["nodes"] == 1.0


def test_attention_macs_in_closed_form(workloads: ModuleType) -> None:
    assert workloads.attention(heads=2, tokens=8, size=3).macs() == 2 * (2 * 8 * 8 * 3)
    assert workloads.convolutions(channels=4, size=5).macs() == 2 * (4 * 4 * 25 * 9)


def test_message_is_pips_error_or_the_last_line(tables: ModuleType) -> None:
    pip = "looking\nERROR: Ignored the following versions: 1.0 Requires-Python >=3.12; 2.0 Requires-Python >=3.12\nERROR: None fits\nnote"
    assert tables.message(pip) == "Ignored the following versions: 2.0 Requires-Python >=3.12 None fits"
    assert tables.message("Traceback:\n  a | b\nValueError: no | way\x1b[0m\n\n") == "ValueError: no / way[0m"
    assert tables.message("") == "it said nothing"
    assert len(tables.message("x" * 1000)) == tables.MESSAGE_LENGTH


def test_table_has_npusim_once_and_tools_that_ran_nothing_last(
    tables: ModuleType, workloads: ModuleType
) -> None:
    work = workloads.attention(heads=1, tokens=16, size=4)
    facts = {"hardware": "h", "costed": ["MatMul"], "free": ["Softmax"], "left": [], "macs": 2 * work.macs(),
             "dram_bytes": None, "addresses": False, "timeline": True}  # fmt: skip
    ours = tables.Row(tool="npusim", version="1", workload=work, facts=facts)
    rows = [
        tables.Row(tool="Q", outcome="not installed: no wheel"),
        ours,
        tables.Row(tool="P", version="2", workload=work, wall="3 x", facts=facts),
        ours,
        tables.Row(tool="R", version="1", workload=work, outcome="refused: too big"),
    ]
    lines = tables.table(rows, [work]).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:6]]
    assert [c[0] for c in cells] == ["npusim 1 (h)", "P 2 (h)", "R 1", "Q"]
    assert cells[1][3:10] == ["3 x, 1 x", "MatMul", "Softmax (free)", "2 x", "-", "no", "yes"]
    assert cells[2][2] == "refused: too big"
    assert {len(c) for c in cells} == {len(tables.HEADER)}


def test_ratio_is_the_median_of_pairs(tables: ModuleType) -> None:
    assert tables.ratio([2.0, 30.0, 3.0], [1.0, 10.0, 1.0]) == "3 x"
    assert tables.ratio([12345.0], [1.0]) == "12345 x"


def test_run_stops_a_command_and_its_children_at_the_limit(load, tmp_path: Path) -> None:
    peers = load("peers")
    child = "import fcntl, time; f = open('held', 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    stopped = peers.run([sys.executable, "-c", parent], tmp_path, 5)
    assert stopped.status is None
    assert stopped.said == "held\n"
    assert peers.outcome(stopped, 5) == "timed out after 5 s"
    with (tmp_path / "held").open() as file:
        for _ in range(100):  # the kernel drops the lock once the child is gone
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.1)
    pytest.fail("the child of a stopped command still runs")


def test_run_keeps_status_and_words(load, tmp_path: Path) -> None:
    peers = load("peers")
    ran = peers.run([sys.executable, "-c", "raise SystemExit('too large')"], tmp_path, 60)
    assert peers.outcome(ran, 60) == "refused: too large"
    assert ran.cpu_s > 0


def test_a_peer_that_cannot_be_installed_is_a_row(load, tmp_path: Path) -> None:
    peers = load("peers")
    options = peers.arguments(["--python", sys.executable])
    absent = peers.Peer(
        name="Absent", requirements=("./no-such-package",), driver="run_vela.py", numerics="no"
    )
    (row,) = peers.compare(absent, tmp_path, options)
    assert row.outcome.startswith("not installed: ")
    assert "no-such-package" in row.outcome


def test_a_folder_that_is_no_environment_is_left_alone(load, tmp_path: Path) -> None:
    peers = load("peers")
    kept = tmp_path / "vela" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    found = peers.install(peers.PEERS[0], tmp_path, sys.executable)
    assert "no environment" in found.problem
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rounds", "0"], "at least 1 round"),
        (["--python", "no-such-python"], "no such program"),
        (["--peers", "x"], "choose from"),
    ],
)
def test_wrong_arguments_end_with_2_and_a_sentence(
    load, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load("peers").main(given)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
