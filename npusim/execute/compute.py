"""What product and vector commands compute: stored blocks in, stored blocks out, in the arithmetic of the formats.

The same code runs one piece of a Program and, for calibration and comparison, whole tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence

import numpy as np

from npusim.execute.blocks import Array, Block, aligned_copy, joined, merge_heads
from npusim.execute.functions import UnsupportedError, binary, unary
from npusim.execute.kernels_product import Patches, conv, linear, matmul, spatial_of
from npusim.execute.kernels_vector import group_statistics
from npusim.execute.stages import MAIN, Formats, gate_position, stage_after, stage_before
from npusim.execute.vector_layers import (
    OUT,
    PARAMETERS,
    STATISTICS,
    VECTOR_LAYERS,
    Reads,
    X,
    Y,
    image_rows,
    scale_of,
)
from npusim.execute.workers import ELEMENT_OPERATIONS, INLINE, Workers
from npusim.graph import Graph, Layer
from npusim.lower.geometry import TensorBox
from npusim.lower.statistics import first_column
from npusim.quantize import (
    Doubles,
    Format,
    check_accumulator,
    decode,
    encode,
    requantize,
    require_exact,
)

#: Weights kept in the form that products need.
PREPARED_MAX = 4


class Compute:
    """Runs commands of layers on stored values.

    Attributes:
        formats: how tensors and stages are stored.
        accumulator_bits: width of a tensor engine's accumulator.
    """

    def __init__(
        self, graph: Graph, formats: Formats, accumulator_bits: int = 64, workers: Workers = INLINE
    ) -> None:
        self.graph, self.formats, self.accumulator_bits = graph, formats, accumulator_bits
        self.workers = workers
        self._patches = Patches()
        self._prepared: dict[Hashable, Array] = {}
        self._prepared_lock = threading.Lock()

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
        x_form, w_form = self.operand_format(layer, X), self.formats[weight.tensor]
        if not (x_form.is_integer and w_form.is_integer and form.is_integer):
            result = self._map(layer, x, self.value(x), self.decoded(weight), out)
            if bias is not None:
                result += self.decoded(bias)
            return encode(_scaled(result, factor), form)
        left = self.integers(x, x_form)
        require_exact(weight.data.shape[3], left, weight.data, layer.name)
        result = self._map(layer, x, left, self._wide(weight), out)
        scales = scale_of(x_form) * _rows(w_form, weight)
        if bias is not None:
            result += _bias_in(bias, self.formats[bias.tensor], scales)
        return self._narrowed(result, scales * factor / scale_of(form), form, layer)

    def _map(self, layer: Layer, x: Sequence[Block], values: Array, weight: Array, out: TensorBox) -> Array:
        if layer.op == "linear":
            return linear(values, weight, self.workers)
        geometry = spatial_of(layer.attributes)
        rows = image_rows(out, geometry.out_hw[1])
        groups = int(layer.attributes["groups"])
        origins = tuple(b.origin for b in x)
        known = None if None in origins else (layer.name, rows, origins)
        return conv(
            values, x[0].offset[2], weight, geometry, groups, rows, workers=self.workers, patches=self._patches, origin=known
        )  # fmt: skip

    def _attention(
        self, layer: Layer, reads: Reads, out: TensorBox, heads: int, form: Format, factor: float
    ) -> Array:
        x_form, y_form = self.operand_format(layer, X), self.operand_format(layer, Y)
        if not (x_form.is_integer and y_form.is_integer and form.is_integer):
            result = self._matmul(layer, self.value(reads[X]), self.value(reads[Y]), heads)
            return encode(_scaled(merge_heads(result, out.shape), factor), form)
        sums = self._integer_sums(layer, reads, heads)
        scale = scale_of(x_form) * scale_of(y_form) * factor / scale_of(form)
        return self._narrowed(merge_heads(sums, out.shape), scale, form, layer)

    def part(self, layer: Layer, reads: Reads, out: TensorBox, heads: int) -> Array:
        """An attention product over some of the keys: accumulators read out as FP32, for others to be added.

        Raises:
            AccumulatorOverflowError: an integer sum does not fit.
        """
        factor = stage_after(layer, MAIN).factor
        x_form, y_form = self.operand_format(layer, X), self.operand_format(layer, Y)
        if not (x_form.is_integer and y_form.is_integer):
            result = self._matmul(layer, self.value(reads[X]), self.value(reads[Y]), heads)
            return _scaled(merge_heads(result, out.shape), factor)
        sums = self._integer_sums(layer, reads, heads)
        check_accumulator(sums, self.accumulator_bits, layer.name)
        sums *= scale_of(x_form) * scale_of(y_form) * factor
        return np.asarray(merge_heads(sums, out.shape), dtype=np.float32)

    def _integer_sums(self, layer: Layer, reads: Reads, heads: int) -> Array:
        """Exact sums of an attention product of integers, in FP64."""
        left, right = (self.integers(reads[n], self.operand_format(layer, n)) for n in (X, Y))
        require_exact(left.shape[1] * left.shape[3] // heads, left, right, layer.name)
        return self._matmul(layer, aligned_copy(left, np.float64), aligned_copy(right, np.float64), heads)

    def _matmul(self, layer: Layer, left: Array, right: Array, heads: int) -> Array:
        outputs = layer.attributes["y_rows"] == "outputs"
        return matmul(left, right, heads, y_rows_are_outputs=outputs, workers=self.workers)

    def _wide(self, weight: Block) -> Array:
        """A weight in FP64; what was made of recent blocks is kept, since several pieces in a row use the same."""
        if weight.origin is None:
            return aligned_copy(weight.data, np.float64)
        with self._prepared_lock:
            found = self._prepared.pop(weight.origin, None)
            if found is None:
                found = aligned_copy(weight.data, np.float64)
                if len(self._prepared) >= PREPARED_MAX:
                    del self._prepared[next(iter(self._prepared))]
            self._prepared[weight.origin] = found
        return found

    def _narrowed(self, sums: Array, factor: float | Doubles, form: Format, layer: Layer) -> Array:
        """Accumulators as stored integers; a sum that does not fit the hardware's is an error."""
        result = np.empty(sums.shape, dtype=form.numpy)
        flat, target = sums.reshape(-1, sums.shape[3]), result.reshape(-1, sums.shape[3])

        def part(at: slice) -> None:
            check_accumulator(flat[at], self.accumulator_bits, layer.name)
            target[at] = requantize(flat[at], factor, form.dtype)

        self.workers.share(len(flat), ELEMENT_OPERATIONS * sums.size, part)
        return result

    # ---- vector engine -----------------------------------------------------------------------------------------

    def statistics(self, layer: Layer, reads: Reads) -> Array:
        """Sums of a piece of GroupNorm's input, added to those before: [b, 1, groups, 2]; of integers, not of what they stand for.

        The piece has all columns of the input, or some of one part.
        """
        before, blocks = reads.get(STATISTICS), reads[X]
        first = first_column(layer, blocks[0].tensor, blocks[0].offset[3])
        width = layer.operands[0].cols // int(layer.attributes["groups"])
        raw = self.norm_operand(layer, blocks)
        return group_statistics(raw, width, first, before[0].data if before else None)

    def vector(self, layer: Layer, reads: Reads, out: TensorBox) -> Array:
        """The main command of a vector layer.

        Raises:
            UnsupportedError: the operator can be costed but not run.
        """
        stage = stage_after(layer, MAIN)
        if layer.op not in VECTOR_LAYERS:
            raise UnsupportedError(
                f"layer '{layer.name}' stands for the ONNX operator {layer.attributes.get('onnx_op', layer.op)}, which npusim can "
                "cost but not run; profile this model, or export it without that operator"
            )
        result = VECTOR_LAYERS[layer.op](self, layer, reads, out)
        return encode(_scaled(result, stage.factor), self.formats[stage.key])

    def epilogue(self, layer: Layer, position: int, reads: Reads) -> Array:
        """An epilogue function on a finished piece."""
        entry = layer.epilogue[position]
        stage = stage_after(layer, position)
        piece = self.decoded_as(reads[OUT][0], self.formats[stage_before(layer, position)])
        if entry.operand < 0:
            result = unary(entry.function, piece, dict(entry.parameters))
        else:
            result = binary(entry.function, piece, self.value(reads[entry.operand]))
        return encode(_scaled(result, stage.factor), self.formats[stage.key])

    def gate(self, layer: Layer, halves: Sequence[Block]) -> Array:
        """The first half of a gated product times the GELU of the second."""
        position = gate_position(layer)
        stage = stage_after(layer, position)
        form = self.formats[stage_before(layer, position)]
        value, gate = (self.decoded_as(b, form) for b in halves)
        result = value * unary("gelu", gate, dict(layer.epilogue[position].parameters))
        return encode(_scaled(result, stage.factor), self.formats[stage.key])

    # ---- values of blocks --------------------------------------------------------------------------------------

    def decoded(self, block: Block) -> Array:
        return self.decoded_as(block, self.formats[block.tensor])

    def decoded_as(self, block: Block, form: Format) -> Array:
        rows = slice(block.offset[2], block.offset[2] + block.data.shape[2])
        return decode(block.data, form, rows)

    def value(self, blocks: Sequence[Block]) -> Array:
        return joined([self.decoded(b) for b in blocks])

    def operand_format(self, layer: Layer, number: int) -> Format:
        """Common format of an operand's parts: a concatenation has the largest of their scales."""
        forms = [self.formats[p.tensor] for p in layer.operands[number].parts]
        if not all(f.is_integer for f in forms):
            return forms[0]
        return max(forms, key=scale_of)

    def integers(self, blocks: Sequence[Block], form: Format) -> Array:
        """Stored integers of an operand, brought to one format where the parts differ."""
        same = [_same(self.formats[b.tensor], form) for b in blocks]
        return joined(
            [b.data if s else encode(self.decoded(b), form) for b, s in zip(blocks, same, strict=True)]
        )

    def norm_operand(self, layer: Layer, blocks: Sequence[Block]) -> Array:
        """What GroupNorm sums: integers of one scale, so that sums are exact whatever the cut; else values."""
        form = self.operand_format(layer, X)
        return self.integers(blocks, form) if form.is_integer else self.value(blocks)

    def parameters(self, layer: Layer, reads: Reads) -> tuple[Array | None, Array | None]:
        """Scale and shift of a norm."""
        blocks = iter(reads.get(PARAMETERS, ()))
        found = {o.role: self.decoded(next(blocks)) for o in layer.operands if o.role in ("scale", "bias")}
        return found.get("scale"), found.get("bias")


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
