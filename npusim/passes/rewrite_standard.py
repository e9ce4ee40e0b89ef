"""Standard operators that others can spell: contractions, padding, pixel shuffles, sums of many, picks of one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

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


def _pick(writer: Rewriter) -> bool:
    """Gather of one constant position, or of a run of them, from run-time data: a slice."""
    data = writer.constants.get(writer.input(1))
    shape = writer.shape(writer.input(0))
    if data is None or not data.size or not shape:
        return False
    axis = int(writer.attribute("axis", 0)) % len(shape)
    positions = [int(i) % shape[axis] for i in data.ravel()] if shape[axis] else []
    if not positions or positions != list(range(positions[0], positions[0] + len(positions))):
        return False
    taken = writer.slice(writer.input(0), axis, positions[0], positions[0] + len(positions))
    writer.reshape(taken, (*shape[:axis], *data.shape, *shape[axis + 1 :]), writer.output(0))
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


STANDARD: Mapping[str, Rule] = {
    "Einsum": _einsum,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Sum": _many("Add"),
    "Min": _many("Min"),
    "Max": _many("Max"),
    "Gather": _pick,
    "ConvTranspose": _transposed_conv,
}
