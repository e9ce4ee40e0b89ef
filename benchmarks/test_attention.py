"""One attention of 8 heads x 4096 queries and keys x 40 through the Python API, warm: run with `make bench`."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper
from pytest_benchmark.fixture import BenchmarkFixture

from npusim import api

ASKED_MS = {"sram": 30, "auto": 100}


def attention_model(heads: int = 8, tokens: int = 4096, size: int = 40) -> bytes:
    """softmax(q k^T) v with heads already split, as ONNX bytes."""
    shape = [1, heads, tokens, size]
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["o"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "qkv"]
    graph = helper.make_graph(
        nodes, "attention", inputs, [helper.make_tensor_value_info("o", TensorProto.FLOAT, shape)]
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return model.SerializeToString()


@pytest.mark.parametrize("tiles", sorted(ASKED_MS))
def test_one_attention_warm(tiles: str, benchmark: BenchmarkFixture) -> None:
    model = attention_model()
    found = benchmark(lambda: api.profile(model, tiles=tiles))
    assert isinstance(found, api.Profile)
    benchmark.extra_info.update(asked_ms=ASKED_MS[tiles], latency_ms=found.summary["latency_ms"])
