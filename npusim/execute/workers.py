"""Threads that share the rows of one big kernel.

BLAS is kept to one thread meanwhile: its own threads wait by spinning, which is ruinous as soon as anything else runs on the
machine. How rows are cut depends on the kernel's size alone, so that any number of threads gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

#: A kernel of less arithmetic than this (a millisecond) stays whole: whole commands side by side use cores better. One of more is
#: cut in two, and in more if each part is much larger, since BLAS is slower on thin parts (our choice, measured).
WHOLE_OPERATIONS, PART_OPERATIONS = 60_000_000, 100_000_000
PARTS_MAX = 8
#: What one multiply-accumulate, one copied element and one element of a vector function count for (measured, roughly).
MAC_OPERATIONS, COPY_OPERATIONS, ELEMENT_OPERATIONS = 1, 16, 64

Result = TypeVar("Result")
Work = Callable[[slice], None]


class Workers:
    """A pool, or no pool: then kernels run in the calling thread.

    Attributes:
        threads: that compute.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "npusim") if threads > 1 else None

    def share(self, rows: int, operations: int, work: Work, *, least_parts: int = 1, step: int = 1) -> None:
        """Call `work` on slices that cover `rows`, several at a time.

        Args:
            operations: size of the whole kernel, see `MAC_OPERATIONS`.
            least_parts: a lower bound, where a part's working memory is limited.
            step: parts begin at multiples of this.
        """
        steps = max(1, rows // step)
        wanted = min(PARTS_MAX, max(2, operations // PART_OPERATIONS)) if operations > WHOLE_OPERATIONS else 1
        count = min(steps, max(least_parts, wanted))
        cuts = [*(steps * i // count * step for i in range(count)), rows]
        slices = iter([slice(low, high) for low, high in pairwise(cuts)])
        others = min(self.threads, count) - 1
        futures = [self._pool.submit(_drain, slices, work) for _ in range(others)] if self._pool else []
        try:
            _drain(slices, work)
        finally:
            for future in futures:
                if not future.cancel():  # not begun: the calling thread did it all
                    future.result()

    def begin(self, function: Callable[[], object]) -> None:
        """Call a function in a thread of the pool, which there must be."""
        assert self._pool is not None
        self._pool.submit(function)

    def ahead(self, function: Callable[[], Result]) -> Future[Result]:
        """Begin something that will be needed soon; without a pool it is done at once."""
        if self._pool:
            return self._pool.submit(function)
        done: Future[Result] = Future()
        done.set_result(function())
        return done

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def _drain(slices: Iterator[slice], work: Work) -> None:
    for part in slices:
        work(part)


#: No threads of ours.
INLINE = Workers()


@contextmanager
def workers() -> Iterator[Workers]:
    """As many threads as BLAS would use. Without threadpoolctl, BLAS keeps its own threads and we add none."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        yield INLINE
        return
    blas = ThreadpoolController().select(user_api="blas")
    threads = max((library["num_threads"] for library in blas.info()), default=1)
    with blas.limit(limits=1):
        pool = Workers(threads)
        try:
            yield pool
        finally:
            pool.close()
