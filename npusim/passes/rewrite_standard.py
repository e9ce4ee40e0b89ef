"""Standard operators that others can spell: reductions, padding, pixel shuffles, sums of many, masks, picks of one row."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from npusim.passes.rewrite import NEVER, Rewriter, Rule


def _pad(writer: Rewriter) -> bool:
    """Padding by a constant: constants joined on both sides of each padded dimension."""
    shape, given = writer.shape(writer.input(0)), writer.attribute("pads", None)
    if writer.input(1):
        data = writer.constants.get(writer.input(1))
        given = data.ravel().tolist() if data is not None else None
    if given is None or writer.input(3) or writer.attribute("mode", "constant") != "constant":
        return False
    if len(given) != 2 * len(shape) or any(p < 0 for p in given):
        return False
    filler = writer.constants.get(writer.input(2)) if writer.input(2) else None
    if writer.input(2) and filler is None:
        return False
    value = float(filler.ravel()[0]) if filler is not None else float(writer.attribute("value", 0.0))
    padded = [d for d in range(len(shape)) if given[d] or given[d + len(shape)]]
    x = writer.input(0)
    for d in padded:
        target = writer.output(0) if d == padded[-1] else ""
        x = _pad_one(writer, x, d, (int(given[d]), int(given[d + len(shape)])), value, target)
    if not padded:
        writer.reshape(x, shape, writer.output(0))
    return True


def _pad_one(writer: Rewriter, x: str, axis: int, sizes: tuple[int, int], value: float, output: str) -> str:
    shape = writer.shape(x)
    joined = []
    for size in sizes:
        piece = [size if d == axis else n for d, n in enumerate(shape)]
        joined.append(writer.filled(piece, value) if size else "")
    parts = [p for p in (joined[0], x, joined[1]) if p]
    total = [n + sum(sizes) if d == axis else n for d, n in enumerate(shape)]
    return writer.add("Concat", parts, total, output, axis=axis)


def _depth_to_space(writer: Rewriter) -> bool:
    n, c, h, w = writer.shape(writer.input(0))
    block = int(writer.attribute("blocksize", 0))
    if block < 1 or c % (block * block):
        return False
    depth = c // (block * block)
    if writer.attribute("mode", "DCR") == "DCR":
        apart, turn = (n, block, block, depth, h, w), (0, 3, 4, 1, 5, 2)
    else:
        apart, turn = (n, depth, block, block, h, w), (0, 1, 4, 2, 5, 3)
    turned = writer.transpose(writer.reshape(writer.input(0), apart), turn)
    writer.reshape(turned, (n, depth, h * block, w * block), writer.output(0))
    return True


def _space_to_depth(writer: Rewriter) -> bool:
    n, c, h, w = writer.shape(writer.input(0))
    block = int(writer.attribute("blocksize", 0))
    if block < 1 or h % block or w % block:
        return False
    apart = writer.reshape(writer.input(0), (n, c, h // block, block, w // block, block))
    turned = writer.transpose(apart, (0, 3, 5, 1, 2, 4))
    writer.reshape(turned, (n, c * block * block, h // block, w // block), writer.output(0))
    return True


def _many(op: str) -> Rule:
    """An operator of any number of inputs as a chain of binary ones."""

    def rule(writer: Rewriter) -> bool:
        first, *rest = writer.node.inputs
        if op in ("Min", "Max") and len(rest) == 1:
            return False
        if not rest:
            writer.reshape(first, writer.shape(first), writer.output(0))
        for i, other in enumerate(rest):
            first = writer.binary(op, first, other, writer.output(0) if i == len(rest) - 1 else "")
        return True

    return rule


#: More single positions than this stay one gathering operator.
_PICKS = 64


def _pick(writer: Rewriter) -> bool:
    """Gather of constant positions from run-time data: a slice per run of positions, joined."""
    data = writer.constants.get(writer.input(1))
    shape = writer.shape(writer.input(0))
    if data is None or not data.size or not shape or writer.is_constant(writer.input(0)):
        return False
    axis = int(writer.attribute("axis", 0)) % len(shape)
    runs: list[list[int]] = []
    for position in (int(i) % shape[axis] for i in data.ravel()):
        if runs and runs[-1][1] == position:
            runs[-1][1] += 1
        else:
            runs.append([position, position + 1])
    if len(runs) > _PICKS:
        return False
    taken = [writer.slice(writer.input(0), axis, start, stop) for start, stop in runs]
    joined = taken[0]
    if len(taken) > 1:
        size = [data.size if d == axis else n for d, n in enumerate(shape)]
        joined = writer.add("Concat", taken, size, axis=axis)
    writer.reshape(joined, (*shape[:axis], *data.shape, *shape[axis + 1 :]), writer.output(0))
    return True


def _tile(writer: Rewriter) -> bool:
    """Repetition as broadcasting over new dimensions."""
    shape, repeats = writer.shape(writer.input(0)), writer.constants.get(writer.input(1))
    if repeats is None or repeats.size != len(shape) or (repeats < 1).any():
        return False
    times = [int(r) for r in repeats.ravel()]
    apart = writer.reshape(writer.input(0), [n for size in shape for n in (1, size)])
    wide = [n for r, size in zip(times, shape, strict=True) for n in (r, size)]
    many = writer.add("Expand", (apart, writer.constant(wide, "int64")), wide)
    writer.reshape(many, [r * size for r, size in zip(times, shape, strict=True)], writer.output(0))
    return True


def _where(writer: Rewriter) -> bool:
    """A choice at run time: c x + (1 - c) y."""
    condition, (x, y) = writer.input(0), (_bounded(writer, writer.input(i)) for i in (1, 2))
    if all(writer.is_constant(i) for i in writer.node.inputs):
        return False
    chosen = writer.binary("Mul", writer.unary("Cast", condition, to=1), x)
    other = writer.binary("Mul", writer.unary("Not", condition), y)
    writer.binary("Add", chosen, other, writer.output(0))
    return True


def _bounded(writer: Rewriter, value: str) -> str:
    """The value; a constant that stands for minus infinity as a number whose product with zero is zero."""
    number = writer.constants.get(value)
    if number is None or number.dtype.kind != "f" or not (number <= -NEVER).any():
        return value
    return writer.constant(np.maximum(number, -NEVER))


def _where_constant(writer: Rewriter) -> bool:
    """A choice by a constant mask between a value and a number: a mask added to scores, or a product with zeros and ones."""
    mask = writer.constants.get(writer.input(0))
    for index, keep in ((1, False), (2, True)):
        number = writer.constants.get(writer.input(index))
        if mask is None or number is None or number.size != 1:
            continue
        value, other = float(number.ravel()[0]), writer.input(3 - index)
        if np.broadcast_shapes(mask.shape, writer.shape(other)) != writer.shape(other):
            continue
        kept = mask.astype(bool) if keep else ~mask.astype(bool)
        if value <= -NEVER:
            writer.binary("Add", other, writer.constant(np.where(kept, 0.0, -NEVER)), writer.output(0))
            return True
        if value == 0.0:
            writer.binary("Mul", other, writer.constant(kept), writer.output(0))
            return True
    return False


def _pool_1d(writer: Rewriter) -> bool:
    """Pooling of one dimension as pooling of images of width one."""
    shape = writer.shape(writer.input(0))
    known = writer.values.get(writer.output(0))
    out = known.shape if known is not None else None
    if len(shape) != 3 or out is None or len([o for o in writer.node.outputs if o]) != 1:
        return False
    wide = ("kernel_shape", "strides", "dilations")
    attributes: dict[str, Any] = {
        key: (*value, 1) if key in wide else value
        for key, value in writer.node.attributes.items()
        if key != "pads"
    }
    low, high = writer.attribute("pads", (0, 0))
    image = writer.reshape(writer.input(0), (*shape, 1))
    pooled = writer.add(writer.node.op, (image,), (*out, 1), pads=(low, 0, high, 0), **attributes)
    writer.reshape(pooled, out, writer.output(0))
    return True


def _reduced_axes(writer: Rewriter) -> list[int] | None:
    """The dimensions that a reduction removes, ascending; None if that is decided at run time, or none are."""
    rank = len(writer.shape(writer.input(0)))
    given = writer.attribute("axes", None)
    if writer.input(1):
        data = writer.constants.get(writer.input(1))
        if data is None:
            return None
        given = data.ravel().tolist()
    if not given:
        return None if writer.attribute("noop_with_empty_axes", 0) or not rank else list(range(rank))
    return sorted({int(a) % rank for a in given}) if rank else None


def _reduction(function: str) -> Rule:
    """A reduction of some dimensions as pooling over the whole image that they make."""

    def rule(writer: Rewriter) -> bool:
        axes = _reduced_axes(writer)
        if axes is None or 0 in writer.shape(writer.input(0)):
            return False
        x = writer.input(0)
        if function in ("l2", "square"):
            x = writer.binary("Mul", x, x)
        count = float(prod(writer.shape(x)[d] for d in axes))
        found = _pooled(writer, x, axes, "GlobalMaxPool" if function == "max" else "GlobalAveragePool")
        if function in ("sum", "l2", "square"):
            found = writer.binary("Mul", found, writer.constant(count))
        if function == "l2":
            found = writer.unary("Sqrt", found)
        keep = bool(writer.attribute("keepdims", 1))
        shape = writer.shape(x)
        out = [1 if d in axes else n for d, n in enumerate(shape) if keep or d not in axes]
        writer.reshape(found, out, writer.output(0))
        return True

    return rule


def _pooled(writer: Rewriter, x: str, axes: list[int], pool: str) -> str:
    """[batch, kept, 1, 1]: the given dimensions pooled as one image; a leading kept dimension is the batch."""
    shape = writer.shape(x)
    kept = [d for d in range(len(shape)) if d not in axes]
    lead = kept[:1] if len(kept) > 1 and kept[0] < axes[0] else []
    rest = kept[len(lead) :]
    batch, channels = prod(shape[d] for d in lead), prod(shape[d] for d in rest)
    turned = writer.transpose(x, (*lead, *rest, *axes))
    image = writer.reshape(turned, (batch, channels, prod(shape[d] for d in axes), 1))
    return writer.add(pool, (image,), (batch, channels, 1, 1))


def _local_response(writer: Rewriter) -> bool:
    """x / (bias + alpha * mean of x^2 over neighbouring channels) ^ beta; the mean is a pooling along the channels."""
    x = writer.input(0)
    shape, size = writer.shape(x), int(writer.attribute("size", 0))
    if len(shape) < 3 or size < 1 or 0 in shape:
        return False
    batch, channels, pixels = shape[0], shape[1], prod(shape[2:])
    square = writer.reshape(writer.binary("Mul", x, x), (batch, channels, pixels))
    image = writer.reshape(writer.transpose(square, (0, 2, 1)), (batch, pixels, channels, 1))
    mean = writer.add(
        "AveragePool", (image,), (batch, pixels, channels, 1), kernel_shape=(size, 1), strides=(1, 1),
        pads=((size - 1) // 2, 0, size // 2, 0), count_include_pad=1,
    )  # fmt: skip
    back = writer.transpose(writer.reshape(mean, (batch, pixels, channels)), (0, 2, 1))
    alpha, beta, bias = (
        float(writer.attribute(name, known))
        for name, known in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    scaled = writer.binary("Mul", writer.reshape(back, shape), writer.constant(alpha))
    base = writer.binary("Add", scaled, writer.constant(bias))
    writer.binary("Div", x, writer.binary("Pow", base, writer.constant(beta)), writer.output(0))
    return True


def _log_softmax(writer: Rewriter) -> bool:
    shares = writer.unary("Softmax", writer.input(0), **dict(writer.node.attributes))
    writer.unary("Log", shares, writer.output(0))
    return True


def _mish(writer: Rewriter) -> bool:
    gate = writer.unary("Tanh", writer.unary("Softplus", writer.input(0)))
    writer.binary("Mul", writer.input(0), gate, writer.output(0))
    return True


#: Spelled out only where no pattern took them in (padding joins a convolution, a guard its softmax).
LATE: Mapping[str, Rule] = {"Pad": _pad, "Where": _where}

STANDARD: Mapping[str, Rule] = {
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Sum": _many("Add"),
    "Min": _many("Min"),
    "Max": _many("Max"),
    "Gather": _pick,
    "AveragePool": _pool_1d,
    "MaxPool": _pool_1d,
    "Tile": _tile,
    "Where": _where_constant,
    "LRN": _local_response,
    "LogSoftmax": _log_softmax,
    "Mish": _mish,
    "ReduceMean": _reduction("mean"),
    "ReduceSum": _reduction("sum"),
    "ReduceMax": _reduction("max"),
    "ReduceL2": _reduction("l2"),
    "ReduceSumSquare": _reduction("square"),
}
