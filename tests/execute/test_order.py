"""Orders of commands: none begins before what it depends on has ended, and a failure or Ctrl-C stops all threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npusim.execute.order import Order, run_in_order
from npusim.execute.workers import Workers

Dependencies = list[list[int]]


class Commands(SimpleNamespace):
    """As much of a Program as orders are made of."""

    def __len__(self) -> int:
        return len(self.commands.dep_ptr) - 1


def program(dependencies: Dependencies) -> Any:
    pointers = np.cumsum([0, *map(len, dependencies)])
    flat = np.asarray([d for found in dependencies for d in found], dtype=np.int64)
    return Commands(commands=SimpleNamespace(dep_ptr=pointers, dep_idx=flat))


@st.composite
def dags(draw: st.DrawFn) -> Dependencies:
    count = draw(st.integers(0, 40))
    return [sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else [] for i in range(count)]


@pytest.fixture(scope="module", params=[1, 2, 5])
def pool(request: pytest.FixtureRequest) -> Iterator[Workers]:
    found = Workers(request.param)
    yield found
    found.close()


@given(dependencies=dags(), order=st.sampled_from(get_args(Order)), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_each_command_runs_once_after_those_it_depends_on(
    pool: Workers, dependencies: Dependencies, order: Order, seed: int
) -> None:
    lock, ended, began = threading.Lock(), set[int](), list[int]()

    def run(command: int) -> None:
        with lock:
            began.append(command)
            assert ended.issuperset(dependencies[command]), (command, ended)
        time.sleep(0)
        with lock:
            ended.add(command)

    run_in_order(program(dependencies), order, seed, run, pool)
    assert sorted(began) == list(range(len(dependencies)))
    if order == "serial":
        assert began == sorted(began)


def test_independent_commands_run_at_the_same_time() -> None:
    together, workers = threading.Barrier(2, timeout=30), Workers(2)
    run_in_order(program([[], []]), "parallel", 0, lambda _: together.wait() and None, workers)
    workers.close()


def test_a_failure_ends_the_run_and_nothing_that_follows_begins(pool: Workers) -> None:
    ran: list[int] = []

    def run(command: int) -> None:
        ran.append(command)
        if command == 3:
            raise ValueError("command 3")

    chain: Dependencies = [[], *([i] for i in range(20))]
    with pytest.raises(ValueError, match="command 3"):
        run_in_order(program(chain), "parallel", 0, run, pool)
    assert ran == [0, 1, 2, 3]
    run_in_order(program(chain), "parallel", 0, ran.append, pool)  # the pool is as good as before
    assert ran[4:] == list(range(21))


def test_ctrl_c_waits_for_commands_that_had_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, begun, ended = Workers(2), threading.Event(), list[int]()
    wait: Callable[..., bool] = threading.Event.wait
    interrupted: list[bool] = []

    def interrupt(event: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread() and not interrupted:
            interrupted.append(True)
            wait(begun, 30)
            raise KeyboardInterrupt
        return wait(event, timeout)

    def run(command: int) -> None:
        begun.set()
        time.sleep(0.05)
        ended.append(command)

    together = threading.Barrier(2, timeout=30)
    run_in_order(
        program([[], []]), "parallel", 0, lambda _: together.wait() and None, workers
    )  # starts both threads
    monkeypatch.setattr(threading.Event, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_in_order(program([[], *([i] for i in range(200))]), "parallel", 0, run, workers)
    count = len(ended)
    workers.close()
    assert 1 <= count < 200
    assert len(ended) == count
