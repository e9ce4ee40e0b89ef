"""Habits of a tool: JSON and CSV on stdout, progress only on a terminal, pictures, notebooks."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from npusim import api, cli
from npusim.errors import BadInputError, MissingExtraError
from npusim.reports import images

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def npusim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["npusim", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def model(net: Callable[..., Any], tmp_path: Path) -> str:
    (tmp_path / "unet.onnx").write_bytes(net().unet(size=8).bytes())
    return "unet.onnx"


def test_csv_on_stdout_is_the_layer_table_and_nothing_else(npusim: Run, model: str) -> None:
    code, out, err = npusim("profile", model, "--npu", "toy", "--csv")
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    summary = json.loads(Path("npusim-runs/unet/summary.json").read_text("utf-8"))
    moved = sum(int(row["dram_bytes"]) for row in rows)
    assert moved == summary["dram_read_bytes"] + summary["dram_write_bytes"]
    assert sum(float(row["critical_ms"]) for row in rows) == pytest.approx(summary["latency_ms"])


def test_json_on_stdout_is_json_and_nothing_else(npusim: Run, model: str) -> None:
    for tiles in ("none", "auto"):
        code, out, err = npusim("profile", model, "--npu", "toy", "--tiles", tiles, "--json", "--out", tiles)
        assert (code, err, json.loads(out)["tiles"]) == (0, "", tiles)
    _, out, err = npusim("compare", "none", "auto", "--json")
    assert err == ""
    assert {"where", "what", "unit", "before", "after", "share"} == json.loads(out)[0].keys()
    code, out, err = npusim("check", "none", "--max-dram-bytes", "1", "--json")
    assert code == 1
    assert json.loads(out)[0]["allowed"] == 1
    assert "DRAM bytes" in err
    assert npusim("check", "none", "--max-latency-ms", "1e9", "--json")[:2] == (0, "[]\n")


def test_json_and_csv_together_are_refused(npusim: Run, model: str) -> None:
    code, _, err = npusim("profile", model, "--json", "--csv")
    assert (code, err) == (2, "npusim: --json and --csv both want stdout; give one of them\n")


def test_quiet_says_only_where_things_are(npusim: Run, model: str) -> None:
    assert npusim("profile", model, "--npu", "toy", "--quiet", "--out", "a")[1:] == (
        "report: a/report.html\n",
        "",
    )
    assert npusim("compare", "a", "a", "--quiet")[1:] == ("page: npusim-compare.html\n", "")


def test_open_asks_for_the_page_and_prints_as_ever(
    npusim: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    npusim("profile", model, "--npu", "toy", "--quiet", "--out", "a", "--open")
    npusim("compare", "a", "a", "--quiet", "--open")
    assert [url.rsplit("/", 1)[1] for url in opened] == ["report.html", "npusim-compare.html"]
    assert all(url.startswith("file:///") for url in opened)


PROGRESS = """
import sys
from npusim.progress import stage, track
with stage("reading [b]x[/b]"):
    pass
print(sum(track([1, 2, 3], "counting", total=3)))
"""


def test_progress_is_for_terminals_only() -> None:
    plain = subprocess.run([sys.executable, "-c", PROGRESS], capture_output=True, text=True, check=True)
    assert (plain.stdout, plain.stderr) == ("6\n", "")
    ours, theirs = pty.openpty()
    shown = subprocess.run(
        [sys.executable, "-c", PROGRESS], stdout=subprocess.PIPE, stderr=theirs, check=True
    )
    os.close(theirs)
    terminal = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert shown.stdout == b"6\n"
    assert "reading [b]x[/b]" in terminal
    assert "3/3" in terminal


# ---- pictures -----------------------------------------------------------------------------------------------------------


def test_another_kind_of_picture_and_a_missing_package_are_refused(
    npusim: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInputError, match="pictures are png or svg, not 'gif'"):
        images.check_images("gif")
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'npusim\[images\]'"):
        images.check_images("svg")
    code, _, err = npusim("profile", model, "--npu", "toy", "--images", "svg")
    assert code == 2
    assert "kaleido" in err
    assert not Path("npusim-runs").exists()


def test_equal_curves_are_one_picture() -> None:
    assert images.distinct({"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 1}}) == {"a": {"x": 1}, "b": {"x": 2}}
    assert images.file_name("tiles: down/0 <x>") == "tiles-down-0-x"


@pytest.mark.slow
def test_pictures_of_every_figure_are_written_with_the_run(npusim: Run, model: str) -> None:
    if find_spec("kaleido") is None or not shutil.which("chromium"):
        pytest.skip("kaleido or chromium is not installed (pip install kaleido; apt-get install chromium)")
    code, out, _ = npusim("profile", model, "--npu", "toy", "--images", "svg", "--quiet", "--out", "run")
    assert (code, out) == (0, "report: run/report.html\n")
    pictures = {path.name: ElementTree.parse(path).getroot() for path in Path("run/images").iterdir()}
    assert {"timeline.svg", "sram.svg", "bandwidth.svg", "engines.svg", "roofline.svg"} <= pictures.keys()
    assert all(root.tag.endswith("svg") for root in pictures.values())
    assert npusim("profile", model, "--npu", "toy", "--quiet", "--out", "run")[0] == 0
    assert not Path("run/images").exists()


# ---- notebooks ----------------------------------------------------------------------------------------------------------

CELLS = (
    "import npusim\nunet = npusim.profile('unet.onnx', npu='toy')\nunet",
    "unet.figures['timeline']",
    "unet.figures['roofline']",
    "untiled = npusim.profile('unet.onnx', npu='toy', tiles='none')\nuntiled.compare(unet)",
)


@pytest.mark.slow
def test_a_notebook_shows_profiles_figures_and_comparisons(model: str, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (pip install nbformat)")
    for needed in ("nbclient", "ipykernel"):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed (pip install {needed})")
    path = tmp_path / "book.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS]), path)
    execute = [sys.executable, "-c", "from nbclient.cli import main; main()", "--inplace", str(path)]
    done = subprocess.run(execute, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outputs = [cell.outputs for cell in nbformat.read(path, as_version=4).cells]
    shown = [next(o["data"] for o in found if "data" in o) for found in outputs]
    assert "<b>unet on toy" in shown[0]["text/html"]
    for index in (1, 2):
        assert shown[index]["application/vnd.plotly.v1+json"]["data"]
    assert "<table>" in shown[3]["text/html"]


def test_a_profile_is_short_in_a_failing_test(model: str, tmp_path: Path) -> None:
    found = api.profile(tmp_path / model, npu="toy")
    assert isinstance(found, api.Profile)
    assert len(repr(found)) < 200
    assert repr(found.figures).startswith("<Figures: timeline, sram")
