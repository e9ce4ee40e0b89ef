"""From a model with its weights to answers: the measured errors, the searched costs, and a chosen point executed once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from npusim.calibrate import read_inputs, seeded_inputs
from npusim.errors import BadInputError
from npusim.graph import Graph
from npusim.ops import macs_of
from npusim.precision_search.search import CLOSE, Planner, Point, Search, start_search
from npusim.progress import counter
from npusim.sensitivity.conditioning import conditioning_share, without_text
from npusim.sensitivity.errors import Sensitivity, sqnr_db
from npusim.sensitivity.run import Measuring, measure
from npusim.sensitivity.subject import Inputs, Subject
from npusim.sensitivity.walk import SMALL_MACS
from npusim.units import PS_PER_MS
from npusim.weights import open_weights

#: The word that asks for seeded inputs.
SEEDED = "seeded"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a precision for every layer must keep; the least latency is wanted where an SQNR is given, else the least error."""

    min_sqnr_db: float | None = None
    max_latency_ms: float | None = None
    max_dram_bytes: int | None = None

    @property
    def minimise(self) -> str:
        """The objective that is as small as the limits allow."""
        return "latency_ps" if self.min_sqnr_db is not None else "error"

    @property
    def limits(self) -> dict[str, float]:
        """Objective -> most."""
        found: dict[str, float] = {}
        if self.min_sqnr_db is not None:
            found["error"] = 10 ** (-self.min_sqnr_db / 10)
        if self.max_latency_ms is not None:
            found["latency_ps"] = self.max_latency_ms * PS_PER_MS
        if self.max_dram_bytes is not None:
            found["dram_bytes"] = self.max_dram_bytes
        return found

    def check(self) -> None:
        """Refuse no goal, and limits that are no numbers.

        Raises:
            BadInputError: one sentence.
        """
        if not self.limits:
            raise BadInputError(
                "--precision auto needs something to keep: give --min-sqnr DB, --max-latency MS or --max-dram BYTES"
            )
        for option, value in (("--min-sqnr", self.min_sqnr_db), ("--max-latency", self.max_latency_ms)):
            if value is not None and not isfinite(value):
                raise BadInputError(f"{option} is {value}; a finite number is needed")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A network whose errors are known.

    Attributes:
        model: its file.
        note: what the inputs are.
        empty: the same inputs without text, of a text-conditioned network.
    """

    model: Path
    subject: Subject
    errors: Sensitivity
    note: str
    empty: Sequence[Inputs] | None

    @property
    def graph(self) -> Graph:
        """Its layers, without casts."""
        return self.subject.graph

    @property
    def is_small(self) -> bool:
        """Whether executing it takes no time to speak of."""
        return sum(macs_of(self.graph, x) for x in self.graph.layers) <= SMALL_MACS


def measure_model(
    model: str, graph: Graph, calibration: str | None, how: Measuring, *, unconditional: Path | None = None, seed: int = 0
) -> Measured:  # fmt: skip
    """Measure what precisions cost a model in error.

    Args:
        calibration: an `.npz` of inputs, or `seeded`.
        unconditional: an `.npz` with the embedding of an empty prompt, under the text input's name.

    Raises:
        BadInputError: the model has no weights, or nothing says what to feed it.
    """
    path = Path(model)
    if not path.is_file():
        raise BadInputError(
            f"'{model}' is a network of the zoo without weights, and error is measured on real ones: give an ONNX file with its weights "
            f"('npusim models build {model}' writes one)"
        )
    if calibration is None:
        raise BadInputError(
            "error is measured on real inputs: give --calibration X.npz (arrays by input name, several sets along a leading axis), "
            f"or --calibration {SEEDED} for inputs drawn from a seed"
        )
    weights = open_weights(path, graph)
    seeded = calibration == SEEDED
    inputs = list(seeded_inputs(graph, seed=seed)) if seeded else read_inputs(Path(calibration), graph)
    note = (
        f"inputs drawn from seed {seed}"
        if seeded
        else f"{len(inputs)} sets of inputs from {Path(calibration).name}"
    )
    subject, errors = measure(graph, weights, inputs, how)
    return Measured(
        model=path, subject=subject, errors=errors, note=note, empty=_empty(graph, inputs, unconditional)
    )


def _empty(graph: Graph, inputs: Sequence[Inputs], unconditional: Path | None) -> Sequence[Inputs] | None:
    if unconditional is None:
        return without_text(graph, inputs)
    from npusim.scales import read_npz
    from npusim.sensitivity.conditioning import text_input

    name = text_input(graph)
    arrays = read_npz(unconditional)
    if name is None or name not in arrays or arrays[name].shape != np.shape(inputs[0][name]):
        raise BadInputError(
            f"{unconditional}: holds no array '{name or 'of a text input'}' of the model's shape; give the embedding of an empty prompt"
        )
    return without_text(graph, inputs, arrays[name])


def begin(measured: Measured, planner: Planner, *, quiet: bool = True) -> Search:
    """Simulate the uniform precisions."""
    options = measured.errors.options
    with counter("planning uniform precisions", len(options), quiet=quiet) as done:
        return start_search(measured.graph, planner, measured.errors, say=lambda _: done(1))


def choose(search: Search, goal: Goal, *, quiet: bool = True) -> Point:
    """The best point that keeps the goal's limits.

    Raises:
        BadInputError: nothing that was found keeps them.
    """
    goal.check()
    from npusim.progress import stage

    with stage("searching precisions", quiet=quiet):
        found = search.best(goal.minimise, goal.limits)
    if found is None:
        raise BadInputError(_refusal(search, goal))
    return found


def _refusal(search: Search, goal: Goal) -> str:
    """Why no point was found: the best that was, objective by objective."""
    best = np.min([p.values for p in search.points.values()], axis=0)
    asked = {"error": f"--min-sqnr {goal.min_sqnr_db}", "latency_ps": f"--max-latency {goal.max_latency_ms}",
             "dram_bytes": f"--max-dram {goal.max_dram_bytes}"}  # fmt: skip
    reached = {
        "error": f"{sqnr_db(best[0]):.1f} dB",
        "latency_ps": f"{best[1] / PS_PER_MS:.3f} ms",
        "dram_bytes": f"{best[2]:.0f} bytes",
    }
    return (
        f"no precision of the layers keeps {' and '.join(asked[n] for n in goal.limits)} on {search.planner.npu.name}; reached, each on "
        f"its own: {', '.join(reached[n] for n in goal.limits)}; "
        "allow more, or give an NPU with more of what binds"
    )


def executed(measured: Measured, precisions: Mapping[str, str]) -> dict[str, float | None]:
    """SQNR of the output, and of the difference that the text makes, as the executor computes them (dB; null: equal to FP32)."""
    found = {"measured_sqnr_db": _finite(sqnr_db(measured.subject.measured_share(precisions)))}
    if measured.empty is not None:
        found["conditioning_sqnr_db"] = _finite(
            sqnr_db(conditioning_share(measured.subject, precisions, measured.empty))
        )
    return found


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def point_figures(search: Search, point: Point) -> dict[str, Any]:
    """A point as `search.json` holds it, without what only executing it can tell."""
    precisions = search.choices.precisions(point.picks)
    counts = {o: sum(p == o for p in precisions.values()) for o in search.choices.options}
    return {
        "name": point.name or "mixed",
        "precisions": {o: n for o, n in counts.items() if n},
        "predicted_sqnr_db": _finite(sqnr_db(float(point.values[0]))),
        "latency_ms": float(point.values[1]) / PS_PER_MS,
        "predicted_latency_ms": point.predicted_ps / PS_PER_MS,
        "dram_bytes": int(point.values[2]),
        "energy_mj": float(point.values[3]) / 1e9,
        "layers": precisions,
    }


def within_prediction(point: Mapping[str, Any]) -> bool:
    """Whether a point was simulated as fast as predicted, to 2 %."""
    return bool(abs(point["predicted_latency_ms"] / point["latency_ms"] - 1) <= CLOSE)
