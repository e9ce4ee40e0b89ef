"""A run directory and a model, brought together: quantize it, run it, compare it with onnxruntime in FP32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npusim.calibrate import (
    Method,
    choose_scales,
    measure_ranges,
    read_inputs,
    seeded_inputs,
)
from npusim.errors import BadInputError, MissingExtraError, PlanError
from npusim.execute.compare import LayerLoss, compare_layers
from npusim.execute.formats import Numbers, numbers_for
from npusim.execute.measure import Closeness, closeness
from npusim.execute.order import Order
from npusim.execute.run import execute
from npusim.files import write_aside
from npusim.graph import Graph
from npusim.lower import lower
from npusim.onnx_reader import read_onnx
from npusim.passes import to_layers
from npusim.plan import Plan, load_plan
from npusim.precisions import MIXED, common_precision, with_casts
from npusim.program import Program
from npusim.run_directory import is_pipeline_run
from npusim.scales import load_scales, save_scales
from npusim.weights import Weights, open_weights

Array = npt.NDArray[Any]
PLAN_FILE, SCALES_FILE = "plan.json", "scales.npz"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A plan with the model that it was made for.

    Attributes:
        scales: of activations, where they have been measured.
        notes: what the user should know.
    """

    graph: Graph
    plan: Plan
    program: Program
    weights: Weights
    model: Path
    scales: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def needs_scales(self) -> bool:
        """Whether some layer computes in integers."""
        return any(p.precision.startswith("w") for p in self.plan.layers)

    def numbers(self) -> Numbers:
        """Formats and encoded weights."""
        return numbers_for(self.graph, self.plan, self.weights, self.scales)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What came out of a run.

    Attributes:
        deployment: what was run.
        outputs: FP32 arrays by output name.
        closeness: per output against onnxruntime in FP32 (empty unless verified).
        layers: per layer against FP32 of the same weights (empty unless verified).
        notes: what was assumed (seeded inputs, calibration on the spot).
    """

    deployment: Deployment
    outputs: Mapping[str, Array]
    closeness: Mapping[str, Closeness]
    layers: Sequence[LayerLoss]
    notes: tuple[str, ...]


class Matched(NamedTuple):
    """A plan brought together with its model.

    Attributes:
        graph: the model's layers, with the casts of a plan of several precisions.
        program: what the plan lowers to.
        notes: what the user should know.
    """

    graph: Graph
    plan: Plan
    program: Program
    notes: tuple[str, ...]


def match_plan(directory: Path, graph: Graph, model: object) -> Matched:
    """The plan of a run directory for a model's layers, and the Program that it lowers to.

    Args:
        model: what the layers were read from, for messages.

    Raises:
        PlanError: no plan, another model, another version.
    """
    if is_pipeline_run(directory):
        raise PlanError(
            f"{directory}: is a pipeline's run and holds no plan of its own; give the run of one of its networks, a folder in it"
        )
    plan = load_plan(directory / PLAN_FILE)
    graph = _cast_as_planned(graph, plan)
    if {t.name for t in plan.tensors} != set(graph.tensors) or [p.name for p in plan.layers] != [
        x.name for x in graph.layers
    ]:
        what = (
            f"was made by npusim {plan.npusim_version}, which read {model} into other layers than this one does; profile it again"
            if plan.model.sha256 == graph.model_sha256
            else f"is for '{plan.model.name}', whose layers {model} does not have; give the model that was profiled"
        )
        raise PlanError(f"{directory}: its plan {what}")
    program = _lowered(graph, plan, directory)
    if program.sha256() != plan.program_sha256:
        raise PlanError(
            f"{directory}: its plan lowers to another Program on {model} than the one that was simulated; "
            "the shapes, the plan's hardware or npusim's version differ; "
            "give the --dim and --shape that it was profiled with, or profile the model again"
        )
    other = graph.model_sha256 != plan.model.sha256
    notes = (f"{model} is another file than the one profiled, with the same layers",) if other else ()
    return Matched(graph, plan, program, notes)


def _cast_as_planned(graph: Graph, plan: Plan) -> Graph:
    """The model's layers with the casts that the plan's precisions ask for; as they are where they are another model's."""
    known = {x.name for x in graph.layers}
    given = {name: precision for name, precision in plan.precisions.items() if name in known}
    if common_precision(plan.precisions) != MIXED or len(given) < len(known):
        return graph
    try:
        return with_casts(graph, given)[0]
    except BadInputError as error:
        raise PlanError(f"plan of '{plan.model.name}': {error}; profile the model again") from error


def open_deployment(
    directory: Path,
    model: Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
) -> Deployment:
    """Read a run directory with its model, and check that they belong together.

    Raises:
        BadInputError: no plan, another model, another version, weights or scales that do not fit.
    """
    graph = to_layers(read_onnx(model, shapes=shapes, dims=dims))
    graph, plan, program, notes = match_plan(directory, graph, model)
    found = Deployment(
        graph=graph, plan=plan, program=program, weights=open_weights(model, graph), model=model, notes=notes
    )
    scales = directory / SCALES_FILE
    if found.needs_scales and scales.is_file():
        return replace(found, scales=load_scales(scales, plan))
    return found


