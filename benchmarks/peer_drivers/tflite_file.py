"""Writes a workload of `peers.py` as a quantized TensorFlow Lite file, with the flatbuffer classes that Vela's package ships."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ethosu.vela import tflite_writer  # noqa: F401  (gives the builder its FinishWithFileIdentifier)
from ethosu.vela.tflite import (
    BatchMatMulOptions,
    Buffer,
    BuiltinOptions,
    Conv2DOptions,
    Model,
    Operator,
    OperatorCode,
    QuantizationParameters,
    ReducerOptions,
    SoftmaxOptions,
    SubGraph,
    Tensor,
)
from ethosu.vela.tflite.BuiltinOperator import BuiltinOperator
from ethosu.vela.tflite.TensorType import TensorType

SCALE = 0.05
UNIT = (
    1 / 256,
    -128,
)  #: scale and zero point of what lies in [0, 1): the outputs of softmax and of the logistic function
TYPES = {"int8": TensorType.INT8, "int32": TensorType.INT32}


class Network:
    """Tensors and operators of a TensorFlow Lite graph under construction."""

    def __init__(self) -> None:
        self.tensors: list[dict[str, Any]] = []
        self.index: dict[str, int] = {}
        self.operators: list[tuple[int, list[int], int, str]] = []
        self.options: list[dict[str, int]] = []

    def tensor(
        self, name: str, shape: list[int], data: np.ndarray | None = None, scale: float = SCALE, zero: int = 0
    ) -> str:
        """Adds a tensor: INT8 unless its data says otherwise."""
        kind = "int8" if data is None else str(data.dtype)
        self.index[name] = len(self.tensors)
        self.tensors.append(
            {"name": name, "shape": shape, "data": data, "scale": scale, "zero": zero, "type": TYPES[kind]}
        )
        return name

    def add(self, op: str, inputs: list[str], output: str, options: str = "", **values: int) -> None:
        """Adds an operator; `options` names the flatbuffer class of its attributes."""
        self.operators.append(
            (getattr(BuiltinOperator, op), [self.index[n] for n in inputs], self.index[output], options)
        )
        self.options.append(values)


def add_norm(net: Network, source: str, output: str, shape: list[int]) -> None:
    """Instance normalization as a converter spells it: mean, difference, variance, reciprocal root, scale and bias."""
    pooled = [shape[0], 1, 1, shape[3]]
    axes = net.tensor(output + "_axes", [2], np.array([1, 2], np.int32))
    one = net.tensor(output + "_weight", pooled, np.full(pooled, 20, np.int8))
    zero = net.tensor(output + "_bias", pooled, np.zeros(pooled, np.int8))
    epsilon = net.tensor(output + "_epsilon", [1, 1, 1, 1], np.ones([1, 1, 1, 1], np.int8), scale=1e-5)
    name = {
        k: f"{output}_{k}"
        for k in ("mean", "centred", "squared", "variance", "sum", "root", "unit", "scaled")
    }
    for key, tensor in name.items():
        net.tensor(tensor, pooled if key in ("mean", "variance", "sum", "root") else shape)
    net.add("MEAN", [source, axes], name["mean"], "ReducerOptions", KeepDims=1)
    net.add("SUB", [source, name["mean"]], name["centred"])
    net.add("MUL", [name["centred"], name["centred"]], name["squared"])
    net.add("MEAN", [name["squared"], axes], name["variance"], "ReducerOptions", KeepDims=1)
    net.add("ADD", [name["variance"], epsilon], name["sum"])
    net.add("RSQRT", [name["sum"]], name["root"])
    net.add("MUL", [name["centred"], name["root"]], name["unit"])
    net.add("MUL", [name["unit"], one], name["scaled"])
    net.add("ADD", [name["scaled"], zero], output)


def add_operator(net: Network, o: dict[str, Any], shape: list[int], taken: list[int]) -> None:
    """Adds one operator of the workload; shapes of images are [N, H, W, C] here."""
    kind, inputs, output = o["kind"], list(o["inputs"]), o["output"]
    net.tensor(output, shape, **({"scale": UNIT[0], "zero": UNIT[1]} if kind == "softmax" else {}))
    if kind == "matmul":
        net.add("BATCH_MATMUL", inputs, output, "BatchMatMulOptions", AdjX=0, AdjY=int(o["transpose"]))
    elif kind == "softmax":
        net.add("SOFTMAX", inputs, output, "SoftmaxOptions", Beta=1)
    elif kind == "silu":
        gate = net.tensor(output + "_gate", shape, scale=UNIT[0], zero=UNIT[1])
        net.add("LOGISTIC", inputs, gate)
        net.add("MUL", [*inputs, gate], output)
    elif kind == "norm":
        add_norm(net, inputs[0], output, shape)
    elif kind == "conv":
        size = [shape[3], o["kernel"], o["kernel"], taken[3]]
        drawn = np.random.default_rng(0).integers(-127, 128, size).astype(np.int8)
        weight = net.tensor(output + "_weight", size, drawn, scale=0.01)
        bias = net.tensor(output + "_bias", [shape[3]], np.zeros(shape[3], np.int32), scale=0.01 * SCALE)
        ones = {"StrideW": 1, "StrideH": 1, "DilationWFactor": 1, "DilationHFactor": 1}
        net.add("CONV_2D", [*inputs, weight, bias], output, "Conv2DOptions", Padding=0, **ones)
    else:
        raise ValueError(
            f"workload has the operator {kind!r}; this file writes matmul, softmax, silu, norm and conv"
        )


def build(workload: dict[str, Any]) -> Network:
    """The workload as TensorFlow Lite spells it."""

    def laid_out(shape: list[int]) -> list[int]:
        return [shape[0], *shape[2:], shape[1]] if workload["images"] else shape

    net = Network()
    shapes = {name: laid_out(shape) for name, shape in workload["inputs"].items()}
    for name, shape in shapes.items():
        net.tensor(name, shape)
    for o in workload["operators"]:
        shapes[o["output"]] = laid_out(o["shape"])
        add_operator(net, o, shapes[o["output"]], shapes[o["inputs"][0]])
    return net


def vector(builder: Any, values: list[int], prepend: str, width: int) -> int:
    """Writes a flatbuffer vector of numbers or offsets."""
    builder.StartVector(width, len(values), width)
    for value in reversed(values):
        getattr(builder, prepend)(value)
    return int(builder.EndVector())


def table(builder: Any, module: Any, **fields: Any) -> int:
    """Writes a flatbuffer table with the functions that the schema compiler made for it."""
    module.Start(builder)
    for name, value in fields.items():
        getattr(module, "Add" + name)(builder, value)
    return int(module.End(builder))


def write_tensor(b: Any, t: dict[str, Any], buffer: int) -> int:
    quantization = table(
        b,
        QuantizationParameters,
        Scale=vector(b, [t["scale"]], "PrependFloat32", 4),
        ZeroPoint=vector(b, [t["zero"]], "PrependInt64", 8),
    )
    name, shape = b.CreateString(t["name"]), vector(b, t["shape"], "PrependInt32", 4)
    return table(b, Tensor, Shape=shape, Type=t["type"], Buffer=buffer, Name=name, Quantization=quantization)


def write_operators(b: Any, net: Network, codes: list[int]) -> list[int]:
    made = []
    classes = {"BatchMatMulOptions": BatchMatMulOptions, "Conv2DOptions": Conv2DOptions,
               "ReducerOptions": ReducerOptions, "SoftmaxOptions": SoftmaxOptions}  # fmt: skip
    for (code, inputs, output, options), values in zip(net.operators, net.options, strict=True):
        fields: dict[str, Any] = {"OpcodeIndex": codes.index(code)}
        fields["Inputs"] = vector(b, inputs, "PrependInt32", 4)
        fields["Outputs"] = vector(b, [output], "PrependInt32", 4)
        if options:
            fields["BuiltinOptionsType"] = getattr(BuiltinOptions.BuiltinOptions, options)
            fields["BuiltinOptions"] = table(b, classes[options], **values)
        made.append(table(b, Operator, **fields))
    return made


def serialize(net: Network, inputs: list[str], output: str) -> bytes:
    """The TensorFlow Lite file; buffer 0 is empty and shared by all tensors without data."""
    b = flatbuffers.Builder(0)
    codes = sorted({code for code, *_ in net.operators})
    data = [None, *(t["data"] for t in net.tensors if t["data"] is not None)]
    buffers = [
        table(b, Buffer, **({} if d is None else {"Data": b.CreateByteVector(d.tobytes())})) for d in data
    ]
    filled = iter(range(1, len(data)))
    tensors = [write_tensor(b, t, 0 if t["data"] is None else next(filled)) for t in net.tensors]
    graph = {
        "Tensors": vector(b, tensors, "PrependUOffsetTRelative", 4),
        "Inputs": vector(b, [net.index[n] for n in inputs], "PrependInt32", 4),
        "Outputs": vector(b, [net.index[output]], "PrependInt32", 4),
        "Operators": vector(b, write_operators(b, net, codes), "PrependUOffsetTRelative", 4),
    }
    subgraph = table(b, SubGraph, **graph)
    listed = [
        table(b, OperatorCode, DeprecatedBuiltinCode=min(c, 127), BuiltinCode=c, Version=1) for c in codes
    ]
    fields = {
        "OperatorCodes": vector(b, listed, "PrependUOffsetTRelative", 4),
        "Subgraphs": vector(b, [subgraph], "PrependUOffsetTRelative", 4),
        "Buffers": vector(b, buffers, "PrependUOffsetTRelative", 4),
    }
    b.FinishWithFileIdentifier(table(b, Model, Version=3, **fields), "TFL3")
    return bytes(b.Output())


def write(workload: dict[str, Any]) -> bytes:
    """The workload (`peer_workloads.Workload` as JSON) as a TensorFlow Lite file."""
    return serialize(build(workload), list(workload["inputs"]), workload["operators"][-1]["output"])
