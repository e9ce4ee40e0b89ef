"""`onnx-tiled`: the Program as an ONNX graph in FP32, command by command, so that any runtime can check the tiling.

What a command computes becomes nodes; what it moves becomes slices and joins. Nothing here knows kinds of segments: a new one is
exported as soon as it lowers to commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from npusim.execute.vector_layers import X
from npusim.export.onnx_graph import GraphWriter
from npusim.export.onnx_layers import Block, LayerNodes, Reads
from npusim.export.onnx_memory import GraphMemory
from npusim.export.onnx_numbers import Constant, FloatNumbers
from npusim.export.onnx_online import ONLINE
from npusim.export.onnx_signature import Signature
from npusim.export.onnx_values import Value
from npusim.graph import Graph, Layer, Shape4
from npusim.lower.geometry import TensorBox
from npusim.lower.statistics import statistics_tensor
from npusim.program import LOAD, PRODUCT, READ, STORE, Program
from npusim.weights import Weights

#: Newest operator set that needs no newer runtime than the oldest supported one, and has all that tiles need.
OPSET = 18


def write_tiled(
    graph: Graph, program: Program, weights: Weights, signature: Signature, writer: GraphWriter
) -> None:
    """Write every command of a Program, then the model's outputs.

    Raises:
        ExportError: a layer that standard operators cannot express.
    """
    nodes = LayerNodes(graph, writer, FloatNumbers(graph, weights, writer))
    sources = signature.inputs(graph, nodes.layouts)
    run = _Commands(graph, program, nodes, sources)
    for command in range(len(program)):
        run.write(command)
    signature.outputs(graph, nodes.layouts, run.whole)


class _Commands:
    """The mirror of `execute.run`: the same dispatch, with values of a graph."""

    def __init__(
        self, graph: Graph, program: Program, nodes: LayerNodes, sources: Mapping[str, Value]
    ) -> None:
        self.graph, self.program, self.nodes = graph, program, nodes
        self.memory = GraphMemory(program, nodes.layouts, sources.get)
        by_name = {x.name: x for x in graph.layers}
        self.layers = [by_name[name] for name in program.layers]
        self._norms = {statistics_tensor(x.name): x for x in graph.layers if x.op == "group_norm"}
        accesses = program.accesses
        self._first: list[int] = np.searchsorted(accesses.command, np.arange(len(program) + 1)).tolist()
        self._mode, self._operand = accesses.mode.tolist(), accesses.operand.tolist()
        self._names = [program.tensors.name[t] for t in program.buffers.tensor[accesses.buffer].tolist()]
        self._offset: list[Shape4] = [tuple(o) for o in accesses.offset.tolist()]
        self._shape: list[Shape4] = [tuple(s) for s in accesses.shape.tolist()]
        self._moved: dict[str, Value] = {}

    def write(self, command: int) -> None:
        """The nodes of one command."""
        accesses = range(self._first[command], self._first[command + 1])
        reads = [a for a in accesses if self._mode[a] == READ]
        writes = [a for a in accesses if self._mode[a] != READ]
        commands = self.program.commands
        opcode, layer = int(commands.opcode[command]), self.layers[int(commands.layer[command])]
        self.nodes.writer.scope = self._scope(command, layer)
        if opcode == LOAD and self.program.attributes[int(commands.attributes[command])].get("gathers"):
            self.memory.write(writes[0], self._gathered(reads, writes[0]))
        elif opcode in (LOAD, STORE):
            for source, target in zip(reads, writes, strict=True):
                self.memory.write(target, self.memory.block(source).held)
        else:
            results = self._computed(command, layer, reads, [self._box(a) for a in writes])
            for access, value in zip(writes, results, strict=True):
                self.memory.write(access, value)

    def _scope(self, command: int, layer: Layer) -> str:
        """Prefix of node names: layer, and tile of a segment or piece of a layer."""
        tile = int(self.program.commands.tile[command])
        kind = "tile" if int(self.program.commands.segment[command]) >= 0 else "piece"
        return f"{layer.name}#{kind}{tile}" if tile >= 0 else layer.name

    def _computed(
        self, command: int, layer: Layer, reads: Sequence[int], outs: Sequence[TensorBox]
    ) -> Sequence[Value]:
        commands, nodes = self.program.commands, self.nodes
        attributes = self.program.attributes[int(commands.attributes[command])]
        functions = (*self.program.functions, "")  # -1: none
        function = functions[int(commands.function[command])]
        if function == "copy" and layer.op in ("copy", "rearrange"):
            return [nodes.layouts.slice(self._moved_whole(layer), outs[0].offset, outs[0].shape)]
        blocks: dict[int, list[Block]] = {}
        for access in reads:
            blocks.setdefault(self._operand[access], []).append(self.memory.block(access))
        if "online" in attributes:
            if int(commands.opcode[command]) == PRODUCT:
                return [nodes.part(layer, blocks, outs[0], int(commands.batch[command]))]
            return ONLINE[attributes["online"]](nodes, layer, blocks, outs[0])
        if int(commands.opcode[command]) == PRODUCT:
            return nodes.product(layer, blocks, outs, int(commands.batch[command]))
        if "epilogue" in attributes:
            return [nodes.epilogue(layer, int(attributes["epilogue"]), blocks)]
        if function == "group_norm_stats" and X not in blocks:
            return [nodes.no_statistics(out.shape) for out in outs]
        return [self._vector(function, layer, blocks, outs[0])]

    def _vector(self, function: str, layer: Layer, reads: Reads, out: TensorBox) -> Value:
        if function == "geglu":
            return self.nodes.gate(layer, [reads[0][0], reads[1][0]])
        if function == "group_norm_stats":
            return self.nodes.statistics(self._norms[out.tensor], reads)
        return self.nodes.vector(layer, reads, out)

    def _moved_whole(self, layer: Layer) -> Value:
        """A layer that moves data is written whole, once: its boxes are bounding boxes, which say nothing of single elements."""
        if layer.name not in self._moved:
            operands = []
            for operand in layer.operands:
                parts = [(p, self.graph.tensors[p.tensor].shape) for p in operand.parts]
                blocks = [
                    Block(p.tensor, (0, 0, 0, p.start), self._columns(p.tensor, s, p.start, p.size))
                    for p, s in parts
                ]
                operands.append(self.nodes.joined(blocks))
            self._moved[layer.name] = self.nodes.moved(layer, operands)
        return self._moved[layer.name]

    def _columns(self, tensor: str, shape: Shape4, start: int, size: int) -> Value | Constant:
        whole = self.memory.whole(tensor, shape)
        box: Shape4 = (*shape[:3], size)
        if isinstance(whole, Constant):
            return Constant(tensor, (0, 0, 0, start), box)
        return self.nodes.layouts.slice(whole, (0, 0, 0, start), box)

    def _gathered(self, reads: Sequence[int], write: int) -> Value:
        """Rows of a table for a range of its indices (which are read whole)."""
        table = self.memory.block(reads[0]).tensor
        index = self.nodes.joined([self.memory.block(a) for a in reads if self._operand[a] == 1])
        shape = self._shape[write]
        whole = self.program.tensors.shape[self.program.tensors.name.index(self._names[write])].tolist()
        b, h, r, _ = self._offset[write]
        first, count = (b * whole[1] + h) * whole[2] + r, shape[0] * shape[1] * shape[2]
        return self.nodes.gathered(table, index, first, count, shape)

    def _box(self, access: int) -> TensorBox:
        return TensorBox(self._names[access], self._offset[access], self._shape[access])

    def whole(self, tensor: str) -> Value:
        """A finished tensor."""
        shape = self.graph.tensors[tensor].shape
        return self.nodes.value(Block(tensor, (0, 0, 0, 0), self.memory.whole(tensor, shape)))
