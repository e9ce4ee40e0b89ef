"""Small networks, planned on the toy machine with little SRAM, so that pieces and tiles are many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from npusim.api import load_graph, profile
from npusim.deployment import run_onnxruntime
from npusim.execute.formats import Numbers, numbers_for
from npusim.graph import Graph
from npusim.hardware import load_npu, with_values
from npusim.lower import lower
from npusim.plan import Plan
from npusim.program import Program
from npusim.scheduler.problem import Infeasible
from npusim.weights import Weights, open_weights


class Net:
    """Writes an ONNX graph line by line; weights are drawn from one generator."""

    def __init__(self, seed: int = 0) -> None:
        self.drawn = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[tuple[str, tuple[int, ...]]] = []

    def input(self, name: str, *shape: int) -> str:
        self.inputs.append((name, shape))
        return name

    def weight(self, *shape: int, scale: float = 0.3) -> str:
        return self.constant((self.drawn.standard_normal(shape) * scale).astype(np.float32))

    def constant(self, data: Any) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(data), name))
        return name

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, f"n{len(self.nodes)}_{op}", **attributes))
        return names[0] if outputs == 1 else names

    def save(self, path: Path, *outputs: str) -> Path:
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.inputs]
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
        graph = helper.make_graph(self.nodes, "net", inputs, values, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path


def conv_silu_conv(path: Path) -> Path:
    net = Net()
    x = net.input("x", 1, 6, 11, 9)
    a = net("Conv", x, net.weight(16, 6, 3, 3), net.weight(16), pads=[1, 1, 1, 1])
    a = net("Mul", a, net("Sigmoid", a))
    b = net("Conv", a, net.weight(10, 16, 3, 3), net.weight(10), pads=[1, 1, 1, 1], strides=[2, 2])
    return net.save(
        path, net("Add", b, net("Conv", x, net.weight(10, 6, 1, 1), net.weight(10), strides=[2, 2]))
    )


def self_attention(path: Path, *, batch: int = 1) -> Path:
    net = Net()
    x = net.input("x", batch, 24, 20)
    heads, width = 4, 5

    def projected() -> str:
        flat = net("MatMul", x, net.weight(20, 20))
        split = net("Reshape", flat, net.constant(np.asarray([batch, 24, heads, width])))
        return str(net("Transpose", split, perm=[0, 2, 1, 3]))

    q, k, v = projected(), projected(), projected()
    scores = net(
        "Mul", net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2])), net.constant(np.float32(0.4))
    )
    out = net("Transpose", net("MatMul", net("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    out = net("Reshape", out, net.constant(np.asarray([batch, 24, 20])))
    return net.save(path, net("Add", net("Add", net("MatMul", out, net.weight(20, 20)), net.weight(20)), x))


def self_attention_batch2(path: Path) -> Path:
    return self_attention(path, batch=2)


def cross_attention(path: Path) -> Path:
    net = Net()
    x, context = net.input("x", 1, 20, 16), net.input("context", 1, 7, 12)
    q = net("MatMul", x, net.weight(16, 16))
    k, v = net("MatMul", context, net.weight(12, 16)), net("MatMul", context, net.weight(12, 16))

    def split(value: str, length: int) -> str:
        parts = net("Reshape", value, net.constant(np.asarray([1, length, 2, 8])))
        return str(net("Transpose", parts, perm=[0, 2, 1, 3]))

    mask = net.constant(np.where(np.arange(7) < 5, 0, -50).astype(np.float32).reshape(1, 1, 1, 7))
    scores = net("MatMul", split(q, 20), net("Transpose", split(k, 7), perm=[0, 1, 3, 2]))
    scores = net("Add", net("Mul", scores, net.constant(np.float32(0.35))), mask)
    out = net("Transpose", net("MatMul", net("Softmax", scores, axis=-1), split(v, 7)), perm=[0, 2, 1, 3])
    return net.save(path, net("Reshape", out, net.constant(np.asarray([1, 20, 16]))))


def group_norm_skip(path: Path) -> Path:
    net = Net()
    x = net.input("x", 2, 8, 6, 7)
    a = net("Conv", x, net.weight(12, 8, 3, 3), net.weight(12), pads=[1, 1, 1, 1])
    joined = net("Concat", a, x, axis=1)
    groups = net("Reshape", joined, net.constant(np.asarray([2, 5, -1])))
    ones, zeros = net.constant(np.ones(5, np.float32)), net.constant(np.zeros(5, np.float32))
    normed = net("InstanceNormalization", groups, ones, zeros, epsilon=1e-5)
    back = net("Reshape", normed, net.constant(np.asarray([2, 20, 6, 7])))
    scaled = net("Add", net("Mul", back, net.weight(20, 1, 1)), net.weight(20, 1, 1))
    active = net("Mul", scaled, net("Sigmoid", scaled))
    out = net("Conv", active, net.weight(8, 20, 3, 3), net.weight(8), pads=[1, 1, 1, 1])
    return net.save(path, net("Add", out, net("Conv", joined, net.weight(8, 20, 1, 1), net.weight(8))))


def early_statistics(path: Path) -> Path:
    """Norms whose inputs other layers make: one part, two parts whose border cuts a group, and one with an epilogue."""
    net = Net()

    def norm(x: str, groups: int, cols: int) -> str:
        apart = net("Reshape", x, net.constant(np.asarray([2, groups, -1])))
        ones, zeros = (net.constant(np.full(groups, v, np.float32)) for v in (1, 0))
        normed = net("InstanceNormalization", apart, ones, zeros, epsilon=1e-5)
        back = net("Reshape", normed, net.constant(np.asarray([2, cols, 6, 7])))
        scaled = net("Add", net("Mul", back, net.weight(cols, 1, 1)), net.weight(cols, 1, 1))
        return str(net("Mul", scaled, net("Sigmoid", scaled)))

    def conv(x: str, cols: int, outputs: int) -> str:
        weight, bias = net.weight(outputs, cols, 3, 3), net.weight(outputs)
        return str(net("Conv", x, weight, bias, pads=[1, 1, 1, 1]))

    a = conv(net.input("x", 2, 8, 6, 7), 8, 14)
    b = conv(norm(a, 7, 14), 14, 6)
    c = conv(norm(net("Concat", b, a, axis=1), 5, 20), 20, 6)
    d = net("Add", c, b)
    return net.save(path, conv(norm(d, 2, 6), 6, 4), d)


def geglu(path: Path) -> Path:
    net = Net()
    x = net.input("x", 1, 15, 12)
    normed = net("LayerNormalization", x, net.weight(12), net.weight(12), axis=-1, epsilon=1e-5)
    wide = net("Add", net("MatMul", normed, net.weight(12, 48)), net.weight(48))
    value, gate = net("Split", wide, net.constant(np.asarray([24, 24])), outputs=2, axis=-1)
    inner = net(
        "Add", net("Erf", net("Div", gate, net.constant(np.float32(2**0.5)))), net.constant(np.float32(1))
    )
    gelu = net("Mul", net("Mul", gate, inner), net.constant(np.float32(0.5)))
    return net.save(path, net("Add", net("MatMul", net("Mul", value, gelu), net.weight(24, 12)), x))


def geglu_tanh(path: Path) -> Path:
    """A gate and an activation that are GELU's tanh form, as exporters spell it before operator set 20."""
    net = Net()
    x = net.input("x", 1, 15, 12)

    def gelu(value: str) -> str:
        cube = net("Mul", net("Pow", value, net.constant(np.float32(3))), net.constant(np.float32(0.044715)))
        inner = net("Mul", net("Add", value, cube), net.constant(np.float32((2 / np.pi) ** 0.5)))
        grown = net("Add", net("Tanh", inner), net.constant(np.float32(1)))
        return str(net("Mul", net("Mul", value, net.constant(np.float32(0.5))), grown))

    wide = net("Add", net("MatMul", x, net.weight(12, 48)), net.weight(48))
    value, gate = net("Split", wide, net.constant(np.asarray([24, 24])), outputs=2, axis=-1)
    gated = net("Mul", value, gelu(gate))
    return net.save(path, net("MatMul", gelu(net("MatMul", gated, net.weight(24, 20))), net.weight(20, 12)))


