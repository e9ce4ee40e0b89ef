"""The small workloads of `peers.py`: described once, and written as ONNX here and as TensorFlow Lite by `peer_drivers/vela.py`."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of a workload. Shapes of images are [N, C, H, W].

    `matmul` multiplies by its second operand transposed if `transpose` is set, `conv` has stride 1 and keeps the size, `norm` is an
    instance normalization (a group normalization with one channel per group), `silu` is x * sigmoid(x).
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    shape: tuple[int, ...]
    kernel: int = 0
    transpose: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A chain of operators; `images` says that its tensors are images."""

    name: str
    title: str
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    operators: tuple[Operator, ...]
    images: bool

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor that is not a constant."""
        return dict(self.inputs) | {o.output: o.shape for o in self.operators}

    def macs(self) -> int:
        """Multiply-accumulates of its products and convolutions."""
        shapes = self.shapes()
        total = 0
        for o in self.operators:
            taken = shapes[o.inputs[0]]
            if o.kind == "matmul":
                total += math.prod(o.shape) * taken[-1]
            elif o.kind == "conv":
                total += math.prod(o.shape) * taken[1] * o.kernel**2
        return total

    def to_json(self) -> str:
        """What the drivers read: they import nothing of npusim."""
        return json.dumps(dataclasses.asdict(self) | {"inputs": dict(self.inputs)})


def attention(heads: int = 8, tokens: int = 4096, size: int = 40) -> Workload:
    """softmax(q k^T) v with the heads already split: the first self-attention of Stable Diffusion's U-Net."""
    shape, scores = (1, heads, tokens, size), (1, heads, tokens, tokens)
    return Workload(
        name=f"attention-{tokens}",
        title=f"attention {heads} x {tokens} x {size}",
        inputs=(("q", shape), ("k", shape), ("v", shape)),
        operators=(
            Operator(kind="matmul", inputs=("q", "k"), output="s", shape=scores, transpose=True),
            Operator(kind="softmax", inputs=("s",), output="p", shape=scores),
            Operator(kind="matmul", inputs=("p", "v"), output="o", shape=shape),
        ),
        images=False,
    )


def convolutions(channels: int = 64, size: int = 64, *, norm: bool = True) -> Workload:
    """Convolution, norm, SiLU, convolution: half of a residual block of a U-Net."""
    shape = (1, channels, size, size)
    normed = (Operator(kind="norm", inputs=("a",), output="b", shape=shape),) if norm else ()
    return Workload(
        name="convolutions" if norm else "convolutions-no-norm",
        title=f"conv 3x3 + {'norm + ' if norm else ''}SiLU + conv 3x3, {channels} x {size} x {size}",
        inputs=(("x", shape),),
        operators=(
            Operator(kind="conv", inputs=("x",), output="a", shape=shape, kernel=3),
            *normed,
            Operator(kind="silu", inputs=("b" if norm else "a",), output="c", shape=shape),
            Operator(kind="conv", inputs=("c",), output="y", shape=shape, kernel=3),
        ),
        images=True,
    )


#: Each workload, and the simpler one that a peer which refuses it is given next.
WORKLOADS: tuple[tuple[Workload, Workload], ...] = (
    (attention(), attention(tokens=256)),
    (convolutions(), convolutions(norm=False)),
)


def onnx_nodes(o: Operator, channels: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """The ONNX nodes of an operator and the constants that they read."""

    def node(op: str, *inputs: str, output: str = o.output, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op, list(inputs), [output], name=f"{op}_{output}", **attributes)

    if o.kind == "matmul" and o.transpose:
        turned = o.inputs[1] + "_t"
        nodes = [node("Transpose", o.inputs[1], output=turned, perm=[0, 1, 3, 2])]
        return [*nodes, node("MatMul", o.inputs[0], turned)], {}
    if o.kind == "matmul":
        return [node("MatMul", *o.inputs)], {}
    if o.kind == "softmax":
        return [node("Softmax", *o.inputs, axis=-1)], {}
    if o.kind == "silu":
        gate = o.output + "_gate"
        return [node("Sigmoid", *o.inputs, output=gate), node("Mul", *o.inputs, gate)], {}
    weight, bias = o.output + "_weight", o.output + "_bias"
    zeros = np.zeros(o.shape[1], np.float32)
    if o.kind == "norm":
        return [node("InstanceNormalization", *o.inputs, weight, bias)], {weight: zeros + 1, bias: zeros}
    assert o.kind == "conv", o.kind
    border = o.kernel // 2
    conv = node(
        "Conv", *o.inputs, weight, bias, kernel_shape=[o.kernel] * 2, pads=[border] * 4, strides=[1, 1],
        dilations=[1, 1], group=1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(o.shape[1], channels, o.kernel, o.kernel)).astype(np.float32)
    return [conv], {weight: drawn, bias: zeros}


def to_onnx(workload: Workload) -> onnx.ModelProto:
    """The workload in FP32, opset 18, with the shapes of all tensors (ZigZag asks for them)."""
    shapes = workload.shapes()
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    for o in workload.operators:
        made, read = onnx_nodes(o, shapes[o.inputs[0]][1])
        nodes += made
        constants |= read
    last = workload.operators[-1]
    graph = helper.make_graph(
        nodes,
        workload.name,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in workload.inputs],
        [helper.make_tensor_value_info(last.output, TensorProto.FLOAT, last.shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
