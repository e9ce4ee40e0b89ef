"""Vector functions in FP32: activations, elementwise arithmetic, comparisons. One table, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from npusim.errors import NpusimError
from npusim.execute.blocks import Array


class UnsupportedError(NpusimError):
    """The executor has no arithmetic for an operator that can only be costed."""


def unary(function: str, x: Array, attributes: Mapping[str, Any]) -> Array:
    """An elementwise function of one operand.

    Raises:
        UnsupportedError: the function can be costed but not run.
    """
    if function not in UNARY:
        raise UnsupportedError(
            f"the vector function '{function}' can be costed but not run; supported are: {', '.join(sorted(UNARY))}"
        )
    with np.errstate(all="ignore"):
        return np.asarray(UNARY[function](x, attributes), dtype=np.float32)


def binary(function: str, x: Array, y: Array) -> Array:
    """An elementwise function of two operands (numpy broadcasting over storage axes).

    Raises:
        UnsupportedError: the function can be costed but not run.
    """
    if function not in BINARY:
        raise UnsupportedError(
            f"the vector function '{function}' can be costed but not run; supported are: {', '.join(sorted(BINARY))}"
        )
    with np.errstate(all="ignore"):
        return np.asarray(BINARY[function](x, y), dtype=np.float32)


def erf(x: Array) -> Array:
    """The error function of FP32 values, to about 1e-7.

    Source: rational minimax approximation on [-4, 4] used by Eigen and XLA for FP32.
    """
    clipped = np.clip(x, -4, 4)
    square = clipped * clipped
    above = np.full_like(square, _ERF_ABOVE[0])
    for coefficient in _ERF_ABOVE[1:]:
        above = above * square + np.float32(coefficient)
    below = np.full_like(square, _ERF_BELOW[0])
    for coefficient in _ERF_BELOW[1:]:
        below = below * square + np.float32(coefficient)
    return np.asarray(clipped * above / below, dtype=np.float32)


_ERF_ABOVE = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_BELOW = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)  # fmt: skip


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small), dtype=np.float32)


def gelu(x: Array, attributes: Mapping[str, Any]) -> Array:
    """x times the normal distribution function, or its tanh approximation."""
    if attributes.get("approximate") == "tanh":
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
        return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)), dtype=np.float32)
    return np.asarray(np.float32(0.5) * x * (1 + erf(x * np.float32(np.sqrt(0.5)))), dtype=np.float32)


def _clip(x: Array, attributes: Mapping[str, Any]) -> Array:
    return np.asarray(np.clip(x, attributes.get("min", -np.inf), attributes.get("max", np.inf)))


def _cast(x: Array, attributes: Mapping[str, Any]) -> Array:
    """Storage types are the plan's business; only what a cast does to values is done here."""
    to = attributes.get("to", 1)
    if to == _BOOL:
        return np.asarray(x != 0, dtype=np.float32)
    return np.asarray(np.trunc(x)) if to in _INTEGERS else x


_BOOL = 9
_INTEGERS = frozenset({2, 3, 4, 5, 6, 7, 12, 13})

UNARY: Mapping[str, Callable[[Array, Mapping[str, Any]], Array]] = {
    "silu": lambda x, a: x * sigmoid(x),
    "gelu": gelu,
    "quick_gelu": lambda x, a: x * sigmoid(np.float32(a.get("alpha", 1.702)) * x),
    "sigmoid": lambda x, a: sigmoid(x),
    "relu": lambda x, a: np.maximum(x, 0),
    "tanh": lambda x, a: np.tanh(x),
    "erf": lambda x, a: erf(x),
    "exp": lambda x, a: np.exp(x),
    "sin": lambda x, a: np.sin(x),
    "cos": lambda x, a: np.cos(x),
    "sqrt": lambda x, a: np.sqrt(x),
    "reciprocal": lambda x, a: 1 / x,
    "neg": lambda x, a: -x,
    "abs": lambda x, a: np.abs(x),
    "log": lambda x, a: np.log(x),
    "softplus": lambda x, a: np.logaddexp(x, 0),
    "hard_swish": lambda x, a: x * np.clip(x / 6 + np.float32(0.5), 0, 1),
    "hard_sigmoid": lambda x, a: np.clip(
        np.float32(a.get("alpha", 0.2)) * x + np.float32(a.get("beta", 0.5)), 0, 1
    ),
    "leaky_relu": lambda x, a: np.where(x < 0, np.float32(a.get("alpha", 0.01)) * x, x),
    "elu": lambda x, a: np.where(x < 0, np.float32(a.get("alpha", 1.0)) * np.expm1(x), x),
    "floor": lambda x, a: np.floor(x),
    "ceil": lambda x, a: np.ceil(x),
    "cast": _cast,
    "clip": _clip,
    "not": lambda x, a: (x == 0).astype(np.float32),
    "round": lambda x, a: np.rint(x),
    "sign": lambda x, a: np.sign(x),
    "swish": lambda x, a: x * sigmoid(np.float32(a.get("alpha", 1.0)) * x),
    "scale": lambda x, a: x * np.float32(a["value"]),
}

BINARY: Mapping[str, Callable[[Array, Array], Array]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "pow": lambda x, y: np.power(x, y),
    "min": lambda x, y: np.minimum(x, y),
    "max": lambda x, y: np.maximum(x, y),
    "equal": lambda x, y: (x == y).astype(np.float32),
    "greater": lambda x, y: (x > y).astype(np.float32),
    "greater_equal": lambda x, y: (x >= y).astype(np.float32),
    "less": lambda x, y: (x < y).astype(np.float32),
    "less_equal": lambda x, y: (x <= y).astype(np.float32),
    "xor": lambda x, y: ((x != 0) != (y != 0)).astype(np.float32),
    "and": lambda x, y: ((x != 0) & (y != 0)).astype(np.float32),
    "or": lambda x, y: ((x != 0) | (y != 0)).astype(np.float32),
    "prelu": lambda x, y: np.where(x < 0, x * y, x),
}
