"""A folder with a spec of a small network, the command line as a process, and real schedulers and workers."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MAIN = [sys.executable, "-c", "from npusim.cli import main; main()"]
PATIENCE_S = 240


def environment(**more: str) -> dict[str, str]:
    """Our checkout first on the path; one thread of BLAS per process."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", **more}


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something that must happen."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {PATIENCE_S} s")


@dataclass
class Cluster:
    """A scheduler, and workers that no nanny brings back."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""

    def _start(self, module: str, *arguments: str, path: Path = ROOT) -> subprocess.Popen[bytes]:
        with (self.folder / f"log-{len(self.processes)}").open("wb") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *arguments], env=environment(PYTHONPATH=str(path)),
                stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        self.processes.append(started)
        return started

    def scheduler(self) -> None:
        """Start it on a free port."""
        import json

        place = self.folder / "scheduler.json"
        self._start(
            "dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--dashboard-address",
            "127.0.0.1:0",
            "--scheduler-file",
            str(place),
        )
        until(lambda: place.is_file() and place.read_text(), "the scheduler's start")
        self.address = json.loads(place.read_text())["address"]

    def worker(self, path: Path = ROOT) -> subprocess.Popen[bytes]:
        """Start one."""
        return self._start(
            "dask_worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1", path=path
        )  # fmt: skip


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    made.scheduler()
    yield made
    for process in reversed(made.processes):
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def folder(tmp_path: Path, net: Callable[..., Any]) -> Path:
    """A folder with three small networks."""
    return write_networks(tmp_path, net)


def write_networks(folder: Path, net: Callable[..., Any]) -> Path:
    """`net.onnx`, `other.onnx` and `slow.onnx`, one transformer block each; the folder."""
    for name, length in (("net", 32), ("other", 48), ("slow", 384)):
        block = net()
        made = block.output(block.transformer(block.input("x", 1, length, 32), 2))
        (folder / f"{name}.onnx").write_bytes(made.bytes())
    return folder


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`npusim sweep` to its end."""
    return subprocess.run(
        [*MAIN, "sweep", *arguments], cwd=folder, env=environment(), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def start(folder: Path, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    """`npusim sweep`, running."""
    with (folder / "client.log").open("wb") as log:
        return subprocess.Popen(
            [*MAIN, "sweep", *arguments], cwd=folder, env=environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, **more
        )  # fmt: skip


def query(store: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Rows of the store, read as anyone can."""
    if not store.is_file():
        return []
    db = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        return db.execute(sql, values).fetchall()
    except sqlite3.OperationalError as error:
        if "no such" in str(error):  # its tables are not made yet
            return []
        raise
    finally:
        db.close()
