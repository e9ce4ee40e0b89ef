"""Layers in standard ONNX operators, whole or one piece at a time: the mirror of `execute.compute`, with graph nodes for numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from npusim.errors import ExportError
from npusim.execute.kernels_product import spatial_of
from npusim.execute.stages import MAIN, gate_position, stage_after
from npusim.execute.vector_layers import OUT, PARAMETERS, STATISTICS, X, Y, image_rows
from npusim.export.onnx_functions import binary, unary
from npusim.export.onnx_graph import GraphWriter
from npusim.export.onnx_numbers import MATRIX, ROWS, VECTOR, Constant, Numbers, kernel
from npusim.export.onnx_spatial import SpatialNodes
from npusim.export.onnx_values import Layouts, Value
from npusim.export.source import inexpressible
from npusim.graph import Graph, Layer, Shape4
from npusim.lower.geometry import TensorBox
from npusim.lower.statistics import first_column
from npusim.ops import index_tensors


@dataclass(frozen=True, slots=True)
class Block:
    """A box of a tensor that a command reads, and what holds it in the graph."""

    tensor: str
    offset: Shape4
    held: Value | Constant


Reads = Mapping[int, Sequence[Block]]


class LayerNodes:
    """Writes the nodes of layers.

    Args:
        numbers: how constants and stored pieces are written.
    """

    def __init__(self, graph: Graph, writer: GraphWriter, numbers: Numbers) -> None:
        self.graph, self.writer, self.numbers = graph, writer, numbers
        self.layouts = Layouts(writer)
        self.spatial = SpatialNodes(writer, self.layouts)
        self.indices = index_tensors(graph)

    # ---- tensor engine -----------------------------------------------------------------------------------------

    def product(self, layer: Layer, reads: Reads, outs: Sequence[TensorBox], heads: int) -> list[Value]:
        """A convolution, linear map or attention product; two results where the layer is gated.

        Raises:
            ExportError: the piece cannot be said in ONNX.
        """
        if layer.op == "matmul":
            return [self.stored(layer, MAIN, self._attention(layer, reads, outs[0], heads))]
        matrix = layer.operands[1].parts[0].tensor
        weights = [b for b in reads[Y] if b.tensor == matrix]
        biases: list[Block | None] = [b for b in reads[Y] if b.tensor != matrix]
        biases = biases or [None] * len(weights)
        x = self.numbers.common(layer, X, self.joined(reads[X]))
        first = reads[X][0].offset[2]
        return [
            self.stored(layer, MAIN, self._weighted(layer, x, first, w, b, out))
            for w, b, out in zip(weights, biases, outs, strict=True)
        ]

    def _weighted(
        self, layer: Layer, x: Value, first_row: int, weight: Block, bias: Block | None, out: TensorBox
    ) -> Value:
        shift = self.numbers.constant(_constant(bias), VECTOR) if bias is not None else ""
        if layer.op == "linear":
            return self._linear(x, self.numbers.constant(_constant(weight), MATRIX), shift, out.shape)
        geometry = spatial_of(layer.attributes)
        groups = int(layer.attributes["groups"])
        if groups > 1 and _constant(weight).shape != self.graph.tensors[weight.tensor].shape:
            raise ExportError(
                f"layer '{layer.name}': a piece has some of the channels of a convolution in {groups} groups; export it whole"
            )
        filters = self.numbers.constant(_constant(weight), kernel(*geometry.kernel))
        rows = image_rows(out, geometry.out_hw[1])
        return self.spatial.conv(x, first_row, filters, shift, geometry, groups, rows, out.shape)

    def _linear(self, x: Value, weight: str, bias: str, shape: Shape4) -> Value:
        """x times the transpose of [outputs, depth]. Gemm, and not MatMul: current onnxruntime turns MatMul with a dequantized
        weight into an operator that rounds x to 8 bits."""
        b, h, r, k = x.shape
        flat = self.layouts.reshape(self.layouts.rows(x).name, (b * h * r, k))
        found = self.writer.node("Gemm", [flat, weight, *([bias] if bias else [])], transB=1)
        return Value(self.layouts.reshape(found, shape), shape)

    def _attention(self, layer: Layer, reads: Reads, out: TensorBox, heads: int) -> Value:
        x = self.layouts.heads(self.numbers.common(layer, X, self.joined(reads[X])), heads)
        y = self.layouts.heads(self.numbers.common(layer, Y, self.joined(reads[Y])), heads)
        right, cols = y.name, y.shape[3]
        if layer.attributes["y_rows"] == "outputs":
            right, cols = self.writer.node("Transpose", [y.name], shared=True, perm=[0, 1, 3, 2]), y.shape[2]
        found = self.writer.node("MatMul", [x.name, right])
        return self.layouts.merged(Value(found, (*x.shape[:3], cols)), out.shape)

    def part(self, layer: Layer, reads: Reads, out: TensorBox, heads: int) -> Value:
        """An attention product over some of the keys, for others to be added: the stage is stored when all are."""
        found, factor = self._attention(layer, reads, out, heads), stage_after(layer, MAIN).factor
        if factor == 1.0:
            return found
        return Value(self.writer.node("Mul", [found.name, self.writer.scalar(factor)]), found.shape)

    # ---- vector engine -----------------------------------------------------------------------------------------

    def vector(self, layer: Layer, reads: Reads, out: TensorBox) -> Value:
        """The main command of a vector layer.

        Raises:
            ExportError: no standard operators express it.
        """
        if layer.op not in _VECTOR:
            raise inexpressible(layer)
        return self.stored(layer, MAIN, _VECTOR[layer.op](self, layer, reads, out))

    def epilogue(self, layer: Layer, position: int, reads: Reads) -> Value:
        """An epilogue function on a finished piece."""
        entry = layer.epilogue[position]
        piece = self.value(reads[OUT][0])
        if entry.operand < 0:
            name = unary(self.writer, entry.function, piece.name, dict(entry.parameters))
        else:
            other = self.layouts.like(self.joined(reads[entry.operand]), piece)
            name = binary(self.writer, entry.function, piece.name, other.name)
        return self.stored(layer, position, Value(name, piece.shape, piece.width))

    def gate(self, layer: Layer, halves: Sequence[Block]) -> Value:
        """The first half of a gated product times the GELU of the second."""
        position = gate_position(layer)
        value, gate = (self.value(b) for b in halves)
        opened = unary(self.writer, "gelu", gate.name, dict(layer.epilogue[position].parameters))
        name = self.writer.node("Mul", [value.name, opened])
        return self.stored(layer, position, Value(name, value.shape, value.width))

    def statistics(self, layer: Layer, reads: Reads) -> Value:
        """Sums of a piece of GroupNorm's input, added to those before: [b, 1, groups, 2] in FP64."""
        x = self.numbers.common(layer, X, self.joined(reads[X]))
        before = self.value(reads[STATISTICS][0]).name if STATISTICS in reads else ""
        first = first_column(layer, reads[X][0].tensor, reads[X][0].offset[3])
        width = layer.operands[0].cols // int(layer.attributes["groups"])
        return self.spatial.statistics(x, width, first, before)

    def no_statistics(self, shape: Shape4) -> Value:
        """Zeros to begin sums with."""
        zeros = np.zeros(shape)
        return Value(self.writer.constant(f"zeros:{shape}", zeros), shape)

    def gathered(self, table: str, index: Value, first: int, count: int, shape: Shape4) -> Value:
        """Rows of a table for `count` of its indices from number `first` on, as a box of this shape."""
        flat = self.layouts.reshape(self.layouts.rows(index).name, (-1,))
        limits = [self.writer.ints(n) for n in (first, first + count, 0)]
        chosen = self.writer.node("Slice", [flat, *limits], shared=True)
        whole = Constant(table, (0, 0, 0, 0), self.graph.tensors[table].shape)
        rows = self.writer.node("Gather", [self.numbers.constant(whole, MATRIX), chosen], axis=0)
        return Value(self.layouts.reshape(rows, shape), shape)

    def moved(self, layer: Layer, operands: Sequence[Value]) -> Value:
        """A layer that only moves data (`copy`, `rearrange`), whole."""
        shape = self.graph.tensors[layer.output].shape
        names = [self.layouts.rows(o).name for o in operands]
        found = Value(self.spatial.moved(layer, names, shape), shape)
        return self.stored(layer, MAIN, found)

    def stored(self, layer: Layer, position: int, value: Value) -> Value:
        """A result with the constant factor and in the format of its stage."""
        stage = stage_after(layer, position)
        if stage.factor != 1.0:
            name = self.writer.node("Mul", [value.name, self.writer.scalar(stage.factor)])
            value = Value(name, value.shape, value.width)
        return self.numbers.stored(stage.key, value)

    # ---- values of blocks --------------------------------------------------------------------------------------

    def value(self, block: Block) -> Value:
        """What holds a block, as a value: constants as they are stored."""
        if isinstance(block.held, Value):
            return block.held
        return Value(self.numbers.constant(block.held, ROWS), block.held.shape)

    def joined(self, blocks: Sequence[Block]) -> Value:
        """Parts of an operand side by side; rows of one part that the tiles before and now hold, one under the other."""
        parts: list[list[Value]] = []
        below: tuple[str, Shape4] | None = None  # what continues the part before: its tensor, and where
        for block in blocks:
            value = self.value(block)
            if below == (block.tensor, block.offset) and parts[-1][-1].shape[3] == value.shape[3]:
                parts[-1].append(value)
            else:
                parts.append([value])
            b, h, r, c = block.offset
            below = (block.tensor, (b, h, r + value.shape[2], c))
        return self.layouts.columns([p[0] if len(p) == 1 else self.layouts.concat(p, 2) for p in parts])

    def parameters(self, layer: Layer, reads: Reads) -> tuple[str, str]:
        """Vectors of scale and shift of a norm, '' where it has none."""
        blocks = iter(reads.get(PARAMETERS, ()))
        found = {
            o.role: self.numbers.constant(_constant(next(blocks)), VECTOR)
            for o in layer.operands
            if o.role in ("scale", "bias")
        }
        return found.get("scale", ""), found.get("bias", "")


