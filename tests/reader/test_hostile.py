"""Hostile and malformed files are refused: exit code 2, one sentence, quickly, with nothing read outside or written."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("hostile", HERE / "hostile.py")
assert _spec is not None
assert _spec.loader is not None
hostile: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)

Outcomes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("hostile")
    for name in hostile.HOSTILE:
        hostile.write(name, base / name)
    (base / "canary.bin").write_bytes(b"\x2a" * 1024)
    return base


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> Outcomes:
    """What npusim did with each file, all in one process; a crash leaves the rest without an outcome."""
    before = listing(folder)
    paths = [str(folder / name / "model.onnx") for name in hostile.HOSTILE]
    finished = subprocess.run(
        [sys.executable, str(HERE / "refuse.py"), *paths], capture_output=True, text=True, cwd=folder, timeout=300, check=False
    )  # fmt: skip
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    found = dict(zip(hostile.HOSTILE, lines, strict=False))
    assert len(found) == len(paths), (
        f"crashed at {list(hostile.HOSTILE)[len(found)]}: {finished.stderr[-2000:]}"
    )
    assert listing(folder) == before, "something was written"
    return found


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.lstat().st_size) for p in folder.rglob("*") if not p.is_dir())


def test_there_are_many_hostile_files() -> None:
    assert len(hostile.HOSTILE) >= 70


@pytest.mark.parametrize("name", hostile.HOSTILE)
def test_hostile_files_are_refused_with_one_sentence(outcomes: Outcomes, folder: Path, name: str) -> None:
    outcome = outcomes[name]
    assert outcome["code"] == 2, outcome
    assert outcome["output"] == ""
    sentence = outcome["error"]
    assert sentence.startswith("npusim: ")
    assert sentence.count("\n") == 1
    assert sentence[:-1].isprintable()
    assert "Traceback" not in sentence
    assert len(sentence) < 1000
    assert "model" in sentence or "the_" in sentence or "hostile" in sentence
    assert outcome["seconds"] < 10
    assert outcome["peak_kb"] < 2**20


@pytest.mark.parametrize("name", hostile.HOSTILE)
def test_nothing_outside_the_folder_is_read(outcomes: Outcomes, name: str) -> None:
    assert not [path for path in outcomes[name]["opened"] if "canary" in path]


MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def test_names_with_markup_are_shown_as_text(tmp_path: Path) -> None:
    """Such a name is odd but legal: the model is profiled, and its page must not run it."""
    nodes = [
        hostile.helper.make_node("Conv", ["x", MARKUP], [f"a{MARKUP}"], name=f"{MARKUP}.conv"),
        hostile.helper.make_node("Softmax", [f"a{MARKUP}"], ["y"], name=MARKUP),
    ]
    path = tmp_path / "model.onnx"
    path.write_bytes(hostile.model(nodes, [hostile.weight(MARKUP, 6, 4, 3, 3)]).SerializeToString())
    out = tmp_path / "run"
    program = "import sys; from npusim import cli; sys.argv[0] = 'npusim'; cli.main()"
    command = [sys.executable, "-c", program, "profile", str(path), "--out", str(out), "--tiles", "sram"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    page = (out / "report.html").read_text(encoding="utf-8")
    assert MARKUP not in page
    assert "<img src=x" not in page


def test_nodes_in_any_order_are_put_in_order(tmp_path: Path) -> None:
    from npusim import api

    nodes = [hostile.node("Tanh", ["a"]), hostile.node("Relu", ["x"], ["a"])]
    graph = api.load_graph(hostile.model(nodes).SerializeToString(), name="unsorted")
    assert [layer.attributes["function"] for layer in graph.layers] == ["relu", "tanh"]


def test_plans_do_not_depend_on_the_seed_of_python_hashes(tmp_path: Path) -> None:
    program = (
        "import hashlib, json; from npusim import api;"
        "p = api.profile('clip-text-encoder', tiles='sram');"
        "print(hashlib.sha256((repr(p.plan) + repr(p.graph.layers) + json.dumps(p.summary)).encode()).hexdigest())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(printed) == 1
