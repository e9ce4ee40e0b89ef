"""Every vector function, as ONNX writes it, computes what the executor computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from npusim.execute import functions
from npusim.export import onnx_functions
from npusim.export.onnx_graph import GraphWriter

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "clip": {"min": -0.5, "max": 1.0}, "scale": {"value": 0.25}, "quick_gelu": {"alpha": 1.7}, "swish": {"alpha": 0.7},
    "leaky_relu": {"alpha": 0.1}, "elu": {"alpha": 0.9}, "hard_sigmoid": {"alpha": 0.3, "beta": 0.4},
}  # fmt: skip
#: Where the mathematics is defined.
POSITIVE = ("log", "sqrt", "reciprocal", "pow")


def _run(path: Path, writer: GraphWriter, name: str, inputs: dict[str, Any]) -> Any:
    writer.output(name, "out", TensorProto.FLOAT, inputs["x"].shape)
    writer.save(path, "f", {})
    return onnxruntime.InferenceSession(str(path)).run(None, inputs)[0]


@pytest.mark.parametrize("function", sorted(functions.UNARY))
def test_functions_of_one_operand_agree(tmp_path: Path, function: str) -> None:
    x = np.concatenate([np.linspace(-4, 4, 33), [0.5, 1.5, -0.5]]).astype(np.float32)
    x = np.abs(x) + 0.1 if function in POSITIVE else x
    for attributes in (
        ATTRIBUTES.get(function, {}),
        *([{"approximate": "tanh"}] if function == "gelu" else []),
    ):
        writer = GraphWriter(opset=18)
        name = onnx_functions.unary(
            writer, function, writer.input("x", TensorProto.FLOAT, x.shape), attributes
        )
        if name == "x":
            assert np.array_equal(functions.unary(function, x, attributes), x)
            continue
        found = _run(tmp_path / "f.onnx", writer, name, {"x": x})
        np.testing.assert_allclose(found, functions.unary(function, x, attributes), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("to", [TensorProto.BOOL, TensorProto.INT64, TensorProto.INT32])
def test_casts_change_values_as_the_executor_says(tmp_path: Path, to: int) -> None:
    x = np.asarray([-2.7, -0.5, 0.0, 0.5, 2.7], np.float32)
    writer = GraphWriter(opset=18)
    name = onnx_functions.unary(writer, "cast", writer.input("x", TensorProto.FLOAT, x.shape), {"to": to})
    found = _run(tmp_path / "f.onnx", writer, name, {"x": x})
    np.testing.assert_array_equal(found, functions.unary("cast", x, {"to": to}))


@pytest.mark.parametrize("function", sorted(functions.BINARY))
def test_functions_of_two_operands_agree(tmp_path: Path, function: str) -> None:
    drawn = np.random.default_rng(1)
    x = drawn.integers(-2, 3, 64).astype(np.float32)
    y = drawn.integers(-2, 3, 64).astype(np.float32)
    if function in ("div", *POSITIVE):
        x, y = np.abs(x) + 0.5, np.abs(y) + 0.5
    writer = GraphWriter(opset=18)
    names = [writer.input(n, TensorProto.FLOAT, x.shape) for n in ("x", "y")]
    name = onnx_functions.binary(writer, function, *names)
    found = _run(tmp_path / "f.onnx", writer, name, {"x": x, "y": y})
    np.testing.assert_allclose(found, functions.binary(function, x, y), rtol=1e-6, atol=1e-7)
