"""Vector functions in standard ONNX operators: one table, with the names of `execute.functions`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import pi, sqrt
from typing import Any

from onnx import TensorProto

from npusim.errors import ExportError
from npusim.export.onnx_graph import GraphWriter

Attributes = Mapping[str, Any]


def unary(writer: GraphWriter, function: str, x: str, attributes: Attributes) -> str:
    """An elementwise function of one value.

    Raises:
        ExportError: no standard operators express it.
    """
    if function not in UNARY:
        raise ExportError(
            f"'{writer.scope}': the function '{function}' has no spelling in ONNX here; there are: {', '.join(sorted(UNARY))}"
        )
    return UNARY[function](writer, x, attributes)


def binary(writer: GraphWriter, function: str, x: str, y: str) -> str:
    """An elementwise function of two values, broadcast.

    Raises:
        ExportError: no standard operators express it.
    """
    if function not in BINARY:
        raise ExportError(
            f"'{writer.scope}': the function '{function}' has no spelling in ONNX here; there are: {', '.join(sorted(BINARY))}"
        )
    return BINARY[function](writer, x, y)


# ---- spellings -----------------------------------------------------------------------------------------------------


def _plain(op: str, names: Sequence[str] = ()) -> Callable[[GraphWriter, str, Attributes], str]:
    """One operator; `names` are attributes that it takes from the function's."""

    def spell(writer: GraphWriter, x: str, attributes: Attributes) -> str:
        known: dict[str, Any] = {n: float(attributes[n]) for n in names if n in attributes}
        return writer.node(op, [x], **known)

    return spell


def _swish(missing: float) -> Callable[[GraphWriter, str, Attributes], str]:
    """x sigmoid(alpha x)."""

    def spell(writer: GraphWriter, x: str, attributes: Attributes) -> str:
        alpha = float(attributes.get("alpha", missing))
        inner = x if alpha == 1.0 else writer.node("Mul", [x, writer.scalar(alpha)])
        return writer.node("Mul", [x, writer.node("Sigmoid", [inner])])

    return spell


def _gelu(writer: GraphWriter, x: str, attributes: Attributes) -> str:
    """As exporters spell it before operator set 20, which runtimes recognise."""
    if attributes.get("approximate") == "tanh":
        square = writer.node("Mul", [x, x])
        cube = writer.node("Mul", [writer.node("Mul", [square, x]), writer.scalar(0.044715)])
        inner = writer.node("Mul", [writer.node("Add", [x, cube]), writer.scalar(sqrt(2 / pi))])
        grown = writer.node("Add", [writer.node("Tanh", [inner]), writer.scalar(1.0)])
    else:
        error = writer.node("Erf", [writer.node("Div", [x, writer.scalar(sqrt(2))])])
        grown = writer.node("Add", [error, writer.scalar(1.0)])
    return writer.node("Mul", [writer.node("Mul", [x, grown]), writer.scalar(0.5)])


def _clip(writer: GraphWriter, x: str, attributes: Attributes) -> str:
    low, high = (writer.scalar(float(attributes[n])) if n in attributes else "" for n in ("min", "max"))
    return writer.node("Clip", [x, low, high] if high else ([x, low] if low else [x]))


def _cast(writer: GraphWriter, x: str, attributes: Attributes) -> str:
    """What a cast does to values: truth, or cutting off; the type stays."""
    to = attributes.get("to", TensorProto.FLOAT)
    if to == TensorProto.BOOL:
        return _float(writer, _truth(writer, x))
    return _float(writer, writer.node("Cast", [x], to=TensorProto.INT64)) if to in _INTEGERS else x


_INTEGERS = frozenset({
    TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT32, TensorProto.UINT64,
})  # fmt: skip


def _truth(writer: GraphWriter, x: str) -> str:
    return writer.node("Cast", [x], to=TensorProto.BOOL)


def _float(writer: GraphWriter, x: str) -> str:
    return writer.node("Cast", [x], to=TensorProto.FLOAT)


def _compared(op: str) -> Callable[[GraphWriter, str, str], str]:
    return lambda writer, x, y: _float(writer, writer.node(op, [x, y]))


def _logical(op: str) -> Callable[[GraphWriter, str, str], str]:
    return lambda writer, x, y: _float(writer, writer.node(op, [_truth(writer, x), _truth(writer, y)]))


def _two(op: str) -> Callable[[GraphWriter, str, str], str]:
    return lambda writer, x, y: writer.node(op, [x, y])


def _prelu(writer: GraphWriter, x: str, y: str) -> str:
    negative = writer.node("Less", [x, writer.scalar(0.0)])
    return writer.node("Where", [negative, writer.node("Mul", [x, y]), x])


UNARY: Mapping[str, Callable[[GraphWriter, str, Attributes], str]] = {
    "silu": _swish(1.0), "swish": _swish(1.0), "quick_gelu": _swish(1.702), "gelu": _gelu, "clip": _clip, "cast": _cast,
    "sigmoid": _plain("Sigmoid"), "relu": _plain("Relu"), "tanh": _plain("Tanh"), "erf": _plain("Erf"), "exp": _plain("Exp"),
    "sin": _plain("Sin"), "cos": _plain("Cos"), "sqrt": _plain("Sqrt"), "reciprocal": _plain("Reciprocal"), "neg": _plain("Neg"),
    "abs": _plain("Abs"), "log": _plain("Log"), "softplus": _plain("Softplus"), "hard_swish": _plain("HardSwish"),
    "hard_sigmoid": _plain("HardSigmoid", ("alpha", "beta")), "leaky_relu": _plain("LeakyRelu", ("alpha",)),
    "elu": _plain("Elu", ("alpha",)), "floor": _plain("Floor"), "ceil": _plain("Ceil"), "round": _plain("Round"),
    "sign": _plain("Sign"),
    "not": lambda w, x, a: _float(w, w.node("Not", [_truth(w, x)])),
    "scale": lambda w, x, a: w.node("Mul", [x, w.scalar(float(a["value"]))]),
}  # fmt: skip

BINARY: Mapping[str, Callable[[GraphWriter, str, str], str]] = {
    "add": _two("Add"), "sub": _two("Sub"), "mul": _two("Mul"), "div": _two("Div"), "pow": _two("Pow"), "min": _two("Min"),
    "max": _two("Max"), "equal": _compared("Equal"), "greater": _compared("Greater"), "less": _compared("Less"),
    "greater_equal": _compared("GreaterOrEqual"), "less_equal": _compared("LessOrEqual"), "and": _logical("And"),
    "or": _logical("Or"), "xor": _logical("Xor"), "prelu": _prelu,
}  # fmt: skip
