"""The verb, as users type it: what it prints, and one sentence for everything that is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npusim import api
from npusim.deployment import PLAN_FILE, SCALES_FILE

from .conftest import Case

NPUSIM = (sys.executable, "-c", "from npusim.cli import main; main()")


def _export(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NPUSIM, "export", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_files_and_their_sizes_are_printed(cases: Callable[..., Case], tmp_path: Path) -> None:
    case = cases("geglu")
    done = _export(case.source.directory, "--model", case.model, "--to", "csv", "--out", tmp_path / "g.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {tmp_path / 'g.commands.csv'} (")


def test_the_default_place_is_beside_the_run_directory(cases: Callable[..., Case]) -> None:
    case = cases("geglu")
    done = _export(case.source.directory, "--model", case.model, "--to", "trace")
    assert done.returncode == 0, done.stderr
    assert (case.source.directory.parent / "run.trace.json.gz").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "export needs RUN, --model, --to; e.g. npusim export"),
        (["RUN", "--model", "MODEL"], "export needs --to;"),
        (["RUN", "--model", "MODEL", "--to", "tflite"], "--to is 'tflite'; installed targets are"),
        (["RUN", "--model", "MODEL", "--to", "csv", "--contrib"], "--option is 'contrib'; options of the target csv are: none"),
        (["RUN", "--model", "MODEL", "--to", "csv", "--option", "=1"], "--option is '=1'; it takes NAME or NAME=VALUE"),
        (["RUN", "--model", "MODEL", "--to", "onnx-qdq", "--option", "contrib=no"], "contrib takes no value: give --option contrib"),
        (["RUN", "--model", "MODEL", "--to", "encodings", "--option", "version"], "or 1.0.0): give --option version=VALUE"),
        (["RUN", "--model", "MODEL", "--to", "onnx-qdq", "--out", "MODEL"], "is the model itself; give another place with --out"),
        (["RUN", "--model", "MODEL", "--to", "csv", "--out", "IN_RUN"], "lies in the run directory"),
        (["RUN", "--model", "nowhere.onnx", "--to", "csv"], "nowhere.onnx: no such file"),
        (["RUN", "--model", "OTHER", "--to", "csv"], "give the model that was profiled"),
        (["nowhere", "--model", "MODEL", "--to", "csv"], "give a run directory written by 'npusim profile'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_code_2(
    cases: Callable[..., Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    case, other = cases("geglu"), cases("self_attention")
    monkeypatch.chdir(tmp_path)
    run, before = case.source.directory, case.model.read_bytes()
    places = {"RUN": run, "MODEL": case.model, "OTHER": other.model, "IN_RUN": run / PLAN_FILE}
    done = _export(*(places.get(a, a) for a in arguments))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert case.model.read_bytes() == before
    assert {p.name for p in run.iterdir()} == {PLAN_FILE, SCALES_FILE}


def test_ctrl_c_is_exit_code_130_and_leaves_nothing(cases: Callable[..., Case], tmp_path: Path) -> None:
    """As a signal that comes while the file is written."""
    case = cases("geglu")
    interrupt = (
        "import os, signal; from npusim.export import csv_tables; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "csv_tables.command_table = lambda source: os.kill(os.getpid(), signal.SIGINT)"
    )
    done = subprocess.run(
        [
            sys.executable, "-c", f"{interrupt}; from npusim.cli import main; main()", "export", str(case.source.directory),
            "--model", str(case.model), "--to", "csv", "--out", str(tmp_path / "x.csv"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "npusim: interrupted; no unfinished file is kept\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["onnx-qdq", "onnx-tiled", "encodings"])
def test_an_operator_that_cannot_be_expressed_is_named(net: Any, tmp_path: Path, target: str) -> None:
    """Before scales are asked for: with such an operator nobody can measure them."""
    builder = net()
    y = builder.node("Hardmax", [builder.input("x", 1, 8, 16)], (1, 8, 16), axis=-1)
    (tmp_path / "m.onnx").write_bytes(builder.output(y).bytes())
    found = api.profile(tmp_path / "m.onnx")
    assert isinstance(found, api.Profile)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / PLAN_FILE).write_text(found.plan.to_json())
    done = _export(tmp_path / "run", "--model", tmp_path / "m.onnx", "--to", target)
    assert done.returncode == 2
    assert "stands for the ONNX operator Hardmax, which npusim can cost but not write" in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "run"}


def test_a_zoo_name_is_enough_for_tables_and_refused_where_weights_are_needed(tmp_path: Path) -> None:
    profiled = subprocess.run(
        [
            *NPUSIM,
            "profile",
            "taesd-decoder",
            "--out",
            str(tmp_path / "run"),
            "--quiet",
        ],
        check=False,
    )
    assert profiled.returncode == 0
    done = _export(tmp_path / "run", "--model", "taesd-decoder", "--to", "csv", "--out", tmp_path / "t.csv")
    assert done.returncode == 0, done.stderr
    refused = _export(tmp_path / "run", "--model", "taesd-decoder", "--to", "onnx-tiled")
    assert refused.returncode == 2
    assert "a zoo network without weights" in refused.stderr
