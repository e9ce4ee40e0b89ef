"""Batch norms of inference: folded into the convolution before them, else a factor and a shift per channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from npusim.graph import Layer, Normalization, Operand
from npusim.onnx_model import Node
from npusim.passes.builder import Builder, operand, weight_operand
from npusim.passes.view import Groups, default_groups


def _batch_norm(builder: Builder, node: Node) -> bool:
    if node.attributes.get("training_mode", 0) or len([o for o in node.outputs if o]) != 1:
        return False
    if len(node.inputs) != 5 or not all(builder.is_constant(i) for i in node.inputs[1:]):
        return False
    shape = builder.shape(node.inputs[0])
    if len(shape) < 2 or any(builder.shape(i) != (shape[1],) for i in node.inputs[1:]):
        return False
    return _folded(builder, node) or _per_channel(builder, node)


def _norm(node: Node, part: Literal["weight", "bias", "factor"]) -> Normalization:
    scale, shift, mean, variance = node.inputs[1:]
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    return Normalization(part=part, scale=scale, shift=shift, mean=mean, variance=variance, epsilon=epsilon)


def _folded(builder: Builder, node: Node) -> bool:
    """Into the weight and bias of a convolution that only this node reads."""
    view = builder.view(node.inputs[0])
    position = next((i for i, x in enumerate(builder.layers) if x.output == view.parts[0].tensor), None)
    if position is None or builder.reader_count(node.inputs[0]) != 1:
        return False
    layer = builder.layers[position]
    if layer.op != "conv" or builder.tensors[layer.output].source != node.inputs[0]:
        return False
    weight = builder.tensors[layer.operands[1].parts[0].tensor]
    bias = layer.operand("bias")
    start = builder.tensors[bias.parts[0].tensor].source if bias is not None else ""
    if weight.packing is None or weight.packing.steps or weight.normalization is not None:
        return False
    name = builder.add_tensor(
        builder.unique(f"{weight.name}@normalized"), weight.shape, "weight", source=weight.source,
        source_shape=weight.source_shape, packing=weight.packing, normalization=_norm(node, "weight"),
    )  # fmt: skip
    shift = _channels(builder, node, "bias", weight.shape[2], start)
    operands = (layer.operands[0], weight_operand("weight", builder.tensors[name]), shift)
    builder.layers[position] = replace(layer, operands=operands, sources=(*layer.sources, *node.sources))
    builder.tensors[layer.output] = replace(builder.tensors[layer.output], source=node.outputs[0])
    _drop_unread(builder, layer)
    builder.views[node.outputs[0]] = view
    return True


def _channels(
    builder: Builder, node: Node, part: Literal["bias", "factor"], channels: int, source: str = ""
) -> Operand:
    """A constant per channel that the batch norm gives."""
    name = builder.add_tensor(
        builder.unique(f"{node.outputs[0]}@{part}"), (1, 1, 1, channels), "weight", source=source,
        source_shape=(channels,), normalization=_norm(node, part),
    )  # fmt: skip
    return weight_operand("bias" if part == "bias" else "broadcast", builder.tensors[name])


def _drop_unread(builder: Builder, layer: Layer) -> None:
    """Remove the weights that only the layer's old form read."""
    read = {t for x in builder.layers for t in x.reads()}
    for tensor in layer.reads():
        if tensor not in read and builder.tensors[tensor].kind == "weight":
            del builder.tensors[tensor]


def _per_channel(builder: Builder, node: Node) -> bool:
    rank = len(builder.shape(node.inputs[0]))
    groups: Groups = (
        ((0,), (), tuple(range(2, rank)), (1,)) if rank > 2 else default_groups(rank, image=False)
    )
    view = builder.arranged(node, builder.view(node.inputs[0]), groups)
    channels = view.storage_shape[3]
    scaled = f"{node.outputs[0]}:scaled"
    builder.emit(
        node, "elementwise", [operand("x", view), _channels(builder, node, "factor", channels)], view, suffix="factor",
        attributes={"function": "mul", "swapped": False}, value=scaled,
    )  # fmt: skip
    shift = replace(_channels(builder, node, "bias", channels), role="broadcast")
    builder.emit(
        node, "elementwise", [operand("x", builder.views.pop(scaled)), shift], view, suffix="shift",
        attributes={"function": "add", "swapped": False},
    )  # fmt: skip
    return True


BATCH_NORM: Mapping[str, Callable[[Builder, Node], bool]] = {"BatchNormalization": _batch_norm}
