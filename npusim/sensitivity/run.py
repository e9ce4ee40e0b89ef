"""Measure a network: what the store lacks, in one or more processes; then all of it together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from npusim.calibrate import Method, measure_ranges
from npusim.errors import BadInputError, NpusimError
from npusim.execute.workers import workers
from npusim.graph import Graph
from npusim.precisions import Precisions
from npusim.progress import counter, stage
from npusim.sensitivity.errors import Sensitivity, averaged, fitted_second_order, summed_share
from npusim.sensitivity.store import Store, default_cache, key_of
from npusim.sensitivity.subject import OPTIONS, Inputs, Subject, scale_table
from npusim.sensitivity.walk import Walk, blocks
from npusim.weights import Weights

#: Seconds between two looks at what other processes have finished.
_LOOK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How a network is measured.

    Attributes:
        options: precisions that layers choose from.
        cache: folder of measured errors (default: the user's cache).
        processes: that measure at a time; each takes sets of inputs.
        method: how scales are chosen (see `npusim.calibrate`).
    """

    options: tuple[str, ...] = OPTIONS
    cache: Path | None = None
    processes: int = 1
    method: Method = "auto"
    quiet: bool = True


def measure(
    graph: Graph, weights: Weights, inputs: Sequence[Inputs], how: Measuring | None = None
) -> tuple[Subject, Sensitivity]:
    """Error of every layer and option at the network's output.

    Blocks that were measured before, with the same weights, inputs, options and code, are read from the cache; an interrupted run
    goes on where it was.

    Raises:
        BadInputError: no inputs, or bad ones; a layer that npusim cannot run.
    """
    how = how or Measuring()
    if not inputs:
        raise BadInputError("sensitivity: there are no inputs; give at least one set")
    with stage("hashing weights and inputs", quiet=how.quiet):
        key = key_of(graph, weights, inputs, how.options, how.method)
    store = Store((how.cache or default_cache()) / key)
    table = store.scales()
    if table is None:
        with stage(f"measuring ranges on {len(inputs)} sets of inputs", quiet=how.quiet):
            table = scale_table(graph, measure_ranges(graph, weights, inputs), how.method)
        store.keep_scales(table)
    subject = Subject(graph=graph, weights=weights, inputs=inputs, scales=table, options=how.options)
    _measure_missing(subject, store, how)
    parts = blocks(graph)
    found = averaged(how.options, [[store.load(n, b) for b in parts] for n in range(len(inputs))])
    with stage("measuring what does not add up", quiet=how.quiet):
        return subject, _with_second_order(subject, found)


def _with_second_order(subject: Subject, found: Sensitivity) -> Sensitivity:
    """Fit the growth of large noise on the noisiest uniform precision."""
    names = [x.name for x in subject.graph.layers]

    def summed(option: str) -> float:
        return summed_share(subject.graph, found, dict.fromkeys(names, option))

    noisy = [o for o in subject.options if 0 < summed(o) < float("inf")]
    if not noisy:
        return found
    worst: Precisions = dict.fromkeys(names, max(noisy, key=summed))
    share = subject.measured_share(worst)
    return replace(found, second_order=fitted_second_order(summed_share(subject.graph, found, worst), share))


def _measure_missing(subject: Subject, store: Store, how: Measuring) -> None:
    parts = blocks(subject.graph)
    missing = {n: [b for b in parts if not store.has(n, b)] for n in range(len(subject.inputs))}
    sets = [n for n, lacking in missing.items() if lacking]
    left = sum(map(len, missing.values()))
    total = len(parts) * len(missing)
    if not left:
        return
    with counter("measuring blocks of layers", total, done=total - left, quiet=how.quiet) as done:
        if min(how.processes, len(sets)) > 1:
            _in_processes(subject, store, sets, how.processes, done)
        else:
            with workers() as pool:
                for number in sets:
                    _one_set(subject, store, number, done, Walk(subject, number, pool=pool))


def _one_set(subject: Subject, store: Store, number: int, done: Callable[[int], None], walk: Walk) -> None:
    """Measure the blocks that a set of inputs lacks; nothing is run beyond the last of them."""
    parts = blocks(subject.graph)
    last = max(b.start for b in parts if not store.has(number, b))
    for block in parts:
        if block.start > last:
            return
        if store.has(number, block):
            walk.skip(block)
        else:
            store.keep(number, block, walk.measure(block))
            done(1)


# ---- several processes -----------------------------------------------------------------------------------------------


def _in_processes(
    subject: Subject, store: Store, sets: Sequence[int], count: int, done: Callable[[int], None]
) -> None:
    """Each process takes every count-th set of inputs; none outlives this call."""
    context = multiprocessing.get_context("fork")
    count = min(count, len(sets))
    before = _finished(subject, store)
    running = [
        context.Process(target=_worker, args=(subject, store, sets[i::count]), daemon=True)
        for i in range(count)
    ]
    try:
        for process in running:
            process.start()
        while any(p.is_alive() for p in running):
            time.sleep(_LOOK_S)
            now = _finished(subject, store)
            done(now - before)
            before = now
            if any(p.exitcode for p in running):
                break
    finally:  # those that are still at it are ended: another one failed, or the user stopped us
        for process in running:
            if process.is_alive():
                process.terminate()
            if process.pid is not None:
                process.join()
    if any(p.exitcode for p in running):
        raise NpusimError(
            "sensitivity: a process that measures stopped (see above); what it finished is kept: run the same command again"
        )


def _finished(subject: Subject, store: Store) -> int:
    return sum(store.has(n, b) for n in range(len(subject.inputs)) for b in blocks(subject.graph))


def _worker(subject: Subject, store: Store, sets: Sequence[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    with _one_thread():
        for number in sets:
            _one_set(subject, store, number, lambda more: None, Walk(subject, number))
    os._exit(0)  # a forked copy has nothing of its own to clean up


@contextmanager
def _one_thread() -> Iterator[None]:
    """BLAS on one thread: the processes share the cores among them."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
        return
    with threadpool_limits(1):
        yield
