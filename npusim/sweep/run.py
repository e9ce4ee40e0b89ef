"""A sweep from its spec to its page: what is there already is kept, what is missing is computed, whatever was killed before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from npusim.errors import BadInputError
from npusim.progress import counter
from npusim.sweep.engine import Engine, open_engine
from npusim.sweep.evaluate import Cell, Outcome, Task, code_sha256
from npusim.sweep.objectives import check_objectives
from npusim.sweep.search import search
from npusim.sweep.space import LoadedNetwork, Point, Space, open_space
from npusim.sweep.spec import load_spec
from npusim.sweep.store import STORE, Store

#: A batch is as many points as take a processor for so long: long against the scheduler's work for it, short against what a kill loses.
BATCH_S, MOST_IN_BATCH = 0.5, 64
#: More points than this are asked for once more.
MANY = 100_000
#: While another client computes what is missing, the store is looked at this often.
_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a sweep is run.

    Attributes:
        scheduler: address of a Dask scheduler; None: processes of this machine.
        jobs: how many of them.
        ask: whether to go on, given a sentence; None where nobody can answer.
        say: prints a line.
    """

    scheduler: str | None = None
    jobs: int = 2
    resume: bool = False
    yes: bool = False
    quiet: bool = False
    ask: Callable[[str], bool] | None = None
    say: Callable[[str], None] = print


@dataclass(slots=True)
class Progress:
    """What happened.

    Attributes:
        computed: points whose row was added now.
        known: points that were in the store, or that another client computed meanwhile.
        twice: rows that were computed although they were there (none, unless a client was taken for dead that was not).
        crashed: points in which npusim or their worker broke, with the reason; they are not stored.
    """

    computed: int = 0
    known: int = 0
    twice: int = 0
    crashed: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Runner:
    """Computes points of a sweep that the store does not have.

    Attributes:
        start: starts the engine; called once there is something to compute.
        timed: keys of the points that were computed first, to time them: when the sweep comes to them they are not `known`.
    """

    store: Store
    start: Callable[[], Engine]
    sweep: str
    advance: Callable[[int], None] = lambda more: None
    progress: Progress = field(default_factory=Progress)
    timed: frozenset[str] = frozenset()
    _engine: Engine | None = None
    _seconds: dict[str, float] = field(default_factory=dict)
    _out: dict[str, list[Point]] = field(
        default_factory=dict
    )  # points of one key: the first is computed, all get its row
    _waiting: list[Point] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        """Started when it is first needed."""
        if self._engine is None:
            self._engine = self.start()
        return self._engine

    def compute(self, points: Iterable[Point]) -> None:
        """Compute those that are missing; those that another client computes are waited for, and taken over should it die."""
        source = iter(points)
        while True:
            batches = self._batches(source)
            first = next(batches, None)
            if first is not None:
                batches = chain([first], batches)
                for outcomes in self.engine.outcomes(lambda b=batches: next(b, None), self.store.heartbeat):  # type: ignore[misc]
                    self._keep(outcomes)
            if not self._waiting:
                return
            time.sleep(_POLL_S)
            source, self._waiting = iter(self._waiting), []

    def rows(self, points: Sequence[Point]) -> list[Mapping[str, Cell] | None]:
        """Compute points and give their rows; None for those that crashed."""
        self.compute(points)
        return [self.store.row(p.key) for p in points]

    def _batches(self, source: Iterator[Point]) -> Iterator[tuple[LoadedNetwork, Sequence[Task]]]:
        """Points that are ours to compute, some of one network at a time."""
        batch: list[Point] = []
        known: list[Point] = []
        for point in source:
            if self.store.has(point.key):
                known.append(point)
                if len(known) >= 500:
                    self._join(known)
                continue
            if point.key in self._out:
                self._out[point.key].append(point)
                continue
            if point.key in self.progress.crashed:
                continue
            if batch and (point.network is not batch[0].network or len(batch) >= self._most(point)):
                yield from self._claimed(batch)
                batch = []
            batch.append(point)
            self._out[point.key] = [point]
        self._join(known)
        yield from self._claimed(batch)

    def _most(self, point: Point) -> int:
        seconds = self._seconds.get(_class(point))
        return 1 if seconds is None else max(1, min(MOST_IN_BATCH, round(BATCH_S / max(seconds, 1e-6))))

    def _claimed(self, batch: Sequence[Point]) -> Iterator[tuple[LoadedNetwork, Sequence[Task]]]:
        ours = self.store.claim([p.key for p in batch])
        mine = [p for p in batch if p.key in ours]
        for point in batch:
            if point.key not in ours:
                self._waiting += self._out.pop(point.key)
        if mine:
            yield mine[0].network, [p.task for p in mine]

    def _join(self, known: list[Point]) -> None:
        self.store.join(self.sweep, known)
        self.progress.known += sum(p.key not in self.timed for p in known)
        self.advance(len(known))
        known.clear()

    def _keep(self, outcomes: Sequence[Outcome]) -> None:
        points = [self._out.pop(o.task.key) for o in outcomes]
        done = [(same[0], o) for same, o in zip(points, outcomes, strict=True)]
        self.progress.twice += self.store.add(self.sweep, done)
        self.store.join(
            self.sweep, [p for same, o in zip(points, outcomes, strict=True) if o.row for p in same[1:]]
        )
        for point, outcome in done:
            if outcome.row is None:
                self.progress.crashed[point.key] = outcome.error
            else:
                self.progress.computed += 1
                before = self._seconds.setdefault(_class(point), outcome.processor_s)
                self._seconds[_class(point)] = 0.8 * before + 0.2 * outcome.processor_s
        self.advance(sum(map(len, points)))