def adaptive_norm(path: Path) -> Path:
    """A layer norm, scaled and shifted by computed vectors and by a number for each row, and read twice: as in diffusion transformers."""
    net = Net()
    x, c, rows = net.input("x", 2, 15, 12), net.input("c", 2, 1, 12), net.input("rows", 1, 15, 1)
    normed = net("LayerNormalization", x, net.weight(12), axis=-1, epsilon=1e-5)
    scaled = net("Mul", normed, net("Add", c, net.constant(np.float32(1))))
    shifted = net("Add", scaled, net("MatMul", c, net.weight(12, 12)))
    masked = net("Mul", shifted, rows)
    return net.save(path, net("MatMul", masked, net.weight(12, 24)), net("Relu", masked))


def resize_pool(path: Path) -> Path:
    net = Net()
    x = net.input("x", 1, 5, 6, 6)
    sizes = net.constant(np.asarray([1.0, 1.0, 2.0, 2.0], np.float32))
    up = net(
        "Resize",
        x,
        "",
        sizes,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    down = net(
        "AveragePool",
        net("Conv", up, net.weight(7, 5, 3, 3), pads=[1, 1, 1, 1]),
        kernel_shape=[3, 3],
        strides=[2, 2],
    )
    most = net("MaxPool", up, kernel_shape=[2, 2], strides=[2, 2])
    linear = net("Resize", most, "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    return net.save(path, down, linear)


def rearranged(path: Path) -> Path:
    """Data movement that no view can express: channels after pixels, a slice of rows, joined rows, a broadcast."""
    net = Net()
    x = net.input("x", 1, 4, 6, 6)
    flat = net("Reshape", net("Transpose", x, perm=[0, 1, 3, 2]), net.constant(np.asarray([1, 24, 6])))
    some = net(
        "Slice",
        flat,
        net.constant(np.asarray([3])),
        net.constant(np.asarray([17])),
        net.constant(np.asarray([1])),
    )
    both = net("Concat", some, net("Tanh", flat), axis=1)
    return net.save(path, net("MatMul", both, net.weight(6, 9)), net("Relu", some))


def embedding(path: Path) -> Path:
    net = Net()
    x = net.input("x", 2, 5)
    rows = net("Gather", net.weight(13, 8), net("Cast", x, to=TensorProto.INT64), axis=0)
    return net.save(path, net("MatMul", rows, net.weight(8, 6)))


def grouped(path: Path) -> Path:
    net = Net()
    x = net.input("x", 1, 8, 9, 5)
    deep = net("Conv", x, net.weight(8, 1, 3, 3), net.weight(8), group=8, pads=[1, 1, 1, 1])
    two = net("Conv", deep, net.weight(12, 4, 3, 3), group=2, dilations=[2, 1], pads=[2, 1, 2, 1])
    return net.save(
        path, net("HardSwish", net("Clip", two, net.constant(np.float32(-1)), net.constant(np.float32(2))))
    )


NETWORKS: Mapping[str, Callable[[Path], Path]] = {
    f.__name__: f
    for f in (
        conv_silu_conv, self_attention, self_attention_batch2, cross_attention, group_norm_skip, early_statistics, geglu,
        geglu_tanh, adaptive_norm, resize_pool, rearranged, embedding, grouped,
    )
}  # fmt: skip


class Case:
    """One planned network with its weights, inputs and onnxruntime's FP32 outputs."""

    def __init__(self, path: Path, name: str) -> None:
        self.model = NETWORKS[name](path / f"{name}.onnx")
        self.graph: Graph = load_graph(self.model)
        self.weights: Weights = open_weights(self.model, self.graph)
        drawn = np.random.default_rng(7)
        if name == "embedding":
            self.inputs = {"x": drawn.integers(0, 13, (2, 5)).astype(np.float32)}
        else:
            self.inputs = {
                w.name: drawn.standard_normal(w.shape).astype(np.float32) for w in self.graph.inputs
            }
        self.reference = run_onnxruntime(self.model, self.inputs)

    def plan(
        self,
        *,
        precision: str = "fp32",
        tiles: str = "auto",
        policy: Any = "decoupled",
        sram_bytes: int = 65536,
    ) -> tuple[Plan, Program]:
        npu = with_values(load_npu("toy"), {"sram.sram_bytes": sram_bytes})
        found = profile(self.graph, npu=npu, precision=precision, tiles=tiles, policy=policy)
        assert not isinstance(found, Infeasible), found.sentence()
        return found.plan, lower(self.graph, found.plan)

    def numbers(self, plan: Plan, scales: Mapping[str, float] | None = None) -> Numbers:
        return numbers_for(self.graph, plan, self.weights, scales)


_CASES: dict[str, Case] = {}


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    folder = tmp_path_factory.mktemp("networks")

    def case(name: str) -> Case:
        if name not in _CASES:
            _CASES[name] = Case(folder, name)
        return _CASES[name]

    return case
