"""Online softmax in standard ONNX operators: the mirror of `execute.online`, with graph nodes for numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from npusim.execute.stages import MAIN
from npusim.execute.vector_layers import FACTOR, OUT, STATISTICS, X
from npusim.export.onnx_layers import LayerNodes, Reads
from npusim.export.onnx_values import Value
from npusim.graph import Layer, Shape4
from npusim.lower.geometry import TensorBox


def _softmax(nodes: LayerNodes, layer: Layer, reads: Reads, out: TensorBox) -> list[Value]:
    """Probabilities of a block, the running maximum and sum, and the factor of what was before if anything was."""
    writer, axis = nodes.writer, nodes.writer.ints(3)
    x = nodes.layouts.rows(nodes.joined(reads[X]))
    rows: Shape4 = (*x.shape[:3], 1)
    before = nodes.value(reads[STATISTICS][0]) if STATISTICS in reads else None
    known = [] if before is None else [nodes.layouts.slice(before, (0, 0, 0, i), rows).name for i in (0, 1)]
    top = writer.node("ReduceMax", [x.name, axis], keepdims=1)
    if known:
        top = writer.node("Max", [top, known[0]])
    nothing = writer.node("IsInf", [top], detect_positive=0)
    shift = writer.node("Where", [nothing, writer.scalar(0.0), top])
    exponentials = writer.node("Exp", [writer.node("Sub", [x.name, shift])])
    shares = nodes.stored(layer, MAIN, Value(exponentials, x.shape))
    total = writer.node("ReduceSum", [shares.name, axis], keepdims=1)
    results = [shares]
    if known:
        factor = writer.node("Exp", [writer.node("Sub", [known[0], shift])])
        total = writer.node("Add", [total, writer.node("Mul", [known[1], factor])])
        results.append(Value(factor, rows))
    state = nodes.layouts.concat([Value(top, rows), Value(total, rows)], 3)
    return [results[0], state, *results[1:]]


def _scale(nodes: LayerNodes, layer: Layer, reads: Reads, out: TensorBox) -> list[Value]:
    """The running output times the factor of each row."""
    return [_by_rows(nodes, "Mul", nodes.value(reads[OUT][0]), nodes.value(reads[FACTOR][0]))]


def _add(nodes: LayerNodes, layer: Layer, reads: Reads, out: TensorBox) -> list[Value]:
    """The running output and the product with one more block."""
    total, part = (nodes.layouts.rows(nodes.value(reads[n][0])) for n in (OUT, X))
    return [Value(nodes.writer.node("Add", [total.name, part.name]), total.shape)]


def _divide(nodes: LayerNodes, layer: Layer, reads: Reads, out: TensorBox) -> list[Value]:
    """The finished output: divided by the running sum, stored as the layer's."""
    state = nodes.value(reads[STATISTICS][0])
    sums = nodes.layouts.slice(state, (0, 0, 0, 1), (*state.shape[:3], 1))
    found = _by_rows(nodes, "Div", nodes.value(reads[OUT][0]), sums)
    softmax = next(x for x in nodes.graph.layers if x.output == layer.operands[0].parts[0].tensor)
    if softmax.attributes.get("zero_if_masked"):
        masked = nodes.writer.node("IsNaN", [found.name])
        zeros = nodes.writer.node("Where", [masked, nodes.writer.scalar(0.0), found.name])
        found = Value(zeros, found.shape)
    return [nodes.stored(layer, MAIN, found)]


def _by_rows(nodes: LayerNodes, op: str, total: Value, other: Value) -> Value:
    """Each row of each head of the running output with one number."""
    apart = nodes.layouts.heads(total, other.shape[1])
    found = nodes.writer.node(op, [apart.name, nodes.layouts.rows(other).name])
    return nodes.layouts.merged(Value(found, apart.shape), total.shape)


#: The nodes of a vector command of online softmax, by its attribute `online`.
ONLINE: Mapping[str, Callable[[LayerNodes, Layer, Reads, TensorBox], list[Value]]] = {
    "softmax": _softmax,
    "scale": _scale,
    "add": _add,
    "divide": _divide,
}