def _constant(block: Block) -> Constant:
    if not isinstance(block.held, Constant):
        raise ExportError(f"'{block.tensor}' is computed at run time where a constant is needed")
    return block.held


# ---- vector layers -----------------------------------------------------------------------------------------------------


def _elementwise(nodes: LayerNodes, layer: Layer, reads: Reads, out: TensorBox) -> Value:
    attributes, writer = layer.attributes, nodes.writer
    function = str(attributes["function"])
    x = nodes.joined(reads[X])
    if layer.output in nodes.indices:  # a cast on the way to a table: indices are integers from the start
        return x
    others = [nodes.joined(blocks) for number, blocks in reads.items() if number != X]
    if not others and ("value" not in attributes or function == "scale"):
        return Value(unary(writer, function, x.name, attributes), out.shape, x.width)
    other = nodes.layouts.like(others[0], x).name if others else writer.scalar(float(attributes["value"]))
    pair = (other, x.name) if attributes.get("swapped") else (x.name, other)
    return Value(binary(writer, function, *pair), out.shape, x.width)


def _softmax(nodes: LayerNodes, layer: Layer, reads: Reads, out: TensorBox) -> Value:
    found = nodes.writer.node("Softmax", [nodes.layouts.rows(nodes.joined(reads[X])).name], axis=-1)
    if layer.attributes.get("zero_if_masked"):
        masked = nodes.writer.node("IsNaN", [found])
        found = nodes.writer.node("Where", [masked, nodes.writer.scalar(0.0), found])
    return Value(found, out.shape)


