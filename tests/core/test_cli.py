"""The command line as a contract: exit codes, one sentence on bad input, and then nothing written."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from npusim import cli

Net = Any
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _garbage_is_collected() -> Iterator[None]:
    """The command turns the collector off for its short life; this process lives on."""
    yield
    gc.enable()


@pytest.fixture
def npusim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["npusim", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def model(net: Callable[..., Net], tmp_path: Path) -> str:
    """A small model in the folder."""
    n = net()
    (tmp_path / "net.onnx").write_bytes(n.output(n.attention(n.input("x", 1, 32, 32), 4)).bytes())
    return "net.onnx"


def refused(run: Run, folder: Path, *arguments: str) -> str:
    """The sentence of a command that must fail with bad input and write nothing."""
    before = sorted(folder.rglob("*"))
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("npusim: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert sorted(folder.rglob("*")) == before
    return err


# ---- the main job -----------------------------------------------------------------------------------------------------


def test_profile_writes_a_run_and_prints_one_screen(npusim: Run, model: str, tmp_path: Path) -> None:
    code, out, err = npusim("profile", model, "--npu", "toy")
    assert (code, err) == (0, "")
    run = tmp_path / "npusim-runs" / "net"
    assert {p.name for p in run.iterdir()} == {"plan.json", "summary.json", "trace.json", "report.html"}
    assert f"report: {Path('npusim-runs') / 'net' / 'report.html'}" in out
    for word in ("decoupled", "serial", "DRAM", "SRAM"):
        assert word in out
    assert len(out.splitlines()) <= 60


def test_json_prints_the_summary_that_is_written(npusim: Run, model: str, tmp_path: Path) -> None:
    code, out, _ = npusim(
        "profile", model, "--npu", "toy", "--json", "--out", "run", "--tiles", "2", "--policy", "serial"
    )
    assert code == 0
    summary = json.loads(out)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert (summary["tiles"], summary["policy"], summary["npu"]) == ("2", "serial", "toy")


def test_a_second_run_replaces_the_first(npusim: Run, model: str) -> None:
    assert npusim("profile", model, "--npu", "toy", "--quiet")[0] == 0
    assert npusim("profile", model, "--npu", "toy", "--quiet", "--tiles", "none")[0] == 0


def test_symbolic_sizes_are_given_on_the_command_line(
    npusim: Run, net: Callable[..., Net], tmp_path: Path
) -> None:
    n = net()
    x = n.input("x", "batch", "length", 16)
    y = n.node("MatMul", [x, n.weight(16, 8)], (None,) * 3)
    (tmp_path / "net.onnx").write_bytes(n.output(y).bytes())
    for options, macs in (
        (("--dim", "length=6"), 6 * 16 * 8),
        (("--dim", "length=6", "--dim", "batch=2"), 12 * 16 * 8),
        (("--shape", "x=3x5x16"), 15 * 16 * 8),
    ):
        code, out, _ = npusim("profile", "net.onnx", "--npu", "toy", "--json", *options)
        assert code == 0
        assert json.loads(out)["macs"] == macs
    assert "'length'" in refused(npusim, tmp_path, "profile", "net.onnx", "--npu", "toy")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("profile", "--help"), ("--version",), ("npu", "list"), ("models", "list")]
)
def test_what_only_prints_leaves_with_zero(npusim: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = npusim(*arguments)
    assert (code, err) == (0, "")
    assert out


def test_npu_show_prints_every_number_with_its_source(npusim: Run) -> None:
    code, out, _ = npusim("npu", "show", "exynos2400")
    assert code == 0
    lines = out.splitlines()[1:]
    assert len(lines) > 50
    assert all(
        any(w in line for w in ("published", "secondary", "derived", "assumed", "fitted")) for line in lines
    )


def test_help_and_profile_do_not_import_torch(model: str, tmp_path: Path) -> None:
    script = (
        "import sys; sys.argv = ['npusim', *sys.argv[1:]]\n"
        "from npusim.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert not {'torch', 'diffusers', 'transformers', 'onnxruntime'} & set(sys.modules)\n"
    )
    for arguments in (["--help"], ["profile", model, "--npu", "toy", "--quiet"]):
        subprocess.run(
            [sys.executable, "-c", script, *arguments], check=True, cwd=tmp_path, capture_output=True
        )


# ---- bad input --------------------------------------------------------------------------------------------------------


def bad_files(n: Net) -> dict[str, bytes]:
    """Spoiled models by name."""
    data = n.bytes()
    spoiled = {"empty": b"", "text": b"this is not a model", "truncated": data[: len(data) // 2]}
    first, second = n.nodes[0], n.nodes[1]
    kept = first.input[0]
    first.input[0] = n.outputs[0].name
    spoiled["cycle"] = n.bytes()
    first.input[0] = "nowhere"
    spoiled["dangling"] = n.bytes()
    first.input[0] = kept
    name = second.output[0]
    second.output[0] = first.output[0]
    spoiled["duplicate"] = n.bytes()
    second.output[0] = name
    proto = n.proto()
    del proto.opset_import[:]
    spoiled["no opset"] = proto.SerializeToString()
    n.inputs[0].type.tensor_type.shape.dim[1].dim_param = "length"
    spoiled["unbound"] = n.bytes()
    return spoiled


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("empty", "is empty (0 bytes)"),
        ("text", "is not an ONNX file"),
        ("truncated", "is not an ONNX file, or is truncated"),
        ("cycle", "cycle through node"),
        ("dangling", "reads 'nowhere', which nothing produces"),
        ("duplicate", "is produced twice"),
        ("no opset", "opset_import is empty"),
        ("unbound", "unbound dimension 'length'; give it with --dim length=SIZE"),
    ],
)
def test_a_broken_model_is_refused_in_one_sentence(
    npusim: Run, net: Callable[..., Net], tmp_path: Path, case: str, says: str
) -> None:
    n = net()
    path = tmp_path / "net.onnx"
    path.write_bytes(bad_files(n.output(n.linear(n.silu(n.input("x", 1, 4, 8)), 8)))[case])
    sentence = refused(npusim, tmp_path, "profile", "net.onnx", "--npu", "toy")
    assert says in sentence
    assert "net.onnx" in sentence


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("profile", "missing.onnx"), "missing.onnx: no such file"),
        (("profile", "bk-sdm-tinny"), "did you mean 'bk-sdm-tiny'"),
        (("profile", "."), "is a folder"),
        (("profile",), "Missing argument"),
        (("profile", "net.onnx", "--npu", "exynos"), "no such hardware"),
        (("profile", "net.onnx", "--tiles", "many"), "--tiles is 'many'"),
        (("profile", "net.onnx", "--tiles", "0"), "--tiles is '0'"),
        (("profile", "net.onnx", "--tiles", "-3"), "--tiles is '-3'"),
        (("profile", "net.onnx", "--tiles", "1.5"), "--tiles is '1.5'"),
        (("profile", "net.onnx", "--tiles", "nowhere=4"), "there is no such segment; segments are: "),
        (
            ("profile", "net.onnx", "--segments", "some"),
            "--segments is 'some'; allowed are none, attention, all",
        ),
        (("profile", "net.onnx", "--precision", "w4a4"), "--precision is 'w4a4'"),
        (("profile", "net.onnx", "--policy", "fast"), "--policy is 'fast'"),
        (("profile", "net.onnx", "--shape", "x"), "--shape is 'x'; it takes NAME=SIZES"),
        (("profile", "net.onnx", "--shape", "x=1x0x2"), "--shape is 'x=1x0x2'"),
        (("profile", "net.onnx", "--shape", "x=1x32x" + "9" * 30), "--shape is 'x=1x32x9999"),
        (("profile", "net.onnx", "--shape", "y=1x2"), "names 'y', which is no input"),
        (("profile", "net.onnx", "--dim", "batch"), "--dim is 'batch'; it takes NAME=SIZES"),
        (("profile", "net.onnx", "--dim", "batch=2"), "no symbolic dimension"),
        (("profile", "net.onnx", "--fast"), "No such option"),
        (("npu", "show", "nothing"), "no such hardware"),
        (("reproduce", "thesis"), "allowed are edgefusion"),
        (("reproduce", "edgefusion", "--table", "4"), "--table is 4; allowed are 5, 6, 7"),
        (
            ("reproduce", "edgefusion", "--table", "5", "--device", "tpu"),
            "--device is 'tpu'; allowed are cuda",
        ),
        (("reproduce", "edgefusion", "--device", "cuda"), "--device is for Table 5"),
        (("dream",), "No such command"),
    ],
)
def test_a_bad_argument_is_refused_in_one_sentence(
    npusim: Run, model: str, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert says in refused(npusim, tmp_path, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("profile", "net.onnx", "--tiles", "\u00b2"), id="a digit that is no number"),
        pytest.param(("profile", "net.onnx", "--dim", "n=\u00b2"), id="a size that is no number"),
        pytest.param(("profile", "a" * 5000), id="a name longer than file systems allow"),
    ],
)
def test_an_odd_argument_is_refused_in_one_sentence(
    npusim: Run, model: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    refused(npusim, tmp_path, *arguments)


def test_hardware_with_an_unknown_key_is_refused(npusim: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("speed = 1\n", "utf-8")
    assert "mine.toml: " in refused(npusim, tmp_path, "profile", model, "--npu", "mine.toml")


def test_an_sram_too_small_for_any_piece_is_refused_with_demand_and_gap(
    npusim: Run, model: str, tmp_path: Path
) -> None:
    from importlib import resources

    text = resources.files("npusim.presets").joinpath("toy.toml").read_text("utf-8")
    (tmp_path / "mine.toml").write_text(text.replace("65_536", "128"), "utf-8")
    sentence = refused(npusim, tmp_path, "profile", model, "--npu", "mine.toml")
    assert "128 are there" in sentence
    assert "too few; largest: " in sentence


def test_a_foreign_output_folder_is_refused_and_kept(npusim: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine", "utf-8")
    sentence = refused(npusim, tmp_path, "profile", model, "--npu", "toy", "--out", "out")
    assert "out: holds 'thesis.tex', which npusim did not write" in sentence


def test_control_characters_of_a_file_are_not_sent_to_the_terminal(npusim: Run, tmp_path: Path) -> None:
    assert "\x1b" not in refused(npusim, tmp_path, "profile", "evil\x1b[31m.onnx")


def test_a_clean_process_exits_with_two(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-c", "from npusim.cli import main; main()", "profile", "missing.onnx"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 2
    assert made.stdout == ""
    assert made.stderr.startswith("npusim: missing.onnx: no such file")
    assert list(tmp_path.iterdir()) == []
