"""What product and vector commands compute: stored blocks in, stored blocks out, in the arithmetic of the formats.

The same code runs one piece of a Program and, for calibration and comparison, whole tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np

from npusim.errors import BadInputError, NpusimError
from npusim.execute.blocks import Array, Block, aligned_copy, joined, merge_heads
from npusim.execute.functions import UnsupportedError, binary, unary
from npusim.execute.kernels_product import conv, linear, matmul, spatial_of
from npusim.execute.kernels_vector import (
    concat,
    expand,
    group_norm,
    group_statistics,
    layer_norm,
    pool,
    rearrange,
    resize,
    softmax,
    take,
)
from npusim.execute.stages import MAIN, Formats, gate_position, stage_after, stage_before
from npusim.graph import Graph, Layer, Shape4
from npusim.lower.geometry import TensorBox
from npusim.quantize import (
    Doubles,
    Format,
    check_accumulator,
    decode,
    encode,
    requantize,
    require_exact,
)

Reads = Mapping[int, Sequence[Block]]

#: Operand numbers of commands: x, second factor, parameters, statistics, the piece itself.
X, Y, PARAMETERS, STATISTICS, OUT = 0, 1, 5, 8, 9


class Compute:
    """Runs commands of layers on stored values.

    Attributes:
        formats: how tensors and stages are stored.
        accumulator_bits: width of a tensor engine's accumulator.
    """

    def __init__(self, graph: Graph, formats: Formats, accumulator_bits: int = 64) -> None:
        self.graph, self.formats, self.accumulator_bits = graph, formats, accumulator_bits

    # ---- tensor engine -----------------------------------------------------------------------------------------

    def product(self, layer: Layer, reads: Reads, outs: Sequence[TensorBox], heads: int) -> list[Array]:
        """A convolution, linear map or attention product; two outputs where the layer is gated.

        Raises:
            AccumulatorOverflowError: an integer sum does not fit.
        """
        stage = stage_after(layer, MAIN)
        form = self.formats[stage.key]
        if layer.op == "matmul":
            return [self._attention(layer, reads, outs[0], heads, form, stage.factor)]
        weights = [b for b in reads[Y] if b.tensor == layer.operands[1].parts[0].tensor]
        biases: list[Block | None] = [b for b in reads[Y] if b.tensor != layer.operands[1].parts[0].tensor]
        biases = biases or [None] * len(weights)
        return [
            self._weighted(layer, reads[X], w, b, out, form, stage.factor)
            for w, b, out in zip(weights, biases, outs, strict=True)
        ]

    def _weighted(
        self,
        layer: Layer,
        x: Sequence[Block],
        weight: Block,
        bias: Block | None,
        out: TensorBox,
        form: Format,
        factor: float,
    ) -> Array:
        x_form, w_form = self._operand_format(layer, X), self.formats[weight.tensor]
        if not (x_form.is_integer and w_form.is_integer and form.is_integer):
            result = self._map(layer, x, self._value(x), self._decoded(weight), out)
            if bias is not None:
                result += self._decoded(bias)
            return encode(_scaled(result, factor), form)
        left = self._integers(x, x_form)
        require_exact(weight.data.shape[3], left, weight.data, layer.name)
        result = self._map(
            layer, x, aligned_copy(left, np.float64), aligned_copy(weight.data, np.float64), out
        )
        if bias is not None:
            result += _bias_in(bias, self.formats[bias.tensor], _scale(x_form) * _rows(w_form, weight))
        check_accumulator(result, self.accumulator_bits, layer.name)
        return requantize(result, _scale(x_form) * _rows(w_form, weight) * factor / _scale(form), form.dtype)

    def _map(self, layer: Layer, x: Sequence[Block], values: Array, weight: Array, out: TensorBox) -> Array:
        if layer.op == "linear":
            return linear(values, weight)
        geometry = spatial_of(layer.attributes)
        return conv(
            values,
            x[0].offset[2],
            weight,
            geometry,
            int(layer.attributes["groups"]),
            _image_rows(out, geometry.out_hw[1]),
        )

    def _attention(
        self, layer: Layer, reads: Reads, out: TensorBox, heads: int, form: Format, factor: float
    ) -> Array:
        outputs = layer.attributes["y_rows"] == "outputs"
        x_form, y_form = self._operand_format(layer, X), self._operand_format(layer, Y)
        if not (x_form.is_integer and y_form.is_integer and form.is_integer):
            result = matmul(self._value(reads[X]), self._value(reads[Y]), heads, y_rows_are_outputs=outputs)
            return encode(_scaled(merge_heads(result, out.shape), factor), form)
        left, right = self._integers(reads[X], x_form), self._integers(reads[Y], y_form)
        require_exact(left.shape[1] * left.shape[3] // heads, left, right, layer.name)
        wide = (aligned_copy(left, np.float64), aligned_copy(right, np.float64))
        result = matmul(*wide, heads, y_rows_are_outputs=outputs)
        check_accumulator(result, self.accumulator_bits, layer.name)
        merged = merge_heads(result, out.shape)
        return requantize(merged, _scale(x_form) * _scale(y_form) * factor / _scale(form), form.dtype)

    # ---- vector engine -----------------------------------------------------------------------------------------

    def statistics(self, layer: Layer, reads: Reads) -> Array:
        """Sums of a band for GroupNorm, added to those before: [b, 1, groups, 2]; of integers, not of what they stand for."""
        before = reads.get(STATISTICS)
        raw = self._norm_operand(layer, reads[X])
        return group_statistics(raw, int(layer.attributes["groups"]), before[0].data if before else None)

    def vector(self, layer: Layer, reads: Reads, out: TensorBox) -> Array:
        """The main command of a vector layer.

        Raises:
            UnsupportedError: the operator can be costed but not run.
        """
        stage = stage_after(layer, MAIN)
        if layer.op not in _VECTOR:
            raise UnsupportedError(
                f"layer '{layer.name}' stands for the ONNX operator {layer.attributes.get('onnx_op', layer.op)}, which npusim can "
                "cost but not run; profile this model, or export it without that operator"
            )
        result = _VECTOR[layer.op](self, layer, reads, out)
        return encode(_scaled(result, stage.factor), self.formats[stage.key])

    def epilogue(self, layer: Layer, position: int, reads: Reads) -> Array:
        """An epilogue function on a finished piece."""
        entry = layer.epilogue[position]
        stage = stage_after(layer, position)
        piece = self._decoded_as(reads[OUT][0], self.formats[stage_before(layer, position)])
        if entry.operand < 0:
            result = unary(entry.function, piece, dict(entry.parameters))
        else:
            result = binary(entry.function, piece, self._value(reads[entry.operand]))
        return encode(_scaled(result, stage.factor), self.formats[stage.key])

    def gate(self, layer: Layer, halves: Sequence[Block]) -> Array:
        """The first half of a gated product times the GELU of the second."""
        position = gate_position(layer)
        stage = stage_after(layer, position)
        form = self.formats[stage_before(layer, position)]
        value, gate = (self._decoded_as(b, form) for b in halves)
        result = value * unary("gelu", gate, dict(layer.epilogue[position].parameters))
        return encode(_scaled(result, stage.factor), self.formats[stage.key])

    # ---- values of blocks --------------------------------------------------------------------------------------

    def _decoded(self, block: Block) -> Array:
        return self._decoded_as(block, self.formats[block.tensor])

    def _decoded_as(self, block: Block, form: Format) -> Array:
        rows = slice(block.offset[2], block.offset[2] + block.data.shape[2])
        return decode(block.data, form, rows)

    def _value(self, blocks: Sequence[Block]) -> Array:
        return joined([self._decoded(b) for b in blocks])

    def _operand_format(self, layer: Layer, number: int) -> Format:
        """Common format of an operand's parts: a concatenation has the largest of their scales."""
        forms = [self.formats[p.tensor] for p in layer.operands[number].parts]
        if not all(f.is_integer for f in forms):
            return forms[0]
        return max(forms, key=_scale)

    def _integers(self, blocks: Sequence[Block], form: Format) -> Array:
        """Stored integers of an operand, brought to one format where the parts differ."""
        same = [_same(self.formats[b.tensor], form) for b in blocks]
        return joined(
            [b.data if s else encode(self._decoded(b), form) for b, s in zip(blocks, same, strict=True)]
        )

    def _norm_operand(self, layer: Layer, blocks: Sequence[Block]) -> Array:
        """What GroupNorm sums: integers of one scale, so that sums are exact whatever the cut; else values."""
        form = self._operand_format(layer, X)
        return self._integers(blocks, form) if form.is_integer else self._value(blocks)

    def parameters(self, layer: Layer, reads: Reads) -> tuple[Array | None, Array | None]:
        """Scale and shift of a norm."""
        blocks = iter(reads.get(PARAMETERS, ()))
        found = {o.role: self._decoded(next(blocks)) for o in layer.operands if o.role in ("scale", "bias")}
        return found.get("scale"), found.get("bias")