def _layer_norm(nodes: LayerNodes, layer: Layer, reads: Reads, out: TensorBox) -> Value:
    scale, bias = nodes.parameters(layer, reads)
    x = nodes.layouts.rows(nodes.joined(reads[X]))
    inputs = [x.name, scale or nodes.spatial.ones(x.shape[3]), *([bias] if bias else [])]
    found = nodes.writer.node(
        "LayerNormalization", inputs, axis=-1, epsilon=float(layer.attributes["epsilon"])
    )
    return Value(found, out.shape)


def _group_norm(nodes: LayerNodes, layer: Layer, reads: Reads, out: TensorBox) -> Value:
    x = nodes.numbers.common(layer, X, nodes.joined(reads[X]))
    scale, bias = nodes.parameters(layer, reads)
    groups, epsilon = int(layer.attributes["groups"]), float(layer.attributes["epsilon"])
    if STATISTICS not in reads:
        return nodes.spatial.group_norm(x, groups, scale, bias, epsilon)
    statistics = nodes.value(reads[STATISTICS][0]).name
    shape = nodes.graph.tensors[layer.output].shape
    count = shape[2] * (shape[3] // groups)
    return nodes.spatial.normalized(x, statistics, groups, count, scale, bias, epsilon)


def _resize(nodes: LayerNodes, layer: Layer, reads: Reads, out: TensorBox) -> Value:
    rows = image_rows(out, int(layer.attributes["out_hw"][1]))
    return nodes.spatial.resize(
        nodes.joined(reads[X]), reads[X][0].offset[2], layer.attributes, rows, out.shape
    )


def _pool(nodes: LayerNodes, layer: Layer, reads: Reads, out: TensorBox) -> Value:
    geometry = spatial_of(layer.attributes)
    rows = image_rows(out, geometry.out_hw[1])
    return nodes.spatial.pool(nodes.joined(reads[X]), reads[X][0].offset[2], layer, geometry, rows, out.shape)


def _gather(nodes: LayerNodes, layer: Layer, reads: Reads, out: TensorBox) -> Value:
    """The rows were picked when they were brought."""
    return nodes.value(reads[PARAMETERS][0])


_VECTOR: Mapping[str, Callable[[LayerNodes, Layer, Reads, TensorBox], Value]] = {
    "elementwise": _elementwise, "softmax": _softmax, "layer_norm": _layer_norm, "group_norm": _group_norm,
    "resize": _resize, "pool": _pool, "gather": _gather,
}  # fmt: skip
