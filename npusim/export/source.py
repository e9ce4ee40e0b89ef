"""What an exporter is given: a run directory and its model, brought together, read no further than the target needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import npusim
from npusim.cost import Work
from npusim.deployment import PLAN_FILE, SCALES_FILE, match_plan
from npusim.errors import BadInputError, ExportError
from npusim.execute.formats import Numbers, numbers_for
from npusim.graph import Graph, Layer
from npusim.models import zoo
from npusim.onnx_model import OnnxModel
from npusim.onnx_reader import read_onnx
from npusim.passes import to_layers
from npusim.plan import Plan
from npusim.program import Program
from npusim.scales import load_scales
from npusim.simulate import simulate
from npusim.trace import Trace
from npusim.weights import Weights, open_weights


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """A planned deployment to export.

    Attributes:
        directory: the run directory.
        model: the ONNX file, or the name of a zoo network (whose graph has no weights).
        onnx: the model as it was read: its nodes, and the types of its values.
        graph, plan, program: layers, decisions, command stream.
        notes: what the user should know.
    """

    directory: Path
    model: str
    onnx: OnnxModel
    graph: Graph
    plan: Plan
    program: Program
    notes: tuple[str, ...]

    @cached_property
    def weights(self) -> Weights:
        """The model's real weights.

        Raises:
            ModelError: the file holds none, or others.
            BadInputError: the model is a zoo name.
        """
        if not Path(self.model).is_file():
            raise BadInputError(
                f"--model is '{self.model}', a zoo network without weights; this target needs them: "
                f"give an ONNX file with weights ('npusim models build {self.model}' writes one)"
            )
        return open_weights(Path(self.model), self.graph)

    @property
    def needs_scales(self) -> bool:
        """Whether some layer computes in integers."""
        return any(p.precision.startswith("w") for p in self.plan.layers)

    @cached_property
    def numbers(self) -> Numbers:
        """Formats of all tensors and stages, and the weights in them.

        Raises:
            BadInputError: the plan needs scales, and `npusim quantize` has not measured them.
            ExportError: nobody can measure them, since a layer cannot be run.
        """
        return numbers_for(self.graph, self.plan, self.weights, self._scales())

    def _scales(self) -> Mapping[str, float] | None:
        file = self.directory / SCALES_FILE
        if self.needs_scales and not file.is_file():
            for layer in self.graph.layers:
                if layer.op == "unknown":
                    raise inexpressible(layer)
            raise BadInputError(
                f"{self.directory}: holds no {SCALES_FILE}, and its plan computes in {self.plan.options.precision}; "
                f"run 'npusim quantize {self.directory} --model {self.model}' first"
            )
        return load_scales(file, self.plan) if self.needs_scales else None

    @cached_property
    def work(self) -> Work:
        """What each command asks of the hardware."""
        return Work(self.program, self.plan.npu)

    @cached_property
    def trace(self) -> Trace:
        """The simulated run under the planned policy."""
        return simulate(self.program, self.plan.npu, self.plan.options.policy, work=self.work)

    @property
    def traces(self) -> Mapping[str, Trace]:
        """Simulated runs, by policy: the planned one."""
        return {self.plan.options.policy: self.trace}

    @property
    def metadata(self) -> dict[str, str]:
        """Where an exported file comes from: versions and hashes."""
        plan = (self.directory / PLAN_FILE).read_bytes()
        return {
            "npusim.version": npusim.__version__,
            "npusim.model_sha256": self.graph.model_sha256,
            "npusim.plan_sha256": hashlib.sha256(plan).hexdigest(),
            "npusim.program_sha256": self.plan.program_sha256,
        }


def inexpressible(layer: Layer) -> ExportError:
    """The error for a layer that npusim has no arithmetic for."""
    what = layer.attributes.get("onnx_op", layer.op)
    return ExportError(
        f"layer '{layer.name}' stands for the ONNX operator {what}, which npusim can cost but not write; "
        "export the model again without that operator"
    )


def open_source(
    directory: Path, model: str, *, shapes: Mapping[str, Sequence[int]] | None = None, dims: Mapping[str, int] | None = None
) -> ExportSource:  # fmt: skip
    """Read a run directory with its model, and check that they belong together.

    Raises:
        BadInputError: no plan, no model, another model or version.
    """
    path = Path(model)
    if not path.is_file() and model in zoo.names():
        read = read_onnx(zoo.graph_bytes(model), name=model, shapes=shapes, dims=dims)
    else:
        read = read_onnx(path, shapes=shapes, dims=dims)
    graph = to_layers(read)
    graph, plan, program, notes = match_plan(directory, graph, model)
    return ExportSource(
        directory=directory, model=model, onnx=read, graph=graph, plan=plan, program=program, notes=notes
    )
