"""A chain that is killed at any system call goes on where it stopped and ends with the same files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from npusim.training.chain.crop import Crop, GradientEnergy
from npusim.training.chain.dedup import Likeness, dedup
from npusim.training.chain.make import make_from_folder
from npusim.training.chain.step import run_step
from npusim.training.chain.variant import Variant, open_variant

from .conftest import QUIET, scene, write_folder


def chain(folder: Path) -> Variant:
    """make, dedup, crop."""
    first = make_from_folder(folder / "in", folder / "L-orig", QUIET)
    unique = dedup(first, folder / "L-dd", Likeness(), QUIET)
    return run_step(Crop(GradientEnergy()), unique, folder / "L-pp", QUIET)


def dying(calls: int) -> None:
    """From now on the process kills itself in its `calls`-th call that changes a disk; a write is done by half."""
    left = [calls]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if real is write:
                    write(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    write = os.write
    for name in ("write", "fsync", "link", "replace", "unlink", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))


def files(folder: Path) -> dict[str, bytes]:
    """Every file of the three variants."""
    names = ("L-orig", "L-dd", "L-pp")
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for n in names
        for p in sorted((folder / n).rglob("*"))
        if p.is_file()
    }


def finished_lines(folder: Path) -> dict[str, bytes]:
    """The whole lines of every log."""
    found = {}
    for path in folder.glob("L-*/*.jsonl"):
        data = path.read_bytes()
        found[str(path)] = data[: data.rfind(b"\n") + 1]
    return found


def test_killed_at_any_call_it_ends_with_the_same_files(tmp_path: Path) -> None:
    shown = {f"{i}.png": scene(i % 60, 48, 40) for i in range(70)}
    for name in ("whole", "killed"):
        write_folder(tmp_path / name / "in", shown)
    chain(tmp_path / "whole")
    wanted, deaths = files(tmp_path / "whole"), 0
    for calls in [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144] * 3:
        before = finished_lines(tmp_path / "killed")
        child = os.fork()
        if child == 0:  # in the child: no test machinery may run
            dying(calls)
            try:
                chain(tmp_path / "killed")
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        after = finished_lines(tmp_path / "killed")
        for path, lines in before.items():
            if path.endswith("manifest.jsonl"):
                assert after[path].startswith(lines)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        deaths += os.WIFSIGNALED(status)
    assert deaths > 20
    chain(tmp_path / "killed")
    assert files(tmp_path / "killed").keys() == wanted.keys()
    assert files(tmp_path / "killed") == wanted


@pytest.mark.slow
def test_workers_end_with_a_killed_parent_and_the_command_goes_on(tmp_path: Path) -> None:
    shown = {f"{i}.png": scene(i) for i in range(320)}
    parent = make_from_folder(write_folder(tmp_path / "in", shown), tmp_path / "L-orig", QUIET)
    manifest = tmp_path / "L-pp" / "manifest.jsonl"
    words = ["crop", str(parent.folder), "--out", str(tmp_path / "L-pp"), "--workers", "2"]
    command = [sys.executable, "-m", "npusim.training.cli", "data", *words]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.is_running() and not (manifest.is_file() and manifest.stat().st_size):
        time.sleep(0.01)
    workers = process.children(recursive=True)
    process.kill()
    process.wait()
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=30)[1]
    lines = manifest.read_bytes()
    assert 0 < lines.count(b"\n") < 320
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert manifest.read_bytes().startswith(lines[: lines.rfind(b"\n") + 1])
    assert open_variant(tmp_path / "L-pp").finished.kept == 320
