"""The light models of the onnx package (real architectures, constant weights) compute their stored outputs by the whole route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from npusim.api import load_graph, profile
from npusim.execute.formats import numbers_for
from npusim.execute.run import execute
from npusim.scheduler.problem import Infeasible
from npusim.weights import open_weights

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def stored_inputs(model: Any) -> dict[str, Any]:
    """The inputs that the stored outputs were made from, as the onnx package's own runner draws them."""
    known = {i.name for i in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name in known:
            continue
        shape = tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
        size = int(np.prod(shape))
        found[value.name] = (np.arange(size).reshape(shape) / size).astype(np.float32)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda p: p.stem)
def test_a_light_model_computes_its_stored_output_in_a_random_order(path: Path) -> None:
    model = onnx.load(path)
    graph = load_graph(path)
    assert not graph.coverage.unmodelled
    found = profile(graph, precision="fp32")
    assert not isinstance(found, Infeasible)
    numbers = numbers_for(graph, found.plan, open_weights(path, graph))
    outputs = execute(graph, found.plan, found.program, numbers, stored_inputs(model), order="random", seed=1)
    stored = TensorProto()
    stored.ParseFromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    wanted = numpy_helper.to_array(stored)
    (values,) = outputs.values()
    np.testing.assert_allclose(values.reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-6)
