"""Vector layers: one short function per operator, on blocks, in FP32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from npusim.errors import BadInputError, NpusimError
from npusim.execute.blocks import Array, Block, joined
from npusim.execute.functions import binary, unary
from npusim.execute.kernels_product import spatial_of
from npusim.execute.kernels_vector import (
    concat,
    expand,
    group_norm,
    layer_norm,
    pool,
    rearrange,
    resize,
    softmax,
    take,
)
from npusim.graph import Graph, Layer, Shape4
from npusim.lower.geometry import TensorBox
from npusim.quantize import Format, decode

if TYPE_CHECKING:
    from npusim.execute.compute import Compute

Reads = Mapping[int, Sequence[Block]]

#: Operand numbers of commands: x, second factor, parameters, a factor per row, statistics or running state, the piece itself.
X, Y, PARAMETERS, FACTOR, STATISTICS, OUT = 0, 1, 5, 7, 8, 9


def scale_of(form: Format) -> float:
    assert isinstance(form.scale, float)
    return form.scale


def image_rows(out: TensorBox, out_w: int) -> tuple[int, int]:
    return out.offset[2] // out_w, (out.offset[2] + out.shape[2]) // out_w


def _elementwise(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    attributes = layer.attributes
    function = str(attributes["function"])
    x = run.value(reads[X])
    others = [run.value(blocks) for number, blocks in reads.items() if number != X]
    if not others and ("value" not in attributes or function == "scale"):
        return unary(function, x, attributes)
    other = others[0] if others else np.float32(attributes["value"])
    pair = (np.asarray(other), x) if attributes.get("swapped") else (x, np.asarray(other))
    return np.ascontiguousarray(np.broadcast_to(binary(function, *pair), out.shape))


def _softmax(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    guarded = bool(layer.attributes.get("zero_if_masked"))
    return softmax(run.value(reads[X]), zero_if_masked=guarded, workers=run.workers)


def _layer_norm(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    scale, bias = run.parameters(layer, reads)
    return layer_norm(run.value(reads[X]), scale, bias, float(layer.attributes["epsilon"]))


def _group_norm(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    shape = run.graph.tensors[layer.output].shape
    groups = int(layer.attributes["groups"])
    x = run.norm_operand(layer, reads[X])
    epsilon = float(layer.attributes["epsilon"])
    if x.dtype.kind == "i":  # statistics are of integers: epsilon in their unit
        epsilon /= scale_of(run.operand_format(layer, X)) ** 2
    scale, bias = run.parameters(layer, reads)
    count = shape[2] * (shape[3] // groups)
    return group_norm(x.astype(np.float32), reads[STATISTICS][0].data, count, scale, bias, epsilon)


def _resize(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    rows = image_rows(out, int(layer.attributes["out_hw"][1]))
    return resize(run.value(reads[X]), reads[X][0].offset[2], layer.attributes, rows)


def _pool(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    geometry = spatial_of(layer.attributes)
    rows = image_rows(out, geometry.out_hw[1])
    return pool(run.value(reads[X]), reads[X][0].offset[2], layer.attributes, geometry, rows)


def _gather(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    """Rows were brought by the load; their scales follow the indices."""
    rows = reads[PARAMETERS][0]
    form = run.formats[layer.operands[1].parts[0].tensor]
    wanted = wanted_rows(run.graph, layer, reads[X], out)
    if isinstance(form.scale, np.ndarray):
        scales = form.scale[wanted].reshape(*rows.data.shape[:3], 1)
        return np.asarray(rows.data * scales, dtype=np.float32)
    return decode(rows.data, form)


def wanted_rows(graph: Graph, layer: Layer, index: Sequence[Block], out: TensorBox) -> Array:
    """Table rows that the output rows of a gather need (negative indices count from the end).

    Raises:
        NpusimError: the blocks do not hold the whole index, or an index points outside the table.
    """
    flat = joined([b.data for b in index]).ravel().astype(np.int64)
    shape = graph.tensors[layer.output].shape
    first = (out.offset[0] * shape[1] + out.offset[1]) * shape[2] + out.offset[2]
    chosen = flat[first : first + prod(out.shape[:3])]
    total = graph.tensors[layer.operands[1].parts[0].tensor].shape[2]
    if flat.size != prod(shape[:3]):
        raise NpusimError(
            f"layer '{layer.name}' needs {prod(shape[:3])} indices and finds {flat.size}; the Program is wrong"
        )
    if chosen.size and (chosen.min() < -total or chosen.max() >= total):
        raise BadInputError(
            f"layer '{layer.name}': indices from {chosen.min()} to {chosen.max()}, its table has {total} rows; "
            f"give indices below {total}"
        )
    return np.where(chosen < 0, chosen + total, chosen)


def _copy(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    """Move boxes by way of whole, mostly untouched arrays: simple, and right for any cut."""
    shape = run.graph.tensors[layer.output].shape
    sources = [_whole(run, layer, number, reads.get(number, ())) for number, o in enumerate(layer.operands)]
    if layer.op == "rearrange":
        moved = rearrange(sources[0], layer.attributes, shape)
    elif "expand" in layer.attributes:
        moved = expand(sources[0], layer.attributes, shape)
    elif "shapes" in layer.attributes:
        moved = concat(sources, layer.attributes, shape)
    else:
        moved = take(sources[0], layer.attributes, shape)
    b, h, r, c = out.offset
    return np.ascontiguousarray(
        moved[b : b + out.shape[0], h : h + out.shape[1], r : r + out.shape[2], c : c + out.shape[3]]
    )


def _whole(run: Compute, layer: Layer, number: int, blocks: Sequence[Block]) -> Array:
    """An array of the operand's full shape that holds the given blocks; the rest is never read."""
    operand = layer.operands[number]
    tensors = run.graph.tensors
    first = tensors[operand.parts[0].tensor].shape
    shape: Shape4 = (first[0], first[1], first[2], operand.cols)
    whole = np.zeros(shape, dtype=np.float32)
    waiting = list(blocks)
    position = 0
    for part in operand.parts:
        for block in [
            b
            for b in waiting
            if b.tensor == part.tensor and part.start <= b.offset[3] < part.start + part.size
        ][:1]:
            b, h, r, c = block.offset
            n = block.data.shape
            start = position + c - part.start
            whole[b : b + n[0], h : h + n[1], r : r + n[2], start : start + n[3]] = run.decoded(block)
            waiting = [w for w in waiting if w is not block]
        position += part.size
    return whole


VECTOR_LAYERS: Mapping[str, Callable[[Compute, Layer, Reads, TensorBox], Array]] = {
    "elementwise": _elementwise,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "resize": _resize,
    "pool": _pool,
    "gather": _gather,
    "copy": _copy,
    "rearrange": _copy,
}
