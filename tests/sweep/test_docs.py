"""The commands for two hosts work as they stand, with this host as both; polars reads the store as the page shows."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, environment, query, until

PAGE = (ROOT / "docs" / "sweeps.md").read_text("utf-8")
DASK = [sys.executable, "-m"]


def command(line: str, port: int) -> list[str]:
    """A line of the page with this host for 10.0.0.5, a free port, and fewer workers."""
    here = (
        line.partition("#")[0]
        .replace("10.0.0.5", "127.0.0.1")
        .replace("8786", str(port))
        .replace("--nworkers 16", "--nworkers 1")
    )
    program, *arguments = shlex.split(here)
    if program == "dask":
        return [*DASK, f"distributed.cli.dask_{arguments[0]}", *arguments[1:]]
    return [sys.executable, "-c", "from npusim.cli import main; main()", *arguments]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_the_commands_for_two_hosts_run(folder: Path) -> None:
    text = re.search(r"Two hosts.*?```sh\n(.*?)```", PAGE, re.S)
    assert text is not None
    port = free_port()
    scheduler, worker, client = (command(line, port) for line in text[1].strip().splitlines())
    (folder / "docs/studies").mkdir(parents=True)
    (folder / "docs/studies/exynos2400.toml").write_text(
        f'networks = ["{folder / "net.onnx"}"]\n[axes]\ntiles = ["sram", "none"]\n'
    )
    scheduler += ["--port", str(port), "--dashboard-address", "127.0.0.1:0"]
    started = []
    try:
        for line in (scheduler, worker):
            started.append(
                subprocess.Popen(
                    line,
                    cwd=folder,
                    env=environment(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        until(lambda: answers(port), "the scheduler's start")
        made = subprocess.run(
            client, cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr
        assert "2 points: 2 computed now, 0 known before" in made.stdout
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert len(query(folder / "npusim-sweeps" / "points.sqlite", "select latency_ms from exynos2400")) == 2


@pytest.mark.readers
def test_polars_reads_a_sweep_as_the_page_shows(folder: Path) -> None:
    polars = Path(sys.prefix) / "readers/polars/bin/python"
    failed = polars.parents[1].with_suffix(".failed")
    if not polars.is_file():
        pytest.skip(failed.read_text() if failed.is_file() else "the readers are not built (make readers)")
    (folder / "lanes.toml").write_text(
        'networks = ["net.onnx"]\n[axes]\ntiles = "sram"\n"sram.sram_bytes" = 65536\n"vector_engine.lanes" = [16, 32]\n'
    )
    done = subprocess.run(
        command("npusim sweep lanes.toml --jobs 1", 0),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code = re.search(r"```python\n(import sqlite3.*?)```", PAGE, re.S)
    assert code is not None
    shown = subprocess.run(
        [polars, "-c", code[1] + "print(frame.shape, frame.columns)"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "(2, 3) ['sram.sram_bytes', 'vector_engine.lanes', 'latency_ms']\n"