def _lowered(graph: Graph, plan: Plan, directory: Path) -> Program:
    """The Program of a plan that came from a file, whose decisions may contradict one another."""
    try:
        return lower(graph, plan)
    except (AssertionError, ArithmeticError, LookupError, ValueError, StopIteration) as error:
        raise PlanError(
            f"{directory}: its plan cannot be lowered ({type(error).__name__}: {error}): segments, pieces or slots contradict one "
            "another; it was changed by hand or cut short; profile the model again"
        ) from error


def calibrate(
    deployment: Deployment,
    *,
    inputs: Sequence[Mapping[str, Array]] | None = None,
    method: Method = "auto",
    seed: int = 0,
) -> Deployment:
    """The deployment with scales measured on the given inputs, or on seeded ones over several timesteps."""
    batches = inputs if inputs is not None else list(seeded_inputs(deployment.graph, seed=seed))
    ranges = measure_ranges(deployment.graph, deployment.weights, batches)
    return replace(deployment, scales=choose_scales(deployment.graph, deployment.plan, ranges, method))


def quantize_directory(
    directory: Path, model: Path, *, calibration: Path | None = None, method: Method = "auto", seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None, dims: Mapping[str, int] | None = None,
) -> Deployment:  # fmt: skip
    """Measure ranges on real weights, write `scales.npz` beside the plan, and its hash into the plan.

    Raises:
        BadInputError: see `open_deployment`; the plan has no integer layer; the calibration inputs are bad.
    """
    deployment = open_deployment(directory, model, shapes=shapes, dims=dims)
    if not deployment.needs_scales:
        raise BadInputError(
            f"{directory}: its plan is in {deployment.plan.options.precision}, which needs no scales"
        )
    batches = read_inputs(calibration, deployment.graph) if calibration is not None else None
    result = calibrate(deployment, inputs=batches, method=method, seed=seed)
    source = calibration.name if calibration is not None else f"seed {seed}"
    assert result.scales is not None
    plan = save_scales(directory / SCALES_FILE, result.scales, result.plan, method=method, source=source)
    write_aside(directory / PLAN_FILE, lambda aside: aside.write_text(plan.to_json(), "utf-8"))
    return replace(result, plan=plan)


def run_directory(
    directory: Path, model: Path, *, inputs: Path | None = None, verify: bool = False, order: Order = "parallel", seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None, dims: Mapping[str, int] | None = None,
) -> RunResult:  # fmt: skip
    """Execute a run directory's Program on real weights.

    Args:
        inputs: `.npz` with one array per input; seeded ones without.
        verify: also compare with onnxruntime in FP32, and each layer with FP32.
        order, seed: the order of commands; `seed` also draws inputs where none are given.

    Raises:
        BadInputError: see `open_deployment`; inputs are bad.
        MissingExtraError: onnxruntime is needed to verify.
    """
    deployment = open_deployment(directory, model, shapes=shapes, dims=dims)
    notes = list(deployment.notes)
    if inputs is None:
        notes.append(f"inputs drawn from seed {seed}")
    arrays = (
        read_inputs(inputs, deployment.graph)[0]
        if inputs is not None
        else next(seeded_inputs(deployment.graph, seed=seed))
    )
    if deployment.needs_scales and deployment.scales is None:
        notes.append(
            "there is no scales.npz: calibrated on seeded inputs (run 'npusim quantize' to choose them)"
        )
        deployment = calibrate(deployment, seed=seed)
    numbers = deployment.numbers()
    outputs = execute(
        deployment.graph, deployment.plan, deployment.program, numbers, arrays, order=order, seed=seed
    )
    if not verify:
        return RunResult(deployment=deployment, outputs=outputs, closeness={}, layers=(), notes=tuple(notes))
    reference = run_onnxruntime(deployment.model, arrays)
    close = {name: closeness(values, reference[name]) for name, values in outputs.items()}
    layers = compare_layers(deployment.graph, numbers, arrays)
    return RunResult(
        deployment=deployment, outputs=outputs, closeness=close, layers=layers, notes=tuple(notes)
    )


def run_onnxruntime(model: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of a model by onnxruntime on the CPU, in the model's own types.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        BadInputError: onnxruntime refuses the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "export") from error
    try:
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        feeds = {
            i.name: np.asarray(inputs[i.name], dtype=_ORT_TYPES.get(i.type, "float32"))
            for i in session.get_inputs()
        }
        names = [o.name for o in session.get_outputs()]
        return {n: np.asarray(v) for n, v in zip(names, session.run(names, feeds), strict=True)}
    except Exception as error:  # onnxruntime raises types of its own
        raise BadInputError(
            f"{model}: onnxruntime cannot run it ({str(error).splitlines()[0][:200]}); run without --verify"
        ) from error


_ORT_TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(int64)": "int64",
    "tensor(int32)": "int32", "tensor(bool)": "bool",
}  # fmt: skip
