"""Operators and composite operators: understood entirely, with exact multiply-accumulates, and right as numbers.

Each case is one small model. It is planned, and its Program is run in FP32 beside onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from npusim import api
from npusim.graph import Graph
from npusim.ops import macs_of
from npusim.scheduler.problem import Infeasible

drawn = np.random.default_rng(3)


class Model:
    """One small model, written node by node."""

    def __init__(self, *, opset: int = 18) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []

    def input(self, name: str, *shape: int, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, data: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(data), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant((drawn.standard_normal(shape) * 0.5).astype(np.float32))

    def positive(self, *shape: int) -> str:
        return self.constant(drawn.uniform(0.5, 1.5, shape).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.asarray(values, dtype=np.int64))

    def __call__(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def proto(self, outputs: Sequence[str]) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
        graph = helper.make_graph(self.nodes, "case", self.inputs, values, self.constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10 if self.opset > 21 else 9)


Case = Callable[[Model], Any]
CASES: dict[str, tuple[Case, int, int]] = {}


def case(macs: int, opset: int = 18) -> Callable[[Case], Case]:
    """Register a case: it writes a model and returns its outputs; `macs` is what it must cost."""

    def add(function: Case) -> Case:
        CASES[function.__name__.strip("_")] = (function, macs, opset)
        return function

    return add


@case(2 * 3 * 10 * 10 * 4, 23)
def _attention_23_heads_first(m: Model) -> Any:
    q, k, v = (m.input(n, 1, 3, 10, 4) for n in "qkv")
    return m("Attention", q, k, v)


@case(2 * 4 * 10 * 10 * 4, 23)
def _attention_23_causal_with_grouped_queries(m: Model) -> Any:
    q, k, v = m.input("q", 1, 10, 16), m.input("k", 1, 10, 8), m.input("v", 1, 10, 8)
    return m("Attention", q, k, v, q_num_heads=4, kv_num_heads=2, is_causal=1, scale=0.3)


@case(2 * 2 * 6 * 9 * 4, 23)
def _attention_23_with_a_boolean_mask(m: Model) -> Any:
    q, k, v = m.input("q", 1, 2, 6, 4), m.input("k", 1, 2, 9, 4), m.input("v", 1, 2, 9, 4)
    mask = m.constant(np.arange(9)[None] <= np.arange(6)[:, None] + 3)
    return m("Attention", q, k, v, mask)


@case(2 * 2 * 6 * 9 * 8)
def _multi_head_attention(m: Model) -> Any:
    q, k, v = m.input("q", 1, 6, 16), m.input("k", 1, 9, 16), m.input("v", 1, 9, 16)
    bias = m.weight(48)
    return m("MultiHeadAttention", q, k, v, bias, domain="com.microsoft", num_heads=2)


@case(7 * 12 * 36 + 2 * 3 * 7 * 7 * 4)
def _packed_attention(m: Model) -> Any:
    x = m.input("x", 1, 7, 12)
    return m("Attention", x, m.weight(12, 36), m.weight(36), domain="com.microsoft", num_heads=3)


@case(5 * 8 * 8)
def _skip_layer_norm_and_its_sum(m: Model) -> Any:
    x, skip = m.input("x", 1, 5, 8), m.input("skip", 1, 5, 8)
    total = m("MatMul", x, m.weight(8, 8))
    found = m(
        "SkipLayerNormalization", total, skip, m.weight(8), m.weight(8), m.weight(8), outputs=4,
        domain="com.microsoft", epsilon=1e-5,
    )  # fmt: skip
    node = m.nodes[-1]
    node.output[1], node.output[2] = "", ""
    return found[0], found[3]


@case(0)
def _bias_gelu_and_quick_gelu(m: Model) -> Any:
    x = m.input("x", 3, 8)
    return m(
        "QuickGelu",
        m("BiasGelu", x, m.weight(8), domain="com.microsoft"),
        domain="com.microsoft",
        alpha=1.702,
    )


@case(4 * 6 * 10)
def _fused_matmul(m: Model) -> Any:
    return m("FusedMatMul", m.input("x", 6, 4), m.weight(10, 6), domain="com.microsoft", transA=1, transB=1, alpha=0.5)  # fmt: skip


@case(6 * 8 * 8 * 3 * 9)
def _batch_norm_folds_into_the_convolution(m: Model) -> Any:
    x = m("Conv", m.input("x", 1, 3, 8, 8), m.weight(6, 3, 3, 3), m.weight(6), pads=[1, 1, 1, 1])
    x = m("BatchNormalization", x, m.positive(6), m.weight(6), m.weight(6), m.positive(6), epsilon=1e-3)
    return m("Relu", x)


@case(0)
def _batch_norm_alone(m: Model) -> Any:
    x = m.input("x", 1, 6, 4, 4)
    return m("BatchNormalization", x, m.positive(6), m.weight(6), m.weight(6), m.positive(6))


@case(4 * 9 * 2 * 3 * 4)
def _transposed_convolution_without_overlap(m: Model) -> Any:
    x = m.input("x", 1, 4, 3, 3)
    return m("ConvTranspose", x, m.weight(4, 2, 3, 4), m.weight(2), strides=[3, 4])


@case(10 * 10 * 4 * 3 * 9)
def _padding_joins_the_convolution(m: Model) -> Any:
    x = m("Pad", m.input("x", 1, 3, 9, 9), m.ints(0, 0, 0, 1, 0, 0, 1, 0))
    return m("Conv", x, m.weight(4, 3, 3, 3), pads=[1, 1, 1, 1])


@case(0)
def _padding_by_itself(m: Model) -> Any:
    x = m.input("x", 1, 2, 3, 4)
    return m("Pad", x, m.ints(0, 1, 2, 0, 0, 0, 1, 3), m.constant(np.float32(1.5)))


@case(0)
def _means_of_rows_columns_and_images(m: Model) -> Any:
    x = m.input("x", 2, 3, 4, 5)
    return (
        m("ReduceMean", x, m.ints(2, 3), keepdims=0), m("ReduceMean", x, m.ints(-1)), m("ReduceMean", x, m.ints(1)),
        m("ReduceSum", x, m.ints(0, 2), keepdims=0), m("ReduceMax", x, m.ints(3), keepdims=0), m("ReduceL2", x, m.ints(1)),
    )  # fmt: skip


@case(2 * 3 * 4 * 5 * 6)
def _contraction_by_einsum(m: Model) -> Any:
    return m("Einsum", m.input("x", 2, 4, 3, 5), m.input("y", 2, 6, 3, 5), equation="bihd,bjhd->bhij")


@case(0)
def _permutation_by_einsum(m: Model) -> Any:
    return m("Einsum", m.input("x", 2, 3, 4), equation="abc->cab")


@case(2 * 3 * 4 * 5 + 3 * 4 * 5)
def _broadcast_products_and_a_vector(m: Model) -> Any:
    y = m.input("y", 4, 5)
    wide = m("MatMul", m.input("x", 2, 3, 4), m("Tanh", y))
    return wide, m("MatMul", m.input("z", 3, 4), m("Relu", y))


@case(3 * 5 * 7)
def _gemm_with_factors(m: Model) -> Any:
    return m("Gemm", m.input("x", 5, 3), m.weight(7, 5), m.weight(7), alpha=0.5, beta=2.0, transA=1, transB=1)


@case(4 * 6 * 8)
def _weight_that_the_model_turns_and_cuts(m: Model) -> Any:
    turned = m("Transpose", m.weight(64, 6), perm=[1, 0])
    return m("MatMul", m.input("x", 4, 6), m("Slice", turned, m.ints(16), m.ints(24), m.ints(1)))


@case(0)
def _rows_picked_from_a_table_by_constants(m: Model) -> Any:
    x = m.input("x", 1, 3, 900)
    return m("Add", x, m("Gather", m.weight(5, 900), m.ints(4, 0, 2), axis=0))


@case(0)
def _one_token_picked(m: Model) -> Any:
    return m("Tanh", m("Gather", m.input("x", 1, 5, 8), m.constant(np.int64(-1)), axis=1))


@case(2 * 7 * 7 * 4)
def _masked_by_where(m: Model) -> Any:
    q, k = m.input("q", 1, 1, 7, 4), m.input("k", 1, 1, 7, 4)
    scores = m("MatMul", q, m("Transpose", k, perm=[0, 1, 3, 2]))
    mask = m.constant(np.tril(np.ones((1, 1, 7, 7), bool)))
    lowest = m.constant(np.float32(np.finfo(np.float32).min))
    return m("MatMul", m("Softmax", m("Where", mask, scores, lowest), axis=-1), k)


@case(2 * 7 * 7 * 4)
def _masked_at_run_time(m: Model) -> Any:
    q, k = m.input("q", 1, 1, 7, 4), m.input("k", 1, 1, 7, 4)
    scores = m("MatMul", q, m("Transpose", k, perm=[0, 1, 3, 2]))
    mask = m("Less", m.input("limits", 1, 1, 1, 7), m.constant(np.float32(0.8)))
    lowest = m.constant(np.float32(-np.inf))
    return m("MatMul", m("Softmax", m("Where", mask, scores, lowest), axis=-1), k)


@case(5 * 2 * 4 * 3 + 4)
def _a_vector_times_a_batch_and_a_vector(m: Model) -> Any:
    x, y = m("Tanh", m.input("x", 4)), m.input("y", 5, 2, 4, 3)
    return m("MatMul", x, m("Relu", y)), m("MatMul", x, m("Relu", x))


@case(0)
def _scattered_positions(m: Model) -> Any:
    return m("Gather", m.input("x", 3, 6), m.constant(np.asarray([[4, 1], [2, 3]])), axis=1)


@case(0)
def _pooling_of_one_dimension(m: Model) -> Any:
    x = m.input("x", 1, 3, 9)
    return m("MaxPool", x, kernel_shape=[3], strides=[2], pads=[1, 1]), m("AveragePool", x, kernel_shape=[2])


@case(0)
def _pixel_shuffles(m: Model) -> Any:
    x = m.input("x", 1, 8, 4, 6)
    return m("DepthToSpace", x, blocksize=2, mode="CRD"), m("SpaceToDepth", x, blocksize=2)


@case(0)
def _sums_tiles_and_extremes(m: Model) -> Any:
    x, y = m.input("x", 2, 3), m.input("y", 2, 3)
    return m("Sum", x, y, x), m("Tile", x, m.ints(2, 3)), m("Max", x, y, m("Neg", x))


@case(0)
def _instance_norm(m: Model) -> Any:
    return m("InstanceNormalization", m.input("x", 2, 3, 5, 5), m.weight(3), m.weight(3), epsilon=1e-4)


@case(0)
def _softmax_over_channels_and_its_logarithm(m: Model) -> Any:
    x = m.input("x", 1, 5, 3, 4)
    return m("Softmax", x, axis=1), m("LogSoftmax", x, axis=-1)


@case(6 * 4 * 3 * 3 + 10 * 4 * 2 * 2)
def _convolutions_of_one_dimension(m: Model) -> Any:
    x = m("Conv", m.input("x", 1, 3, 8), m.weight(4, 3, 3))
    y = m("Conv", m.input("y", 1, 4, 10), m.weight(4, 2, 2), group=2, pads=[0, 1])
    return x, y


@case(0)
def _activations_of_mobile_networks(m: Model) -> Any:
    x = m.input("x", 2, 8)
    return m("HardSwish", x), m("HardSigmoid", x, alpha=1 / 6), m("Mish", x), m("LeakyRelu", x, alpha=0.2)


@case(4 * 3 * 9 * 4 * 4)
def _channels_last_convolution_and_group_norm(m: Model) -> Any:
    return m("Conv", m.input("x", 1, 3, 4, 4), m.weight(4, 3, 3, 3), pads=[1, 1, 1, 1])


@case(2 * 5 * 5 * 3 * 2)
def _quantized_weights(m: Model) -> Any:
    def codes() -> str:
        return m.constant(drawn.integers(-127, 128, (3, 2, 1, 1)).astype(np.int8))

    x, zeros = m.input("x", 1, 2, 5, 5), m.constant(np.asarray([0, 3, -4], dtype=np.int8))
    scales = m.constant(np.asarray([0.01, 0.02, 0.03], dtype=np.float32))
    one = m("Conv", x, m("DequantizeLinear", codes(), m.constant(np.float32(0.02))))
    return one, m("Conv", x, m("DequantizeLinear", codes(), scales, zeros, axis=0))


@case(0)
def _local_response_normalization(m: Model) -> Any:
    x = m.input("x", 2, 7, 5, 3)
    odd = m("LRN", x, size=3, alpha=0.5, beta=0.6, bias=1.5)
    return m("LRN", odd, size=5)


def model_of(name: str) -> tuple[onnx.ModelProto, int]:
    """The model of a case and the multiply-accumulates that it must have."""
    function, macs, opset = CASES[name]
    model = Model(opset=opset)
    outputs = function(model)
    return model.proto(outputs if isinstance(outputs, tuple) else (outputs,)), macs


def total_macs(graph: Graph) -> int:
    return sum(macs_of(graph, layer) for layer in graph.layers)


@pytest.mark.parametrize("name", CASES)
def test_every_operator_is_understood_and_costs_exactly_its_products(name: str) -> None:
    proto, macs = model_of(name)
    graph = api.load_graph(proto.SerializeToString(), name=name)
    assert graph.coverage.unmodelled == {}
    assert graph.coverage.modelled_nodes == graph.coverage.nodes
    assert total_macs(graph) == macs


@pytest.mark.parametrize("name", CASES)
def test_every_operator_computes_what_onnxruntime_computes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from npusim.deployment import run_onnxruntime
    from npusim.execute.formats import numbers_for
    from npusim.execute.run import execute
    from npusim.weights import open_weights

    path = tmp_path / "case.onnx"
    proto, _ = model_of(name)
    onnx.save(proto, path)
    graph = api.load_graph(path)
    found = api.profile(graph, precision="fp32")
    assert not isinstance(found, Infeasible), found.sentence()
    inputs = {w.name: drawn.standard_normal(w.shape).astype(np.float32) for w in graph.inputs}
    numbers = numbers_for(graph, found.plan, open_weights(path, graph))
    ours = execute(graph, found.plan, found.program, numbers, inputs)
    for output, wanted in run_onnxruntime(path, inputs).items():
        assert ours[output].shape == wanted.shape
        np.testing.assert_allclose(
            ours[output], wanted, rtol=2e-5, atol=2e-5 * max(1.0, np.abs(wanted).max())
        )
