"""Sampled search: Optuna proposes, every proposal is run on every network, the objectives are told back.

Proposals are made in batches and told back in the order in which they were made, from a seed: the same sweep proposes the same points
whatever the number of workers, and a resumed one finds its first points in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from typing import Any

from npusim.errors import MissingExtraError
from npusim.sweep.evaluate import DONE, Cell
from npusim.sweep.objectives import value_of
from npusim.sweep.space import Point, Space

#: Computes points (those that are in the store already are not computed) and gives (axes, row) of each, or None if it crashed.
Compute = Callable[[Sequence[Point]], Sequence[Mapping[str, Cell] | None]]


def search(space: Space, compute: Compute) -> None:
    """Propose batches of points until the spec's number of trials is reached.

    Raises:
        MissingExtraError: optuna is not installed.
    """
    study = _study(space)
    spec = space.spec
    distributions = _distributions(space)
    for first in range(0, spec.search.trials, spec.search.batch):
        count = min(spec.search.batch, spec.search.trials - first)
        trials = [study.ask(distributions) for _ in range(count)]
        points: list[Point] = []
        for trial in trials:
            choice = [trial.params.get(d.name, 0) for d in space.dimensions]
            points += [space.point(n, choice) for n in range(len(space.networks))]
        rows = compute(points)
        width = len(space.networks)
        for i, trial in enumerate(trials):
            part = slice(i * width, (i + 1) * width)
            _tell(study, trial, spec.objectives, points[part], rows[part])


def _study(space: Space) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "sweep") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = space.spec.search
    samplers: Mapping[str, Callable[[], Any]] = {
        "random": lambda: optuna.samplers.RandomSampler(seed=asked.seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=asked.seed, n_startup_trials=min(10, asked.batch)),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=asked.seed, population_size=asked.batch),
    }
    return optuna.create_study(
        directions=["minimize"] * len(space.spec.objectives), sampler=samplers[asked.method]()
    )


def _distributions(space: Space) -> dict[str, Any]:
    """The place on each axis: a whole number where values are numbers in order, else a category."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    found: dict[str, Any] = {}
    for d in space.dimensions:
        if len(d.settings) == 1:
            continue
        ordered = all(isinstance(v, int | float) for v in d.values) and list(d.values) == sorted(d.values)
        found[d.name] = (
            IntDistribution(0, len(d.settings) - 1)
            if ordered
            else CategoricalDistribution(range(len(d.settings)))
        )
    return found


def _tell(
    study: Any,
    trial: Any,
    objectives: Sequence[str],
    points: Sequence[Point],
    rows: Sequence[Mapping[str, Cell] | None],
) -> None:
    """Each objective over all networks: the geometric mean, or the mean where a figure is not positive."""
    from optuna.trial import TrialState

    done = [(p, r) for p, r in zip(points, rows, strict=True) if r is not None and r["status"] == DONE]
    if len(done) < len(points):
        study.tell(trial, state=TrialState.FAIL)
        return
    study.tell(trial, [_mean([value_of(o, p.axes, r) for p, r in done]) for o in objectives])


def _mean(values: Sequence[float]) -> float:
    if all(v > 0 for v in values):
        return exp(sum(map(log, values)) / len(values))
    return sum(values) / len(values)
