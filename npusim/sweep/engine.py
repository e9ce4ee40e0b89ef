"""Dask schedules the work: a local cluster of processes, or a scheduler that runs somewhere."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from npusim.errors import BadInputError, MissingExtraError, NpusimError
from npusim.graph import Graph
from npusim.sweep.evaluate import Outcome, Task, check_version, evaluate_batch, version
from npusim.sweep.space import LoadedNetwork

#: How long a scheduler may take to answer, and its first worker to come.
CONNECT_S, FIRST_WORKER_S = 10, 30
#: Nobody looks at the dashboard of a cluster of ours: no sampling of stacks, and few ticks.
_QUIET_CLUSTER = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}
_ADDRESS = r"([a-z]+://)?[^\s/]+:\d{1,5}"


class LostSchedulerError(NpusimError):
    """The connection to the scheduler broke."""


class Engine:
    """Points go out in batches of one network, outcomes come back as they are done.

    A network's layers are sent as the result of a task, so that Dask brings them once to each worker that needs them, and makes them
    again if a worker dies with them.
    """

    def __init__(self, client: Any, address: str) -> None:
        self.client, self.address = client, address
        self._graphs: dict[str, Any] = {}

    @property
    def slots(self) -> int:
        """Points that are computed at the same time."""
        return max(1, sum(int(w["nthreads"]) for w in _workers(self.client).values()))

    def outcomes(
        self, batch: Callable[[], tuple[LoadedNetwork, Sequence[Task]] | None], idle: Callable[[], None]
    ) -> Iterator[list[Outcome]]:
        """Outcomes of one batch at a time, while `batch` gives any: as many are out as keep every worker busy.

        Args:
            batch: the next batch, or None if there is none at the moment.
            idle: called about once a second.

        Raises:
            LostSchedulerError: the scheduler went away.
            BadInputError: a worker has another npusim.
        """
        from distributed import CancelledError

        out: dict[Any, Sequence[Task]] = {}
        try:
            while True:
                while len(out) < 2 * self.slots + 1 and (given := batch()) is not None:
                    network, tasks = given
                    graph = self._graph(network)
                    out[self.client.submit(evaluate_batch, version(), graph, tasks, pure=False)] = tasks
                if not out:
                    return
                for future in _first_done(list(out), idle):
                    yield _result(future, out.pop(future))
        except (CancelledError, OSError) as error:
            raise LostSchedulerError(
                f"the connection to the scheduler at {self.address} is lost ({error}); finished points are kept: "
                "start the same sweep again, with --resume"
            ) from error
        finally:
            if out:
                self.client.cancel(list(out))

    def _graph(self, network: LoadedNetwork) -> Any:
        if network.sha256 not in self._graphs:
            self._graphs[network.sha256] = self.client.submit(_same, network.graph, pure=False)
        return self._graphs[network.sha256]


def _same(graph: Graph) -> Graph:
    return graph


def _first_done(futures: Sequence[Any], idle: Callable[[], None]) -> Sequence[Any]:
    """Futures that are done; waits for at least one."""
    from distributed import wait

    while True:
        idle()
        try:
            return list(wait(futures, timeout=1, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            continue


def _result(future: Any, tasks: Sequence[Task]) -> list[Outcome]:
    """Outcomes of a batch; where its workers died again and again, tasks without a row."""
    from distributed import KilledWorker

    try:
        found: list[Outcome] = future.result()
    except KilledWorker as error:
        told = f"every worker that took it died (the last one: {error.last_worker.address}); is there memory enough?"
        return [Outcome(task=task, row=None, error=told) for task in tasks]
    return found


def _workers(client: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return found


@contextmanager
def open_engine(scheduler: str | None, jobs: int) -> Iterator[Engine]:
    """Connect to a scheduler, or start `jobs` processes of our own.

    Raises:
        BadInputError: the scheduler does not answer, has no worker, or a worker has another npusim.
        MissingExtraError: distributed is not installed.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingExtraError("distributed", "sweep") from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters of it, we say
    if scheduler is None:
        with (
            dask.config.set(_QUIET_CLUSTER),
            LocalCluster(
                n_workers=jobs,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):
            from npusim.sweep.worker import Prepared

            client.register_plugin(Prepared())
            yield Engine(client, cluster.scheduler_address)
        return
    if not re.fullmatch(_ADDRESS, scheduler):
        raise BadInputError(
            f"--scheduler {scheduler}: is no address; 'dask scheduler' prints its own, e.g. tcp://10.0.0.5:8786"
        )
    try:
        client = Client(scheduler, timeout=CONNECT_S)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"--scheduler {scheduler}: does not answer as a Dask scheduler; start one with 'dask scheduler', or leave --scheduler out "
            "to work with processes of this machine"
        ) from error
    with client:
        _check_workers(client, scheduler)
        yield Engine(client, scheduler)


def _check_workers(client: Any, scheduler: str) -> None:
    """At least one worker is there, and all have our npusim."""
    try:
        client.wait_for_workers(1, timeout=FIRST_WORKER_S)
    except TimeoutError as error:
        raise BadInputError(
            f"--scheduler {scheduler}: has no workers after {FIRST_WORKER_S} s; start some: dask worker {scheduler} --nthreads 1"
        ) from error
    try:
        client.run(check_version, version())
    except NpusimError:
        raise
    except Exception as error:
        raise BadInputError(
            f"--scheduler {scheduler}: a worker cannot load this npusim ({type(error).__name__}: {error}); install npusim "
            f"{version()[0]} on every worker and start them again"
        ) from error
