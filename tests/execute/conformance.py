"""ONNX's own node tests through read, plan, lower and execute on `toy`, with as little SRAM as the plan can do with.

Run as a script to write `conformance.txt`: how many pass, and every test that does not, with the reason.
"""

from __future__ import annotations

import re
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from npusim.api import load_graph, profile
from npusim.errors import NpusimError
from npusim.execute.formats import numbers_for
from npusim.execute.run import execute
from npusim.execute.verify import verify_program
from npusim.graph import Graph
from npusim.hardware import load_npu, with_values
from npusim.lower import lower
from npusim.plan import Plan
from npusim.program import Program
from npusim.scheduler.problem import Infeasible
from npusim.weights import open_weights

REPORT = Path(__file__).with_name("conformance.txt")

#: Operators that exporters write for diffusion U-Nets, VAEs and text encoders (the zoo's, and their usual other spellings).
OPERATORS = frozenset(
    word
    for line in (
        "Abs Add And AveragePool Cast Ceil Clip Concat Constant ConstantOfShape Conv Cos CumSum Div Dropout",
        "Einsum Elu Equal Erf Exp Expand Flatten Floor Gather Gelu Gemm GlobalAveragePool GlobalMaxPool",
        "Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsNaN",
        "LayerNormalization LeakyRelu Less LessOrEqual Log MatMul Max MaxPool Min Mod Mul Neg Not Or Pad Pow",
        "PRelu Range Reciprocal ReduceMean ReduceProd ReduceSum Relu Reshape Resize Shape Sigmoid Sin Size",
        "Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Swish Tanh Transpose Trilu Unsqueeze Upsample",
        "Where Xor",
    )
    for word in line.split()
)  # fmt: skip
TYPES = frozenset(
    (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.BOOL,
    )
)
SRAM_SIZES = tuple(2**n for n in range(8, 21))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one test: '' as reason if it passed, else why not; `steps` is how many commands computed something."""

    name: str
    reason: str
    steps: int = 0


def node_tests() -> Iterator[Any]:
    """The tests that lie wholly inside our operators and element types."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        tests = load_model_tests(kind="node")
    for test in tests:
        graph = test.model.graph
        nodes_inside = all(n.op_type in OPERATORS and n.domain in ("", "ai.onnx") for n in graph.node)
        values = [*graph.input, *graph.output]
        if nodes_inside and all(
            v.type.WhichOneof("value") == "tensor_type" and v.type.tensor_type.elem_type in TYPES
            for v in values
        ):
            yield test


#: (graph, plan, program, model, run-time inputs) -> arrays by output name.
Compute = Callable[[Graph, Plan, Program, Path, Mapping[str, Any]], Mapping[str, Any]]


def executed(
    graph: Graph, plan: Plan, program: Program, model: Path, inputs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What the executor computes."""
    numbers = numbers_for(graph, plan, open_weights(model, graph))
    return execute(graph, plan, program, numbers, inputs, order="random")


def run_test(test: Any, folder: Path, compute: Compute = executed) -> Outcome:
    """Try every choice of run-time inputs; the first success or the last reason counts."""
    data = [list(one) for one in test.data_sets[0]]
    inputs = {v.name: np.asarray(_array(d)) for v, d in zip(test.model.graph.input, data[0], strict=False)}
    expected = [np.asarray(_array(d)) for d in data[1]]
    reasons = []
    for kept in _choices(inputs):
        try:
            steps = _run(test, inputs, expected, kept, folder, compute)
        except (NpusimError, AssertionError) as error:
            reasons.append(_shown(error))
        except Exception as error:  # a crash is a failure like any other, and is listed as one
            if "-v" in sys.argv:
                traceback.print_exc()
            reasons.append(f"crash: {type(error).__name__}: {_shown(error)}")
        else:
            return Outcome(test.name, "", steps)
    return Outcome(test.name, reasons[-1] if reasons else "has no inputs and no outputs")


def _shown(error: Exception) -> str:
    """The first line of an error, without the temporary folder's name."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\S*/model\.onnx", "model.onnx", lines[0])[:150]


def _choices(inputs: dict[str, Any]) -> list[list[str]]:
    """Which inputs arrive at run time: all, any single one, those of floating point. The others become constants."""
    names = list(inputs)
    floats = [n for n in names if inputs[n].dtype.kind == "f" and inputs[n].size]
    singles = [[n] for n in reversed(names) if inputs[n].size]
    choices = [names, *singles, floats]
    return [c for i, c in enumerate(choices) if c not in choices[:i]]


def _array(data: Any) -> Any:
    return numpy_helper.to_array(data) if isinstance(data, TensorProto) else data


def _run(
    test: Any, inputs: dict[str, Any], expected: list[Any], kept: list[str], folder: Path, compute: Compute
) -> int:
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    for value in list(model.graph.input):
        if value.name not in kept:
            model.graph.initializer.append(numpy_helper.from_array(inputs[value.name], value.name))
            model.graph.input.remove(value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    graph = load_graph(path, shapes={n: list(inputs[n].shape) for n in kept if inputs[n].ndim})
    if graph.coverage.unmodelled:
        operators = ", ".join(sorted(graph.coverage.unmodelled))
        raise NpusimError(f"{operators} in this form can be costed, not run")
    plan = smallest_plan(graph)
    program = lower(graph, plan)
    faults = verify_program(program, plan.npu.sram.sram_bytes)
    assert not faults, f"the verifier: {faults[0].sentence}"
    found = compute(graph, plan, program, path, {n: inputs[n] for n in kept})
    for value, wanted in zip(model.graph.output, expected, strict=False):
        if value.name:
            got = found[value.name]
            assert got.shape == wanted.shape, f"shape {got.shape}, {wanted.shape} expected"
            np.testing.assert_allclose(
                got,
                wanted.astype(np.float64),
                rtol=test.rtol,
                atol=test.atol,
                err_msg=f"values of {value.name} differ",
            )
    return len(program)


def smallest_plan(graph: Graph) -> Plan:
    """The plan for the least SRAM that is enough: most pieces."""
    last = ""
    for size in SRAM_SIZES:
        found = profile(
            graph, npu=with_values(load_npu("toy"), {"sram.sram_bytes": size}), precision="fp32", tiles="auto"
        )
        if not isinstance(found, Infeasible):
            return found.plan
        last = found.sentence()
    raise NpusimError(last)


def report(outcomes: list[Outcome]) -> str:
    """The committed text: totals, reasons by count, every failure by name."""
    failed = [o for o in outcomes if o.reason]
    folded = sum(1 for o in outcomes if not o.reason and not o.steps)
    lines = [
        f"{len(outcomes)} ONNX node tests lie inside the operators and element types that npusim models.",
        f"{len(outcomes) - len(failed)} pass through read, plan, lower and execute on `toy`; {len(failed)} do not.",
        f"Of those that pass, {folded} need no command: they fold to constants, or only rename what they read. The others fail thus:",
        "",
    ]
    lines += [f"{o.name}: {o.reason}" for o in sorted(failed, key=lambda o: o.name)]
    return "\n".join(lines) + "\n"


def all_outcomes(compute: Compute = executed) -> list[Outcome]:
    """Run every test."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [run_test(test, Path(folder), compute) for test in node_tests()]


if __name__ == "__main__":
    found = all_outcomes()
    REPORT.write_text(report(found))
    sys.stdout.write("".join(report(found).splitlines(keepends=True)[:2]))
    for reason, count in Counter(o.reason[:90] for o in found if o.reason).most_common(40):
        sys.stdout.write(f"{count:4d} {reason}\n")
