"""Which boxes of its operands an output band of a vector layer reads: the same rows, a band with halo, or what a copy needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from npusim.graph import Graph, Layer, Operand, Shape4
from npusim.lower.geometry import Band, TensorBox, input_rows, operand_boxes
from npusim.ops import OPS

Range = tuple[int, int]


def source_boxes(graph: Graph, layer: Layer, index: int, band: Band) -> list[TensorBox]:
    """Boxes of operand `index` that the output rows of `band` need.

    Copies and rearrangements get the bounding box of the elements that they move. Operators that npusim can only cost read the
    same share of their rows: their bytes are exact, their boxes nominal. An index of table rows is read whole.
    """
    operand = layer.operands[index]
    if layer.op == "gather" and index == 0:
        return [
            TensorBox(p.tensor, (0, 0, 0, p.start), (*graph.tensors[p.tensor].shape[:3], p.size))
            for p in operand.parts
        ]
    if OPS[layer.op].streams != "whole":
        r0, r1 = input_rows(layer, band.r0, band.r1) if operand.role == "x" else (band.r0, band.r1)
        return list(operand_boxes(graph.tensors, operand, band._replace(r0=r0, r1=r1)))
    if layer.op == "unknown":
        return list(operand_boxes(graph.tensors, operand, _share(graph, layer, operand, band)))
    ranges = _moved(graph, layer, index, band)
    return list(_part_boxes(graph, operand, ranges)) if ranges is not None else []


def _share(graph: Graph, layer: Layer, operand: Operand, band: Band) -> Band:
    out, own = graph.tensors[layer.output].shape, graph.tensors[operand.parts[0].tensor].shape
    total = out[0] * out[1] * out[2]
    first = (band.b * out[1] + band.h0) * out[2] + band.r0
    share = (band.h1 - band.h0 - 1) * out[2] + band.r1 - band.r0
    rows = own[2]
    low = min(first * rows // total, rows - 1)
    return Band(0, 0, own[1], low, max(low + 1, (first + share) * rows // total))


def _moved(graph: Graph, layer: Layer, index: int, band: Band) -> list[Range] | None:
    """Range of each storage axis of an operand that a band of a copy reads; None if it reads nothing of it."""
    out = graph.tensors[layer.output].shape
    first = ((band.b * out[1] + band.h0) * out[2] + band.r0) * out[3]
    count = ((band.h1 - band.h0 - 1) * out[2] + band.r1 - band.r0) * out[3]
    if layer.op == "rearrange":
        atoms, order = layer.attributes["atoms"], layer.attributes["order"]
        digits = _digit_ranges([atoms[i][1] for i in order], first, first + count)
        by_atom = dict(zip(order, digits, strict=True))
        return [
            _merged([(atoms[i][1], by_atom[i]) for i in range(len(atoms)) if atoms[i][0] == axis])
            for axis in range(4)
        ]
    shape, axis, shift, out_shape = _copied(layer, index, prod(out))
    digits = _digit_ranges(out_shape, first, first + count)
    ranges = []
    for dim, (size, (low, high)) in enumerate(zip(shape, digits, strict=True)):
        if dim == axis:
            low, high = max(0, low + shift), min(size, high + shift)
            if low >= high:
                return None
        ranges.append((low, high) if size > 1 else (0, 1))
    return _axes(shape, ranges)


def _copied(layer: Layer, index: int, elements: int) -> tuple[Sequence[int], int, int, Sequence[int]]:
    """(shape of the operand, dimension that is cut or joined, source position minus output position, shape of the output)."""
    attributes = layer.attributes
    if "expand" in attributes:
        return attributes["shape"], -1, 0, attributes["expand"]
    axis = int(attributes["axis"])
    if "shapes" in attributes:
        shapes = attributes["shapes"]
        joined = tuple(sum(s[axis] for s in shapes) if d == axis else n for d, n in enumerate(shapes[0]))
        return shapes[index], axis, -sum(s[axis] for s in shapes[:index]), joined
    shape = attributes["shape"]
    kept = elements // (prod(shape) // shape[axis])
    return shape, axis, int(attributes["start"]), tuple(kept if d == axis else n for d, n in enumerate(shape))


def _digit_ranges(sizes: Sequence[int], start: int, stop: int) -> list[Range]:
    """For the linear indices `[start, stop)`, the range of each digit of the mixed radix number, most significant first."""
    ranges: list[Range] = []
    low, high = start, stop - 1
    step = prod(sizes)
    split = False
    for size in sizes:
        step //= size
        a, b = low // step, high // step
        ranges.append((0, size) if split else (a, b + 1))
        split = split or a != b
        low, high = low - a * step, high - b * step
    return ranges


def _merged(factors: Sequence[tuple[int, Range]]) -> Range:
    """Bounding range of one storage axis made of these factors, outermost first."""
    low = high = 0
    for size, (a, b) in factors:
        low, high = low * size + a, high * size + b - 1
    return low, high + 1


def _axes(shape: Sequence[int], ranges: Sequence[Range]) -> list[Range]:
    """Ranges of a value's dimensions as ranges of the axes of its default storage."""
    pairs = list(zip(shape, ranges, strict=True))
    batch, rest = (pairs[:1], pairs[1:]) if len(pairs) >= 3 else ([], pairs)
    return [_merged(batch), (0, 1), _merged(rest[:-1]), _merged(rest[-1:])]


def _part_boxes(graph: Graph, operand: Operand, ranges: Sequence[Range]) -> Iterator[TensorBox]:
    """The boxes of an operand's parts within ranges of its four axes."""
    (b0, b1), (h0, h1), (r0, r1), (c0, c1) = ranges
    position = 0
    for part in operand.parts:
        start, stop = max(c0, position), min(c1, position + part.size)
        if start < stop:
            offset: Shape4 = (b0, h0, r0, part.start + start - position)
            yield TensorBox(part.tensor, offset, (b1 - b0, h1 - h0, r1 - r0, stop - start))
        position += part.size
