"""Contractions of every kind as products of equal batches: Einsum, broadcast MatMul, Gemm with factors, ConvTranspose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from npusim.passes.rewrite import Rewriter, Rule


def _einsum(writer: Rewriter) -> bool:
    """A permutation of one operand, or a contraction of two as one batched matrix product."""
    left, arrow, out = str(writer.attribute("equation", "")).replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left or any(len(set(t)) != len(t) for t in (*terms, out)):
        return False
    if any(len(t) != len(writer.shape(i)) for t, i in zip(terms, writer.node.inputs, strict=False)):
        return False
    if len(terms) == 1 and sorted(terms[0]) == sorted(out):
        writer.transpose(writer.input(0), [terms[0].index(c) for c in out], writer.output(0))
        return True
    return len(terms) == 2 and _contraction(writer, terms[0], terms[1], out)


def _contraction(writer: Rewriter, a: str, b: str, out: str) -> bool:
    if not set(out) <= set(a) | set(b) or any(c not in set(b) | set(out) for c in a):
        return False
    if any(c not in set(a) | set(out) for c in b):
        return False
    sizes = {
        **dict(zip(a, writer.shape(writer.input(0)), strict=True)),
        **dict(zip(b, writer.shape(writer.input(1)), strict=True)),
    }
    batch = [c for c in a if c in b and c in out]
    summed = [c for c in a if c in b and c not in out]
    rows, cols = [c for c in a if c not in b], [c for c in b if c not in a]

    def matrix(value: str, term: str, order: Sequence[str], split: int) -> str:
        turned = writer.transpose(value, [term.index(c) for c in order])
        lead = [sizes[c] for c in batch]
        first = prod(sizes[c] for c in order[len(batch) : len(batch) + split])
        last = prod(sizes[c] for c in order[len(batch) + split :])
        return writer.reshape(turned, (*lead, first, last))

    x = matrix(writer.input(0), a, [*batch, *rows, *summed], len(rows))
    y = matrix(writer.input(1), b, [*batch, *summed, *cols], len(summed))
    order = [*batch, *rows, *cols]
    found = writer.reshape(writer.matmul(x, y), [sizes[c] for c in order])
    writer.transpose(found, [order.index(c) for c in out], writer.output(0))
    return True


def _matmul(writer: Rewriter) -> bool:
    """Products of vectors and of broadcast batches as products of equal batches."""
    a, b = writer.input(0), writer.input(1)
    x, y = writer.shape(a), writer.shape(b)
    if not x or not y:
        return False
    if len(x) > 1 and len(y) > 1:
        if x[:-2] == y[:-2] or (len(y) == 2 and writer.is_constant(b)):
            return False
        _batched(writer, a, b, writer.output(0))
        return True
    first = writer.reshape(a, (1, *x)) if len(x) == 1 else a
    second = writer.reshape(b, (*y, 1)) if len(y) == 1 else b
    found = _batched(writer, first, second)
    shape = list(writer.shape(found))
    kept = shape[:-2] + ([] if len(x) == 1 else shape[-2:-1]) + ([] if len(y) == 1 else shape[-1:])
    writer.reshape(found, kept, writer.output(0))
    return True


def _batched(writer: Rewriter, a: str, b: str, output: str = "") -> str:
    """The product of two operands of rank two or more whose batches broadcast."""
    x, y = writer.shape(a), writer.shape(b)
    lead = np.broadcast_shapes(x[:-2], y[:-2])
    if x[:-2] == y[:-2] or (len(y) == 2 and writer.is_constant(b)):
        return writer.matmul(a, b, output)
    if prod(y[:-2]) == 1:  # one matrix for the whole batch
        rows = writer.reshape(a, (prod(x[:-1]), x[-1]))
        found = writer.matmul(rows, writer.reshape(b, y[-2:]))
        return writer.reshape(found, (*lead, x[-2], y[-1]), output)
    sides = [_expanded(writer, v, (*lead, *writer.shape(v)[-2:])) for v in (a, b)]
    return writer.matmul(sides[0], sides[1], output)


def _expanded(writer: Rewriter, value: str, shape: Sequence[int]) -> str:
    if writer.shape(value) == tuple(shape):
        return value
    return writer.add("Expand", (value, writer.constant(shape, "int64")), shape)


def _gemm(writer: Rewriter) -> bool:
    """Gemm with factors, a transposed first operand, a run-time matrix or a bias that is none, in single steps."""
    alpha, beta = float(writer.attribute("alpha", 1.0)), float(writer.attribute("beta", 1.0))
    bias = writer.input(2)
    plain = not bias or (
        writer.is_constant(bias)
        and prod(writer.shape(bias))
        == writer.shape(writer.input(1))[0 if writer.attribute("transB", 0) else 1]
    )
    turned = bool(writer.attribute("transA", 0))
    if alpha == beta == 1.0 and not turned and writer.is_constant(writer.input(1)) and plain:
        return False
    a = writer.transpose(writer.input(0), (1, 0)) if turned else writer.input(0)
    b = writer.transpose(writer.input(1), (1, 0)) if writer.attribute("transB", 0) else writer.input(1)
    found = writer.matmul(a, b)
    if alpha != 1.0:
        found = writer.binary("Mul", found, writer.constant(alpha))
    if bias and beta != 0.0:
        term = bias if beta == 1.0 else writer.binary("Mul", bias, writer.constant(beta))
        found = writer.binary("Add", found, term)
    writer.reshape(found, writer.shape(found), writer.output(0))
    return True


def _transposed_conv(writer: Rewriter) -> bool:
    """ConvTranspose whose windows do not overlap: one linear map, then a pixel shuffle."""
    shape, kernel = writer.shape(writer.input(0)), writer.shape(writer.input(1))
    rank = len(shape) - 2
    size = kernel[2:]
    plain = not any(writer.attribute("pads", ())) and not any(writer.attribute("output_padding", ()))
    if (
        rank != 2
        or not plain
        or tuple(writer.attribute("strides", (1,) * rank)) != tuple(size)
        or any(d != 1 for d in writer.attribute("dilations", ()))
        or writer.attribute("group", 1) != 1
        or writer.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    ):
        return False
    n, c, h, w = shape
    outputs, high, wide = kernel[1:]
    weight = writer.reshape(writer.input(1), (c, outputs * high * wide))
    found = writer.matmul(writer.transpose(writer.input(0), (0, 2, 3, 1)), weight)
    apart = writer.reshape(found, (n, h, w, outputs, high, wide))
    turned = writer.transpose(apart, (0, 3, 1, 4, 2, 5))
    bias = writer.input(2)
    image = writer.reshape(turned, (n, outputs, h * high, w * wide), "" if bias else writer.output(0))
    if bias:
        writer.binary("Add", image, writer.reshape(bias, (1, outputs, 1, 1)), writer.output(0))
    return True


CONTRACTIONS: Mapping[str, Rule] = {
    "Einsum": _einsum,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "ConvTranspose": _transposed_conv,
}
