"""Orders in which commands run: one at a time, or as many at once as there are threads. Dependencies decide what is allowed."""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable, Iterator
from typing import Literal

from npusim.execute.workers import Workers
from npusim.program import Program

Order = Literal["parallel", "serial", "random"]
Run = Callable[[int], None]
Rank = Callable[[int], float]


def run_in_order(program: Program, order: Order, seed: int, run: Run, pool: Workers) -> None:
    """Call `run` on every command, none before those that it depends on have ended.

    Args:
        order: `serial` and `random` (drawn from `seed`) run one at a time, in the calling thread; `parallel` uses the pool's threads.
    """
    if order == "parallel" and pool.threads > 1:
        _Crew(program, run, pool).work()
    else:
        for command in legal_order(program, order, seed):
            run(command)


def legal_order(program: Program, order: Order, seed: int) -> Iterator[int]:
    """Command numbers in serial order, or in a random order that respects every dependency."""
    if order != "random":
        yield from range(len(program))
        return
    drawn = random.Random(seed)
    ready = _Ready(program, lambda _: drawn.random())
    while ready:
        command = ready.pop()
        yield command
        ready.done(command)


class _Ready:
    """Commands whose dependencies have ended, those of lowest rank first."""

    def __init__(self, program: Program, rank: Rank) -> None:
        count = len(program)
        self._rank = rank
        pointers, dependencies = program.commands.dep_ptr.tolist(), program.commands.dep_idx.tolist()
        self._waits = [pointers[i + 1] - pointers[i] for i in range(count)]
        self._followers: list[list[int]] = [[] for _ in range(count)]
        for command in range(count):
            for dependency in dependencies[pointers[command] : pointers[command + 1]]:
                self._followers[dependency].append(command)
        self._heap = [(rank(i), i) for i in range(count) if not self._waits[i]]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def pop(self) -> int:
        """Take the command of lowest rank."""
        return heapq.heappop(self._heap)[1]

    def done(self, command: int) -> None:
        """Note that a command has ended."""
        for follower in self._followers[command]:
            self._waits[follower] -= 1
            if not self._waits[follower]:
                heapq.heappush(self._heap, (self._rank(follower), follower))


class _Crew:
    """Threads that run ready commands, the earliest first. One without a ready command leaves, to help with another's kernel."""

    def __init__(self, program: Program, run: Run, pool: Workers) -> None:
        self._ready = _Ready(program, float)
        self._run, self._pool = run, pool
        self._lock = threading.Lock()
        self._members = 0
        self._error: BaseException | None = None
        self._idle = threading.Event()

    def work(self) -> None:
        """Run everything.

        Raises:
            BaseException: what a command raised; commands that had begun have ended then, no others begin.
        """
        with self._lock:
            self._call()
        try:
            self._idle.wait()
        except BaseException as stopped:  # Ctrl-C reaches the waiting thread alone
            with self._lock:
                self._error = stopped
            self._idle.wait()
        if self._error is not None:
            raise self._error

    def _call(self) -> None:
        """Call as many threads as have something to do (the lock is held)."""
        for _ in range(min(len(self._ready), self._pool.threads - self._members)):
            self._members += 1
            self._pool.begin(self._member)
        if not self._members:
            self._idle.set()

    def _member(self) -> None:
        ended: int | None = None
        while (command := self._next(ended)) is not None:
            try:
                self._run(command)
            except BaseException as error:
                self._error = self._error or error
            ended = command

    def _next(self, ended: int | None) -> int | None:
        """Note what ended, call others if there is more than one thing to do, and take the next."""
        with self._lock:
            if ended is not None:
                self._ready.done(ended)
            if not self._ready or self._error is not None:
                self._members -= 1
                if not self._members:
                    self._idle.set()
                return None
            command = self._ready.pop()
            self._call()
            return command
