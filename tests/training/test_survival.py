"""A run survives: kill -9, a spent budget, a damaged checkpoint, a full disk, an interrupted write."""

from __future__ import annotations

import errno
import importlib.util
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from npusim.errors import BadInputError, OutputError
from npusim.training import checkpoints
from npusim.training.config import Optimiser, Training
from npusim.training.loop import Budget, accelerator, learning_rate

_SCRIPT = Path(__file__).with_name("killable.py")


def _killable() -> Any:
    spec = importlib.util.spec_from_file_location("killable", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run: Callable[..., Any] = _killable().run


def _spawn(folder: Path, *extra: str) -> int:
    return subprocess.run([sys.executable, str(_SCRIPT), str(folder), *extra], check=False).returncode


@pytest.mark.training
def test_a_run_killed_twice_gives_the_same_curve_and_weights_bit_for_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _spawn(whole) == 0
    assert _spawn(killed, "6") == -signal.SIGKILL  # after the checkpoint of step 4
    assert _spawn(killed, "14") == -signal.SIGKILL
    assert _spawn(killed) == 0
    assert (killed / "losses.csv").read_text() == (whole / "losses.csv").read_text()
    ours, _ = checkpoints.read_tensors(killed / "checkpoint.safetensors")
    theirs, _ = checkpoints.read_tensors(whole / "checkpoint.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_spent_budget_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    assert run(tmp_path, budget=Budget(0.0)).finished is False
    assert (tmp_path / "checkpoint.safetensors").is_file()
    outcome = run(tmp_path)
    assert outcome.finished
    assert outcome.step == 20


def test_a_finished_stage_that_is_resumed_still_knows_what_a_step_took(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert first.seconds_per_step > 0
    assert run(tmp_path).seconds_per_step == first.seconds_per_step


def test_no_resume_starts_afresh(tmp_path: Path) -> None:
    run(tmp_path)
    first = (tmp_path / "losses.csv").read_text()
    run(tmp_path, resume=False)
    assert (tmp_path / "losses.csv").read_text() == first


def test_a_log_without_tensorboard_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "with")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run(tmp_path / "without")
    assert (tmp_path / "with" / "losses.csv").read_text() == (tmp_path / "without" / "losses.csv").read_text()


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, keep: int) -> None:
    run(tmp_path, budget=Budget(0.0))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        BadInputError, match=r"checkpoint\.safetensors: not a readable checkpoint .* delete it"
    ):
        run(tmp_path)


def test_a_corrupt_checkpoint_is_named_with_its_tensor(tmp_path: Path) -> None:
    run(tmp_path, budget=Budget(0.0))
    path = tmp_path / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=r"checkpoint\.safetensors: tensor '.*' is corrupt"):
        run(tmp_path)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path, budget=Budget(0.0))
    from npusim.training.loop import train

    stage = _killable().Killable(steps=30)
    with pytest.raises(BadInputError, match="was written with other settings"):
        train(stage, tmp_path, seed=3)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(BadInputError, match="not a checkpoint of this pipeline"):
        run(tmp_path)


def test_a_full_disk_is_a_sentence_and_the_old_checkpoint_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.write_tensors(path, {"x": torch.ones(2)}, {"step": 1})

    def full(*args: Any, **kwargs: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(
        OutputError, match=r"checkpoint\.safetensors: could not be written \(No space left on device\)"
    ):
        checkpoints.write_tensors(path, {"x": torch.zeros(2)}, {"step": 2})
    assert checkpoints.read_tensors(path)[0]["x"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_really_full_disk_is_a_sentence_too(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OutputError, match=r"could not be written \("):
        checkpoints.write_json(Path("/dev/full/run.json"), {})


def test_a_full_disk_under_the_curve_is_a_sentence_too(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "losses.csv").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"losses\.csv: could not be written \(No space left on device\)"):
        run(tmp_path)


def test_an_interrupted_write_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.write_tensors(path, {"x": torch.ones(2)}, {"step": 1})

    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "_flush", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_tensors(path, {"x": torch.zeros(2)}, {"step": 2})
    assert checkpoints.read_tensors(path)[1] == {"step": 1}


def test_a_folder_whose_filling_fails_leaves_the_old_one(tmp_path: Path) -> None:
    checkpoints.publish_folder(tmp_path / "final", lambda folder: (folder / "a").write_text("1") and None)

    def fails(folder: Path) -> None:
        (folder / "a").write_text("2")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="final: could not be written"):
        checkpoints.publish_folder(tmp_path / "final", fails)
    assert (tmp_path / "final" / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_half_precision_without_a_gpu_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BadInputError, match=r"--precision fp16: needs a GPU.*use --precision no or bf16"):
        accelerator(Training(steps=1, batch=1, precision="fp16", optimiser=Optimiser(lr=1.0)))


def test_the_learning_rate_warms_up_then_falls_to_zero() -> None:
    settings = Optimiser(lr=2.0, warmup_steps=4)
    assert [learning_rate(settings, step, 104) for step in (0, 3, 4, 54)] == pytest.approx(
        [0.5, 2.0, 2.0, 1.0]
    )
    assert learning_rate(settings, 103, 104) < 0.01
    assert learning_rate(Optimiser(lr=2.0, shape="constant"), 50, 100) == 2.0
