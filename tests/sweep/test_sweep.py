"""Whole sweeps: the same rows whatever computes them, killed and resumed, refused in a sentence."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npusim import __version__
from npusim.sweep.store import STORE

from .conftest import ROOT, Cluster, query, start, sweep, until, write_networks

SPEC = """
networks = ["net.onnx", "other.onnx"]
[axes]
tiles = "sram"
"sram.sram_bytes" = [65536, 131072, 262144]
"vector_engine.lanes" = [16, 32]
"""
#: Points that take a while: 20 for each network, in many tiles.
SLOW = SPEC.replace(
    "[65536, 131072, 262144]", "{ range = { from = 40000, to = 262144, steps = 10 } }"
).replace("net.onnx", "slow.onnx")
ROWS = "select * from points order by key"


def write(folder: Path, text: str, name: str = "s") -> None:
    (folder / f"{name}.toml").write_text(text, "utf-8")


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory, net: Callable[..., Any]) -> Path:
    """A folder in which a sweep was run by one process."""
    folder = write_networks(tmp_path_factory.mktemp("computed"), net)
    write(folder, SPEC)
    made = sweep(folder, "s.toml", "--out", "one", "--jobs", "1")
    assert made.returncode == 0, made.stderr
    assert "2 networks x 3 sram.sram_bytes x 2 vector_engine.lanes = 12 points" in made.stdout
    assert re.search(r"to compute on 1 worker, about \d+ (s|min)", made.stdout), made.stdout
    assert "12 points: 12 computed now, 0 known before" in made.stdout
    return folder


@pytest.fixture
def done(computed: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(computed, tmp_path / "done")


def test_rows_are_the_same_for_any_number_of_workers_and_any_order(done: Path, cluster: Cluster) -> None:
    for _ in range(3):
        cluster.worker()
    turned = SPEC.replace('["net.onnx", "other.onnx"]', '["other.onnx", "net.onnx"]').replace(
        "[16, 32]", "[32, 16]"
    )
    write(done, turned, "turned")
    made = sweep(done, "turned.toml", "--out", "three", "--scheduler", cluster.address)
    assert made.returncode == 0, made.stderr
    one, three = (query(done / out / STORE, ROWS) for out in ("one", "three"))
    assert len(one) == 12
    assert one == three


def test_a_point_is_not_computed_again_by_another_sweep(done: Path) -> None:
    write(done, SPEC.replace("[16, 32]", "[32, 64]"), "wider")
    made = sweep(done, "wider.toml", "--out", "one", "--jobs", "1")
    assert "6 are in the store, 2 were timed; 4 to compute on 1 worker" in made.stdout, (
        made.stdout + made.stderr
    )
    assert "12 points: 6 computed now, 6 known before" in made.stdout
    again = sweep(done, "wider.toml", "--out", "one", "--resume")
    assert "12 points: 0 computed now, 12 known before" in again.stdout
    assert len(query(done / "one" / STORE, ROWS)) == 18


def test_any_row_opens_as_a_run_and_the_store_is_a_table_with_the_axes(done: Path) -> None:
    store = done / "one" / STORE
    (key, lanes, latency), *others = query(
        store, 'select key, "vector_engine.lanes", latency_ms from s order by latency_ms'
    )
    assert len(others) == 11
    assert lanes in (16, 32)
    made = sweep(done, "s.toml", "--out", "one", "--point", key[:8])
    assert made.returncode == 0, made.stderr
    run = done / "one" / "s" / "points" / key[:12]
    assert f'"latency_ms": {latency!r}' in (run / "summary.json").read_text("utf-8")
    assert {"plan.json", "summary.json", "trace.json", "report.html"} == {p.name for p in run.iterdir()}


def test_a_killed_worker_and_a_killed_client_lose_no_point_and_double_none(
    folder: Path, cluster: Cluster
) -> None:
    """Points on three workers: one worker dies by SIGKILL, then the client does; another client goes on."""
    write(folder, SLOW)
    workers = [cluster.worker() for _ in range(3)]
    store = folder / "o" / STORE
    client = start(folder, "s.toml", "--out", "o", "--scheduler", cluster.address)

    def stored() -> int:
        return len(query(store, "select key from points"))

    until(lambda: stored() >= 4 or client.poll() is not None, "the first points")
    assert client.poll() is None, (folder / "client.log").read_text()
    os.kill(workers[0].pid, signal.SIGKILL)
    before = stored()
    until(lambda: stored() >= before + 4, "progress after a worker's death")
    os.kill(client.pid, signal.SIGKILL)
    client.wait()
    kept = dict(query(store, "select key, finished_at from timings"))
    assert 0 < len(kept) < 40
    made = sweep(folder, "s.toml", "--out", "o", "--scheduler", cluster.address, "--resume")
    assert made.returncode == 0, made.stderr
    assert f"40 points: {40 - len(kept)} computed now, {len(kept)} known before" in made.stdout
    after = dict(query(store, "select key, finished_at from timings"))
    assert {k: after[k] for k in kept} == kept
    assert len(after) == len(query(store, ROWS)) == len(query(store, "select * from s")) == 40
    assert query(store, "select * from claims") == []


def test_two_clients_share_a_grid_and_none_computes_what_the_other_does(folder: Path) -> None:
    write(folder, SLOW)
    first = start(folder, "s.toml", "--out", "o", "--jobs", "1")
    until(lambda: query(folder / "o" / STORE, "select key from points"), "the first points")
    second = sweep(folder, "s.toml", "--out", "o", "--jobs", "1")
    assert first.wait() == second.returncode == 0, second.stderr
    texts = (folder / "client.log").read_text(), second.stdout
    shares = [int(re.search(r"(\d+) computed now", text)[1]) for text in texts]  # type: ignore[index]
    assert sum(shares) == len(query(folder / "o" / STORE, "select key from points")) == 40


def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(folder: Path) -> None:
    """Ctrl-C in a terminal reaches the client and its workers."""
    write(folder, SLOW)
    client = start(folder, "s.toml", "--out", "o", "--jobs", "1", start_new_session=True)
    until(lambda: len(query(folder / "o" / STORE, "select key from points")) >= 3, "the first points")
    os.killpg(client.pid, signal.SIGINT)
    assert client.wait() == 130
    kept = len(query(folder / "o" / STORE, "select key from points"))
    told = (folder / "client.log").read_text().splitlines()
    assert (
        told[-2]
        == f"npusim: {kept} points are kept in o/points.sqlite; go on with: npusim sweep s.toml --resume --out o"
    )
    assert told[-1].startswith("npusim: interrupted")
    assert len(told) == 4, told
    assert query(folder / "o" / STORE, "select * from claims") == []


# ---- refusals -----------------------------------------------------------------------------------------------------------


def refusal(made: Any) -> str:
    assert made.returncode == 2, made.stdout + made.stderr
    assert made.stderr.startswith("npusim: ")
    assert made.stderr.count("\n") == 1, made.stderr
    return str(made.stderr)


def test_a_million_points_by_mistake_are_not_started_where_nobody_can_be_asked(folder: Path) -> None:
    write(
        folder,
        SPEC.replace("[16, 32]", "{ range = { from = 1, to = 500000, steps = 100000 } }").replace(
            "262144]", "262144, 5e5, 6e5]"
        ),
    )
    assert (
        "5 sram.sram_bytes x 100000 vector_engine.lanes = 1,000,000 points, and nobody can be asked"
        in refusal(sweep(folder, "s.toml"))
    )
    assert not list((folder / "npusim-sweeps").glob("*/*.html"))


def test_a_scheduler_that_is_not_there_is_named(folder: Path) -> None:
    write(folder, SPEC)
    closed = "tcp://127.0.0.1:9"
    told = refusal(sweep(folder, "s.toml", "--scheduler", closed))
    assert f"--scheduler {closed}: does not answer as a Dask scheduler" in told
    assert "--scheduler nonsense: is no address" in refusal(
        sweep(folder, "s.toml", "--scheduler", "nonsense")
    )


def test_workers_of_another_npusim_are_refused(folder: Path, cluster: Cluster, tmp_path: Path) -> None:
    old = tmp_path / "old" / "npusim"
    old.mkdir(parents=True)
    for entry in (ROOT / "npusim").iterdir():
        if entry.name != "__init__.py":
            (old / entry.name).symlink_to(entry.resolve())
    text = (ROOT / "npusim" / "__init__.py").read_text("utf-8")
    (old / "__init__.py").write_text(text.replace(__version__, "0.0.9"), "utf-8")
    cluster.worker(old.parent)
    write(folder, SPEC)
    sentence = refusal(sweep(folder, "s.toml", "--scheduler", cluster.address))
    assert "a worker has npusim 0.0.9 (" in sentence
    assert f"this is npusim {__version__} (" in sentence


def test_a_resume_goes_on_with_the_same_sweep_only(done: Path) -> None:
    assert "holds no sweep 's'; leave out --resume to start it" in refusal(
        sweep(done, "s.toml", "--resume", "--out", "none")
    )
    write(done, SPEC.replace("[16, 32]", "[16, 64]"))
    assert "was started with another spec" in refusal(sweep(done, "s.toml", "--resume", "--out", "one"))


def test_a_point_that_is_not_there_is_named(done: Path) -> None:
    assert "no point of sweep 's' has a key that begins so" in refusal(
        sweep(done, "s.toml", "--out", "one", "--point", "zzzz")
    )


def test_a_store_that_is_none_is_refused(folder: Path) -> None:
    write(folder, SPEC)
    (folder / "bad").mkdir()
    (folder / "bad" / STORE).write_bytes(b"no database" * 100)
    assert "cannot be used as a store of points" in refusal(sweep(folder, "s.toml", "--out", "bad"))
    shutil.rmtree(folder / "bad")
    (folder / "bad").write_text("a file")
    assert "cannot be used as a store of points" in refusal(sweep(folder, "s.toml", "--out", "bad"))
