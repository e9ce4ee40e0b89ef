"""A function over batches of items, here or on several processes: results in order, a bounded number in flight."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from npusim.errors import BadInputError

T = TypeVar("T")
R = TypeVar("R")

BATCH = 64
"""Items per task, and finished records that a kill may cost at most twice over (they are made again)."""


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def batches(items: Iterable[T], size: int = BATCH, first: int = 0) -> Iterator[list[T]]:
    """The items in lists of at most `size`, which end at multiples of it if the first item's number is `first`."""
    rest = iter(items)
    wanted = size - first % size
    while batch := list(islice(rest, wanted)):
        yield batch
        wanted = size


def stream(
    function: Callable[[Sequence[T]], list[R]], items: Iterable[T], *, workers: int = 1, first: int = 0
) -> Iterator[list[R]]:
    """The function's results, batch by batch, in the items' order.

    Args:
        function: picklable if `workers` > 1.
        workers: processes; 1 computes here. They end with this process, however it ends.
        first: the number of the first item: a resumed run cuts its batches where the killed one did.

    Raises:
        BadInputError: a worker was killed (memory, most likely).
    """
    if workers <= 1:
        yield from (function(chunk) for chunk in batches(items, BATCH, first))
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent)
    flight: deque[Future[list[R]]] = deque()
    try:
        for chunk in batches(items, BATCH, first):
            flight.append(pool.submit(function, chunk))
            if len(flight) > 2 * workers:
                yield flight.popleft().result()
        while flight:
            yield flight.popleft().result()
    except BrokenProcessPool as error:
        raise BadInputError(
            "a worker process was killed, perhaps for want of memory; what was finished is kept: run the same command again "
            "with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when it ends, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
