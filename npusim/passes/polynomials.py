"""What scalar arithmetic of a graph computes, whichever way its nodes are written: a polynomial of a few values.

Additions, products, quotients and powers with scalar constants are multiplied out, so `0.5 * x * (1 + t)`, `x / 2 * t + x / 2` and
`(t + 1) * (x * 0.5)` are the same polynomial of x and t.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from npusim.onnx_model import Node

#: Coefficients by the exponents of the variables, in the variables' order; none is zero.
Polynomial = Mapping[tuple[int, ...], float]

_OPERATORS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Neg"})
#: Nodes of one expression at most; the longest spelling of GELU that exporters write has nine.
_NODES = 16
_DEGREE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """The arithmetic of a graph.

    Attributes:
        producer: the node that makes each value.
        scalar: the number that a value is, if it is a constant of one element.
    """

    producer: Mapping[str, Node]
    scalar: Callable[[str], float | None]

    def made(self, value: str) -> Node | None:
        """The arithmetic operator that makes a value, or None."""
        node = self.producer.get(value)
        return node if node is not None and node.op in _OPERATORS else None

    def behind(self, value: str) -> Iterator[str]:
        """The value and those that its arithmetic reads, nearest first; constants are left out."""
        waiting, seen = deque([value]), {value}
        while waiting:
            current = waiting.popleft()
            yield current
            node = self.made(current)
            for read in node.inputs if node is not None and len(seen) < _NODES else ():
                if read not in seen and self.scalar(read) is None:
                    seen.add(read)
                    waiting.append(read)

    def nodes(self, value: str, variables: tuple[str, ...]) -> tuple[Node, ...] | None:
        """The operators that make `value` of the variables and of constants, each after those it reads; None if it needs more."""
        found: dict[str, Node] = {}
        seen: set[str] = set()

        def visit(current: str) -> bool:
            if current in found or current in variables or self.scalar(current) is not None:
                return True
            node = self.made(current)
            if node is None or len(seen) == _NODES:
                return False
            seen.add(current)
            if not all(visit(i) for i in node.inputs):
                return False
            found[current] = node
            return True

        return tuple(found.values()) if visit(value) else None

    def polynomial(self, value: str, variables: tuple[str, ...]) -> Polynomial | None:
        """`value` as a polynomial of the variables, or None if it is none of them (of degree four at most)."""
        nodes = self.nodes(value, variables)
        if nodes is None:
            return None
        count = len(variables)
        known: dict[str, Polynomial] = {
            v: {tuple(int(i == j) for j in range(count)): 1.0} for i, v in enumerate(variables)
        }
        for node in nodes:
            operands = [known.get(i) or _constant(self.scalar(i) or 0.0, count) for i in node.inputs]
            result = _applied(node.op, operands)
            if result is None or any(sum(exponents) > _DEGREE for exponents in result):
                return None
            known[node.outputs[0]] = result
        return known.get(value)


def _constant(number: float, count: int) -> Polynomial:
    return {(0,) * count: number} if number else {}


def _applied(op: str, operands: list[Polynomial]) -> Polynomial | None:
    """What an operator makes of its operands; None where that is no polynomial."""
    if op == "Neg":
        return _sum({}, operands[0], -1.0)
    first, second = operands
    if op in ("Add", "Sub"):
        return _sum(first, second, 1.0 if op == "Add" else -1.0)
    if op == "Mul":
        return _product(first, second)
    number = _number(second)
    if op == "Div":
        return None if not number else _sum({}, first, 1.0 / number)
    return _power(first, number)


def _number(polynomial: Polynomial) -> float | None:
    """The number that a polynomial of degree zero is, or None."""
    return None if any(any(exponents) for exponents in polynomial) else sum(polynomial.values())


def _sum(first: Polynomial, second: Polynomial, factor: float) -> Polynomial:
    total = dict(first)
    for exponents, coefficient in second.items():
        total[exponents] = total.get(exponents, 0.0) + factor * coefficient
    return {e: c for e, c in total.items() if c}


def _product(first: Polynomial, second: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for exponents, coefficient in first.items():
        shifted = {
            tuple(a + b for a, b in zip(exponents, others, strict=True)): c for others, c in second.items()
        }
        total = _sum(total, shifted, coefficient)
    return total


def _power(base: Polynomial, exponent: float | None) -> Polynomial | None:
    if exponent not in (1.0, 2.0, 3.0, 4.0):
        return None
    result = base
    for _ in range(int(exponent) - 1):
        result = _product(result, base)
    return result