def _scale(form: Format) -> float:
    assert isinstance(form.scale, float)
    return form.scale


def _rows(form: Format, block: Block) -> Doubles:
    assert isinstance(form.scale, np.ndarray)
    return form.scale[block.offset[2] : block.offset[2] + block.data.shape[2], 0]


def _bias_in(bias: Block, form: Format, scales: Doubles) -> Array:
    """A bias in the accumulators' scales; it is stored in them, unless several layers share it."""
    assert isinstance(form.scale, np.ndarray)
    own = form.scale[0, bias.offset[3] : bias.offset[3] + bias.data.shape[3]]
    return bias.data if np.array_equal(own, scales) else np.rint(bias.data * (own / scales))


def _same(one: Format, other: Format) -> bool:
    return one.dtype == other.dtype and one.scale == other.scale


def _scaled(values: Array, factor: float) -> Array:
    return values if factor == 1.0 else values * np.float32(factor)


def _image_rows(out: TensorBox, out_w: int) -> tuple[int, int]:
    return out.offset[2] // out_w, (out.offset[2] + out.shape[2]) // out_w


# ---- vector layers by operator -------------------------------------------------------------------------------------


def _elementwise(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    attributes = layer.attributes
    function = str(attributes["function"])
    x = run._value(reads[X])
    others = [run._value(blocks) for number, blocks in reads.items() if number != X]
    if not others and ("value" not in attributes or function == "scale"):
        return unary(function, x, attributes)
    other = others[0] if others else np.float32(attributes["value"])
    pair = (np.asarray(other), x) if attributes.get("swapped") else (x, np.asarray(other))
    return np.ascontiguousarray(np.broadcast_to(binary(function, *pair), out.shape))


def _softmax(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    return softmax(run._value(reads[X]), zero_if_masked=bool(layer.attributes.get("zero_if_masked")))


def _layer_norm(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    scale, bias = run.parameters(layer, reads)
    return layer_norm(run._value(reads[X]), scale, bias, float(layer.attributes["epsilon"]))


def _group_norm(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    shape = run.graph.tensors[layer.output].shape
    groups = int(layer.attributes["groups"])
    x = run._norm_operand(layer, reads[X])
    epsilon = float(layer.attributes["epsilon"])
    if x.dtype.kind == "i":  # statistics are of integers: epsilon in their unit
        epsilon /= _scale(run._operand_format(layer, X)) ** 2
    scale, bias = run.parameters(layer, reads)
    count = shape[2] * (shape[3] // groups)
    return group_norm(x.astype(np.float32), reads[STATISTICS][0].data, count, scale, bias, epsilon)


def _resize(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    rows = _image_rows(out, int(layer.attributes["out_hw"][1]))
    return resize(run._value(reads[X]), reads[X][0].offset[2], layer.attributes, rows)


def _pool(run: Compute, layer: Layer, reads: Reads, out: TensorBox) -> Array:
    geometry = spatial_of(layer.attributes)
    rows = _image_rows(out, geometry.out_hw[1])
    return pool(run._value(reads[X]), reads[X][0].offset[2], layer.attributes, geometry, rows)


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
            whole[b : b + n[0], h : h + n[1], r : r + n[2], start : start + n[3]] = run._decoded(block)
            waiting = [w for w in waiting if w is not block]
        position += part.size
    return whole


_VECTOR: Mapping[str, Callable[[Compute, Layer, Reads, TensorBox], Array]] = {
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
