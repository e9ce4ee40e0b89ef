"""A network's layers as ONNX, one whole layer after the other: the mirror of `execute.untiled`."""

from __future__ import annotations

from npusim.execute.stages import MAIN, gate_position
from npusim.execute.vector_layers import OUT, PARAMETERS, X, Y
from npusim.export.onnx_graph import GraphWriter
from npusim.export.onnx_layers import Block, LayerNodes, Reads
from npusim.export.onnx_numbers import Constant, Numbers
from npusim.export.onnx_signature import Signature
from npusim.export.onnx_values import Value
from npusim.graph import Graph, Layer, Operand
from npusim.lower.geometry import TensorBox


def write_whole(graph: Graph, numbers: Numbers, signature: Signature, writer: GraphWriter) -> None:
    """Write inputs, every layer, outputs.

    Raises:
        ExportError: a layer that standard operators cannot express.
    """
    nodes = LayerNodes(graph, writer, numbers)
    inputs = signature.inputs(graph, nodes.layouts)
    run = _Layers(graph, nodes, {name: numbers.stored(name, value) for name, value in inputs.items()})
    for layer in graph.layers:
        writer.scope = layer.name
        run.write(layer)
    signature.outputs(graph, nodes.layouts, run.whole)


class _Layers:
    """Values of tensors, as layers are written."""

    def __init__(self, graph: Graph, nodes: LayerNodes, values: dict[str, Value]) -> None:
        self.graph, self.nodes, self.values = graph, nodes, values

    def whole(self, tensor: str) -> Value:
        """A tensor's value."""
        return self.nodes.value(
            Block(tensor, (0, 0, 0, 0), self._held(tensor, 0, self.graph.tensors[tensor].shape[3]))
        )

    def write(self, layer: Layer) -> None:
        """One layer, its epilogue included."""
        reads = {number: self._blocks(o) for number, o in enumerate(layer.operands)}
        out = TensorBox(layer.output, (0, 0, 0, 0), self.graph.tensors[layer.output].shape)
        value, position = self._main(layer, reads, out)
        for index, entry in enumerate(layer.epilogue):
            if index > position and entry.function != "scale":
                piece = Block(layer.output, (0, 0, 0, 0), value)
                value = self.nodes.epilogue(layer, index, {OUT: [piece], **reads})
        self.values[layer.output] = value

    def _main(self, layer: Layer, reads: dict[int, list[Block]], out: TensorBox) -> tuple[Value, int]:
        """The value of the main command (of the gate where there is one), and its position in the epilogue."""
        if layer.op in ("conv", "linear", "matmul"):
            return self._product(layer, reads, out)
        if layer.op in ("copy", "rearrange"):
            operands = [self.nodes.joined(reads[i]) for i in range(len(layer.operands))]
            return self.nodes.moved(layer, operands), MAIN
        return self.nodes.vector(layer, self._vector_reads(layer, reads, out), out), MAIN

    def _product(self, layer: Layer, reads: dict[int, list[Block]], out: TensorBox) -> tuple[Value, int]:
        second = [
            b for i, o in enumerate(layer.operands) if o.role in ("weight", "bias", "y") for b in reads[i]
        ]
        heads = int(layer.attributes.get("heads", 1))
        if not layer.attributes.get("gated"):
            return self.nodes.product(layer, {X: reads[0], Y: second}, [out], heads)[0], MAIN
        halves = [_half(b, i, out.shape[3]) for i in (0, 1) for b in second]
        results = self.nodes.product(layer, {X: reads[0], Y: halves}, [out, out], 1)
        blocks = [Block(layer.output, (0, 0, 0, 0), r) for r in results]
        return self.nodes.gate(layer, blocks), gate_position(layer)

    def _vector_reads(self, layer: Layer, reads: dict[int, list[Block]], out: TensorBox) -> Reads:
        later = {e.operand for e in layer.epilogue}
        main = {
            i: blocks
            for i, blocks in reads.items()
            if i not in later and layer.operands[i].role in ("x", "residual", "broadcast", "whole")
        }
        parameters = [
            b for i, o in enumerate(layer.operands) if o.role in ("scale", "bias") for b in reads[i]
        ]
        if parameters:
            main[PARAMETERS] = parameters
        if layer.op == "gather":
            table, index = reads[1][0].tensor, self.nodes.joined(reads[0])
            count = out.shape[0] * out.shape[1] * out.shape[2]
            rows = self.nodes.gathered(table, index, 0, count, out.shape)
            main[PARAMETERS] = [Block(table, (0, 0, 0, 0), rows)]
        return main

    def _blocks(self, operand: Operand) -> list[Block]:
        return [
            Block(p.tensor, (0, 0, 0, p.start), self._held(p.tensor, p.start, p.size)) for p in operand.parts
        ]

    def _held(self, tensor: str, start: int, size: int) -> Value | Constant:
        """Columns of a tensor."""
        shape = (*self.graph.tensors[tensor].shape[:3], size)
        if tensor not in self.values:
            return Constant(tensor, (0, 0, 0, start), shape)
        return self.nodes.layouts.slice(self.values[tensor], (0, 0, 0, start), shape)


def _half(block: Block, half: int, cols: int) -> Block:
    """Rows of a gated weight, or columns of its bias, that belong to one half of the product."""
    held = block.held
    assert isinstance(held, Constant)
    b, h, r, c = held.shape
    if r == 2 * cols:
        offset, shape = (0, 0, half * cols, 0), (b, h, cols, c)
    else:
        offset, shape = (0, 0, 0, half * cols), (b, h, r, cols)
    return Block(block.tensor, offset, Constant(held.tensor, offset, shape))