def _class(point: Point) -> str:
    """What decides most of a point's time."""
    return f"{point.network.sha256} {point.task.tiles} {point.task.segments}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep that was opened: its space, and where its results are."""

    space: Space
    store: Store
    folder: Path

    @property
    def name(self) -> str:
        """Of its folder and its view."""
        return self.space.spec.name


def open_sweep(path: Path, out: Path) -> Sweep:
    """Read and check a spec, and open the store.

    Raises:
        BadInputError: the spec cannot be used.
        OutputError: the store cannot be used.
    """
    spec = load_spec(path)
    try:
        check_objectives(spec)
        space = open_space(spec, path.parent)
    except BadInputError as error:
        raise type(error)(f"{path}: {error}") from error
    return Sweep(space=space, store=Store(out / STORE), folder=out / spec.name)


def run_sweep(sweep: Sweep, options: Options) -> Progress:
    """Compute what the store lacks of a sweep.

    Raises:
        BadInputError: too many points and nobody to ask, nothing to resume, or a scheduler that cannot be used.
        LostSchedulerError: the scheduler went away meanwhile.
    """
    space, store, search_for = sweep.space, sweep.store, sweep.space.spec.search
    grid = search_for.method == "grid"
    total = space.size if grid else search_for.trials * len(space.networks)
    _check_count(space, total, options)
    _check_resume(sweep, options)
    options.say(f"sweep {sweep.name}: {_product(space)}" if grid else _search_sentence(space, total))
    store.begin(sweep.name, _spec_text(space), code_sha256(), list(space.spec.axes))
    with ExitStack() as stack:
        runner = Runner(
            store=store, sweep=sweep.name, start=lambda: stack.enter_context(open_engine(options.scheduler, options.jobs))
        )  # fmt: skip
        known = _known(space, store) if grid else 0
        if known < total:
            _time_samples(runner, space)
            timed = len(runner.timed) if grid else 0
            options.say(_estimate(space, store, (known, timed, total - known - timed), runner.engine.slots))
        _ask(total, options)
        with counter(f"sweep {sweep.name}", total, quiet=options.quiet) as advance:
            runner.advance = advance
            if grid:
                runner.compute(space)
            else:
                search(space, runner.rows)
    return runner.progress


def _time_samples(runner: Runner, space: Space) -> None:
    """Compute one point of each kind, so that the time of all can be said."""
    samples = [p for p in space.samples() if not runner.store.has(p.key)]
    runner.compute(samples)
    runner.timed = frozenset(p.key for p in samples)
    runner.progress.known = 0


def _ask(total: int, options: Options) -> None:
    if total > MANY and not options.yes and options.ask is not None and not options.ask("go on?"):
        raise BadInputError(f"not started; the {total:,} points were not wanted")


def _check_count(space: Space, total: int, options: Options) -> None:
    if total > MANY and not options.yes and options.ask is None:
        raise BadInputError(
            f"sweep {space.spec.name}: {_product(space)}, and nobody can be asked here whether that is meant; give --yes if it is, "
            "fewer values per axis, or a [search]"
        )


def _check_resume(sweep: Sweep, options: Options) -> None:
    if not options.resume:
        return
    begun = sweep.store.begun(sweep.name)
    place = sweep.store.path
    if begun is None:
        raise BadInputError(
            f"--resume: {place} holds no sweep '{sweep.name}'; leave out --resume to start it, or give its --out"
        )
    spec, code = begun
    if spec != _spec_text(sweep.space):
        raise BadInputError(
            f"--resume: sweep '{sweep.name}' was started with another spec; leave out --resume to run this one "
            "(points that both have are not computed again)"
        )
    if code != code_sha256():
        raise BadInputError(
            f"--resume: sweep '{sweep.name}' was started by another npusim; leave out --resume to compute its points again with this one"
        )


def _spec_text(space: Space) -> str:
    return space.spec.model_dump_json(by_alias=True)


def _product(space: Space) -> str:
    """`3 networks x 8 sram.sram_bytes = 24 points`."""
    parts = [f"{len(space.networks)} network{'s' * (len(space.networks) > 1)}"]
    parts += [f"{len(d.settings)} {d.name}" for d in space.dimensions if len(d.settings) > 1]
    return f"{' x '.join(parts)} = {space.size:,} point{'s' * (space.size != 1)}"


def _search_sentence(space: Space, total: int) -> str:
    asked = space.spec.search
    return (
        f"sweep {space.spec.name}: {asked.method}, {asked.trials:,} trials on {len(space.networks)} networks = {total:,} points at most, "
        f"of {space.size:,} possible ones"
    )


def _known(space: Space, store: Store) -> int:
    """Points of a grid that the store has."""
    if space.size > MANY or store.empty:
        return 0
    return sum(store.has(p.key) for p in space)


def _estimate(space: Space, store: Store, counts: tuple[int, int, int], slots: int) -> str:
    """How many points are known, were timed just now and are left; how long these take, from the mean time of points of their kind."""
    known, timed, left = counts
    classes = {(p.network.sha256, p.task.tiles, p.task.segments) for p in space.samples()}
    times = [t for t in (store.seconds(c, code_sha256()) for c in classes) if t is not None]
    seconds = left * sum(times) / len(times) / slots if times else 0.0
    there = f"{known:,} are in the store, " * bool(known) + f"{timed:,} were timed; " * bool(timed)
    return f"{there}{left:,} to compute on {slots} worker{'s' * (slots > 1)}, about {_duration(seconds)}"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, round(seconds))} s"
