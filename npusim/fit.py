"""Fit numbers of a hardware description to measurements: the rerunnable origin of every number marked `fitted`.

Plans are made with the current numbers, then held while least squares moves the numbers, then made again, until neither changes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from npusim import api
from npusim.cost import Work
from npusim.errors import HardwareError, MissingExtraError
from npusim.hardware import Npu, load_npu, with_values
from npusim.scheduler.problem import Infeasible
from npusim.simulate import simulate
from npusim.summary import attention_blocks
from npusim.units import ps_to_ms

Floats = npt.NDArray[np.float64]
MAX_PARAMETERS = 7


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameter(_Section):
    """A number to fit, by key path, with its bounds; `also` names numbers that always equal it."""

    path: str
    low: float
    high: float
    also: tuple[str, ...] = ()


class Run(_Section):
    """A deployment that was measured."""

    name: str
    model: str
    tiles: str
    segments: str = "all"
    policy: Literal["serial", "decoupled"]
    precision: str


class Target(_Section):
    """A measured figure.

    `latency_ms`: `times` x the latency of `run`. `share`: a row of Table 6 (or `total`) of the first attention with so many queries
    and keys, in percent of that block's time in the run named `of`. Only `fitted` targets pull; the others are predictions.
    """

    run: str
    figure: Literal["latency_ms", "share"]
    value: float
    tolerance: float = Field(gt=0)
    fitted: bool
    times: int = 1
    row: str = ""
    queries: int = 0
    keys: int = 0
    of: str = ""


class Targets(_Section):
    """A fit: which numbers, which deployments, which measurements."""

    npu: str
    parameter: tuple[Parameter, ...] = Field(min_length=1, max_length=MAX_PARAMETERS)
    run: tuple[Run, ...] = Field(min_length=1)
    target: tuple[Target, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """Fitted numbers, what they give for each target, and how far each is determined.

    Attributes:
        values: key path -> fitted number.
        modelled: per target, what the fitted machine gives.
        residuals: per target, modelled minus measured.
        sensitivity: [targets, parameters] change of each figure, in tolerances, per 1 % of each number.
        at_bound: paths whose fitted number lies on a bound.
    """

    values: Mapping[str, float]
    targets: tuple[Target, ...]
    modelled: tuple[float, ...]
    residuals: tuple[float, ...]
    sensitivity: Floats
    at_bound: tuple[str, ...]

    @property
    def worst(self) -> float:
        """Largest residual of all targets, in tolerances."""
        return max(abs(r) / t.tolerance for r, t in zip(self.residuals, self.targets, strict=True))


def load_targets(path: Path) -> Targets:
    """Read a fit's description.

    Raises:
        HardwareError: not TOML, a key unknown, missing or ill-typed.
    """
    try:
        return Targets.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise HardwareError(f"{path}: cannot be read as TOML ({error}); see docs/hardware.md") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise HardwareError(
            f"{path}: {'.'.join(str(p) for p in first['loc'])}: {first['msg']}; see docs/hardware.md"
        ) from error


def fit(targets: Targets, *, rounds: int = 6) -> FitResult:
    """Least squares on the fitted targets, residuals counted in tolerances.

    Raises:
        HardwareError: a run does not fit the hardware at all.
        MissingExtraError: scipy is not installed.
    """
    least_squares = _least_squares()
    npu = load_npu(targets.npu)
    low = np.asarray([p.low for p in targets.parameter])
    high = np.asarray([p.high for p in targets.parameter])
    position = np.clip(
        np.asarray([_value(npu, p.path) for p in targets.parameter]), low * 1.0001, high * 0.9999
    )
    best: tuple[float, Floats, dict[str, api.Profile]] | None = None
    for _ in range(rounds):
        profiles = _profiles(targets, _moved(npu, targets, position))
        found = least_squares(
            lambda x, made=profiles: _pulls(targets, made, _moved(npu, targets, x * (high - low) + low)),
            (position - low) / (high - low), bounds=(0.0, 1.0), diff_step=1e-3,
        )  # fmt: skip
        position = found.x * (high - low) + low
        replanned = _profiles(targets, _moved(npu, targets, position))
        cost = float((_pulls(targets, replanned, _moved(npu, targets, position)) ** 2).sum())
        if best is not None and cost >= best[0] * 0.999:
            break
        best = (cost, position, replanned)
    assert best is not None
    return _result(targets, npu, best[1], best[2], low, high)


def _least_squares() -> Any:
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise MissingExtraError("scipy", "fit") from error
    return least_squares


def _value(npu: Npu, path: str) -> float:
    for found, value in npu.numbers():
        if found == path:
            return float(value)
    raise HardwareError(f"{npu.name}: '{path}' names no number of the hardware description")


def _moved(npu: Npu, targets: Targets, position: Sequence[float] | Floats) -> Npu:
    changes: dict[str, float] = {}
    for parameter, value in zip(targets.parameter, position, strict=True):
        for path in (parameter.path, *parameter.also):
            changes[path] = float(value)
    return with_values(npu, changes)


def _profiles(targets: Targets, npu: Npu) -> dict[str, api.Profile]:
    made: dict[str, api.Profile] = {}
    graphs = {name: api.load_graph(name) for name in {r.model for r in targets.run}}
    for run in targets.run:
        found = api.profile(
            graphs[run.model],
            tiles=run.tiles,
            segments=run.segments,
            policy=run.policy,
            precision=run.precision,
            npu=npu,
        )
        if isinstance(found, Infeasible):
            raise HardwareError(f"run '{run.name}': {found.sentence()}")
        made[run.name] = found
    return made


def modelled_figures(targets: Targets, profiles: Mapping[str, api.Profile], npu: Npu) -> list[float]:
    """What the machine `npu` gives for each target when it runs the Programs of these profiles."""
    latency: dict[str, float] = {}
    blocks: dict[str, list[dict[str, Any]]] = {}
    for name, made in profiles.items():
        trace = simulate(made.program, npu, made.trace.policy, work=Work(made.program, npu))  # type: ignore[arg-type]
        latency[name] = ps_to_ms(trace.makespan_ps)
        blocks[name] = attention_blocks(made.graph, made.program, trace)
    return [
        t.times * latency[t.run] if t.figure == "latency_ms" else _share(t, blocks) for t in targets.target
    ]


def _share(target: Target, blocks: Mapping[str, list[dict[str, Any]]]) -> float:
    mine, base = (_block(target, blocks[name]) for name in (target.run, target.of))
    part = sum(mine["rows"].values()) if target.row == "total" else mine["rows"][target.row]
    return float(100 * part / sum(base["rows"].values()))


def _block(target: Target, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return next(b for b in blocks if (b["queries"], b["keys"]) == (target.queries, target.keys))


def _pulls(targets: Targets, profiles: Mapping[str, api.Profile], npu: Npu) -> Floats:
    figures = modelled_figures(targets, profiles, npu)
    return np.asarray(
        [(f - t.value) / t.tolerance for f, t in zip(figures, targets.target, strict=True) if t.fitted]
    )


def _result(
    targets: Targets,
    npu: Npu,
    position: Floats,
    profiles: Mapping[str, api.Profile],
    low: Floats,
    high: Floats,
) -> FitResult:
    figures = modelled_figures(targets, profiles, _moved(npu, targets, position))
    columns = []
    for i in range(len(position)):
        nudged = position.copy()
        nudged[i] *= 0.99
        moved = np.asarray(modelled_figures(targets, profiles, _moved(npu, targets, nudged)))
        columns.append((figures - moved) / np.asarray([t.tolerance for t in targets.target]))
    edge = (position - low < 1e-3 * (high - low)) | (high - position < 1e-3 * (high - low))
    return FitResult(
        values={p.path: float(v) for p, v in zip(targets.parameter, position, strict=True)},
        targets=targets.target,
        modelled=tuple(figures),
        residuals=tuple(f - t.value for f, t in zip(figures, targets.target, strict=True)),
        sensitivity=np.stack(columns, axis=1),
        at_bound=tuple(p.path for p, e in zip(targets.parameter, edge, strict=True) if e),
    )
