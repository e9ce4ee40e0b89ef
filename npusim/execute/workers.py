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

#: Least arithmetic of a part (a fraction of a millisecond), and most parts of one kernel (our choice).
PART_OPERATIONS = 6_000_000
PARTS_MAX = 16
#: What one multiply-accumulate of a product, and one element of a vector function, count for (measured, roughly).
MAC_OPERATIONS, ELEMENT_OPERATIONS = 1, 64

Result = TypeVar("Result")
Work = Callable[[slice], None]


class Workers:
    """A pool, or no pool: then kernels run in the calling thread.

    Attributes:
        threads: that compute, the calling one included.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "npusim") if threads > 1 else None

    def share(self, rows: int, operations: int, work: Work, *, least_parts: int = 1) -> None:
        """Call `work` on slices that cover `rows`, several at a time.

        Args:
            operations: size of the whole kernel, see `MAC_OPERATIONS`.
            least_parts: a lower bound, where a part's working memory is limited.
        """
        count = min(max(1, rows), max(least_parts, min(PARTS_MAX, operations // PART_OPERATIONS)))
        cuts = [rows * i // count for i in range(count + 1)]
        slices = iter([slice(low, high) for low, high in pairwise(cuts)])
        others = min(self.threads, count) - 1
        futures = [self._pool.submit(_drain, slices, work) for _ in range(others)] if self._pool else []
        try:
            _drain(slices, work)
        finally:
            for future in futures:
                if not future.cancel():  # not begun: the calling thread did it all
                    future.result()

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
