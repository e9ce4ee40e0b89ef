"""One execution order for one network, however its file lists the nodes: depth first, the longer branch first.

A node runs as late as its first reader lets it, so that what it makes lives shortly; of a reader's operands the one with the
longest path behind it runs first, so that a shortcut is computed when the main branch, which it is added to, is there. The
values of an attention run before its scores.
"""

from __future__ import annotations

from collections.abc import Mapping

from npusim.onnx_model import Node, OnnxModel


def order_nodes(model: OnnxModel) -> OnnxModel:
    """The model with its nodes in that order, which depends on the graph's structure only."""
    nodes = model.nodes
    producer = {output: i for i, node in enumerate(nodes) for output in node.outputs}
    depths = _depths(nodes, producer)
    before = [[producer[i] for i in node.inputs if i in producer] for node in nodes]
    for scores, values in _attentions(nodes, producer):
        if depths[values] < depths[scores]:  # never a cycle: every edge leads to a greater depth
            before[scores].append(values)
    placed: set[int] = set()
    order: list[int] = []
    stack = [producer[output] for output in reversed(model.outputs) if output in producer]
    while stack:
        position = stack[-1]
        waiting = [] if position in placed else [i for i in before[position] if i not in placed]
        if waiting:
            stack.append(max(waiting, key=lambda i: depths[i]))  # the first of equals
            continue
        stack.pop()
        if position not in placed:
            placed.add(position)
            order.append(position)
    return model.evolve(nodes=tuple(nodes[i] for i in order))


def _attentions(nodes: tuple[Node, ...], producer: Mapping[str, int]) -> list[tuple[int, int]]:
    """(node that makes the scores, node that makes the values) of each product of a softmax."""
    found = []
    for node in nodes:
        if node.op != "MatMul" or any(i not in producer for i in node.inputs):
            continue
        position = producer[node.inputs[0]]
        if nodes[position].op != "Softmax":
            continue
        while nodes[position].op != "MatMul" and nodes[position].inputs[0] in producer:
            position = producer[nodes[position].inputs[0]]
        if nodes[position].op == "MatMul":
            found.append((position, producer[node.inputs[1]]))
    return found


def _depths(nodes: tuple[Node, ...], producer: Mapping[str, int]) -> list[int]:
    """Length of the longest path from an input of the model to each node; `nodes` are in a topological order."""
    depths: list[int] = []
    for node in nodes:
        depths.append(1 + max((depths[producer[i]] for i in node.inputs if i in producer), default=0))
    return depths
