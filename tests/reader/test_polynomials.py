"""Multiplied out or evaluated node by node: the same number."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npusim.onnx_model import Node
from npusim.passes.polynomials import Arithmetic

CONSTANTS = {"half": 0.5, "one": 1.0, "three": 3.0, "minus": -2.0, "zero": 0.0}
VARIABLES = ("x", "t")


def arithmetic(nodes: list[Node]) -> Arithmetic:
    return Arithmetic(producer={n.outputs[0]: n for n in nodes}, scalar=CONSTANTS.get)


def node(op: str, *inputs: str, out: str = "y") -> Node:
    return Node(op=op, name=out, inputs=inputs, outputs=(out,))


@st.composite
def expressions(draw: st.DrawFn) -> list[Node]:
    """Up to eight operators on variables, constants and one another."""
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 8))):
        operands = st.sampled_from([*VARIABLES, *CONSTANTS, *(n.outputs[0] for n in nodes), *VARIABLES])
        op = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "Pow", "Neg"]))
        first = draw(operands)
        inputs = (first,) if op == "Neg" else (first, draw(operands))
        nodes.append(node(op, *inputs, out=f"v{number}"))
    return nodes


FUNCTIONS: dict[str, Callable[..., float]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.truediv, "Pow": operator.pow,
    "Neg": operator.neg,
}  # fmt: skip


def evaluated(nodes: list[Node], value: str, variables: dict[str, float]) -> float:
    """A value, by calling its operator on the values that it reads."""
    if value in CONSTANTS or value in variables:
        return CONSTANTS.get(value, variables.get(value, 0.0))
    made = next(n for n in nodes if n.outputs[0] == value)
    return FUNCTIONS[made.op](*(evaluated(nodes, i, variables) for i in made.inputs))


@given(expressions())
def test_a_polynomial_has_the_values_of_the_expression(nodes: list[Node]) -> None:
    value = nodes[-1].outputs[0]
    found = arithmetic(nodes).polynomial(value, VARIABLES)
    if found is None:
        return
    for x, t in ((0.7, -0.3), (-1.9, 0.8)):
        ours = sum(c * x**i * t**j for (i, j), c in found.items())
        assert isclose(ours, evaluated(nodes, value, {"x": x, "t": t}), rel_tol=1e-9, abs_tol=1e-9)


def test_every_order_of_the_factors_is_one_polynomial() -> None:
    wanted = {(1, 0): 0.5, (1, 1): 0.5}
    left = [node("Mul", "x", "half", out="a"), node("Add", "one", "t", out="b"), node("Mul", "a", "b")]
    right = [node("Mul", "t", "x", out="a"), node("Add", "a", "x", out="b"), node("Mul", "half", "b")]
    for nodes in (left, right):
        assert arithmetic(nodes).polynomial("y", VARIABLES) == wanted


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Div", "half", "x")],
        [node("Div", "x", "zero")],
        [node("Pow", "x", "half")],
        [node("Pow", "x", "t")],
        [node("Mul", "x", "other")],
        [node("Sqrt", "x")],
        [node("Pow", "x", "three", out="a"), node("Mul", "a", "a")],
        [node("Add", "x", "x", out="v0"), *(node("Add", f"v{i}", f"v{i}", out=f"v{i + 1}") for i in range(2000)),
         node("Neg", "v2000")],
    ],
)  # fmt: skip
def test_what_is_no_small_polynomial_is_none(nodes: list[Node]) -> None:
    assert arithmetic(nodes).polynomial("y", VARIABLES) is None


def test_the_nodes_of_an_expression_come_after_those_that_they_read() -> None:
    nodes = [node("Mul", "x", "x", out="a"), node("Add", "a", "x", out="b"), node("Mul", "b", "a")]
    found = arithmetic(nodes).nodes("y", ("x",))
    assert found is not None
    assert [n.name for n in found] == ["a", "b", "y"]
    assert arithmetic(nodes).nodes("y", ("a",)) is None


def test_values_behind_another_are_named_nearest_first() -> None:
    nodes = [node("Mul", "x", "half", out="a"), node("Add", "a", "t", out="b"), node("Neg", "b")]
    assert list(arithmetic(nodes).behind("y")) == ["y", "b", "a", "t", "x"]
