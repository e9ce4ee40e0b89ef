"""Nodes that work on images: convolutions, pooling, resizing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from npusim.errors import ModelError
from npusim.onnx_model import Node
from npusim.passes.builder import Builder, operand, weight_operand
from npusim.passes.products import bias_operands
from npusim.passes.view import (
    Groups,
    stored,
)

IMAGE: Groups = ((0,), (), (2, 3), (1,))


def _conv(builder: Builder, node: Node) -> bool:
    shape, given = builder.shape(node.inputs[0]), builder.shape(node.inputs[1])
    out = builder.shape(node.outputs[0])
    last = node.attributes.get("weight_layout") == "OHWI"
    kernel = (given[0], given[-1], *given[1:-1]) if last else given
    if len(shape) not in (3, 4) or not builder.is_constant(node.inputs[1]):
        return False
    _check_conv(builder, node, shape, kernel)
    groups: Groups = IMAGE if len(shape) == 4 else ((0,), (), (2,), (1,))
    x = builder.arranged(node, builder.view(node.inputs[0]), groups)
    spatial = tuple(range(2, len(kernel)))
    inner = tuple(range(1, len(given))) if last else (*spatial, 1)
    weight = builder.weight(node.inputs[1], given, ((), (), (0,), inner))
    operands = [
        operand("x", x),
        weight_operand("weight", builder.tensors[weight]),
        *bias_operands(builder, node, 2),
    ]
    builder.emit(
        node, "conv", operands, stored("", out, groups), attributes=_conv_attributes(node, shape, kernel, out)
    )
    return True


def _check_conv(builder: Builder, node: Node, shape: Sequence[int], kernel: Sequence[int]) -> None:
    groups = int(node.attributes.get("group", 1))
    fits = (
        groups > 0 and len(kernel) == len(shape) and kernel[1] * groups == shape[1] and not kernel[0] % groups
    )
    steps = (*node.attributes.get("strides", (1,)), *node.attributes.get("dilations", (1,)))
    if not fits or 0 in kernel or min(steps) < 1:
        raise ModelError(
            f"{builder.model.name}: node '{node.name}' ({node.op}) convolves an image of shape {list(shape)} with a weight of "
            f"shape {list(kernel)} in {groups} groups; channels, groups and steps must fit; export the model again"
        )


def _conv_attributes(
    node: Node, shape: Sequence[int], kernel: Sequence[int], out: Sequence[int]
) -> dict[str, Any]:
    """Spatial attributes as (height, width) pairs; one-dimensional convolutions have width 1."""
    rank = len(shape) - 2

    def pair(values: Sequence[int], missing: int) -> tuple[int, int]:
        return (int(values[0]), int(values[1]) if rank == 2 else missing)

    strides = node.attributes.get("strides", (1,) * rank)
    dilations = node.attributes.get("dilations", (1,) * rank)
    pads = _pads(node, shape[2:], kernel[2:], out[2:], strides, dilations)
    return {
        "in_hw": pair(shape[2:], 1),
        "out_hw": pair(out[2:], 1),
        "kernel": pair(kernel[2:], 1),
        "stride": pair(strides, 1),
        "dilation": pair(dilations, 1),
        "pads": pads,
        "groups": int(node.attributes.get("group", 1)),
    }


def _pads(
    node: Node,
    size: Sequence[int],
    kernel: Sequence[int],
    out: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) padding, resolving `auto_pad`."""
    rank = len(size)
    given = node.attributes.get("pads")
    mode = node.attributes.get("auto_pad", "NOTSET")
    if given is None or mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (o - 1) * s + (k - 1) * d + 1 - n)
            for n, k, o, s, d in zip(size, kernel, out, strides, dilations, strict=True)
        ]
        if mode not in ("SAME_UPPER", "SAME_LOWER"):
            total = [0] * rank
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        given = (*large, *small) if mode == "SAME_LOWER" else (*small, *large)
    if rank == 1:
        return (int(given[0]), 0, int(given[1]), 0)
    return (int(given[0]), int(given[1]), int(given[2]), int(given[3]))


def _resize(builder: Builder, node: Node) -> bool:
    shape, out = builder.shape(node.inputs[0]), builder.shape(node.outputs[0])
    if len(shape) != 4 or shape[:2] != out[:2]:
        return False
    old = node.op == "Upsample" or builder.model.opset < 11
    given = node.attributes
    coordinates = "asymmetric" if old else str(given.get("coordinate_transformation_mode", "half_pixel"))
    if coordinates == "tf_crop_and_resize" or given.get("antialias", 0) or given.get("exclude_outside", 0):
        return False
    attributes: dict[str, Any] = {
        "in_hw": shape[2:], "out_hw": out[2:], "mode": given.get("mode", "nearest"), "coordinates": coordinates,
        "nearest": "floor" if old else str(given.get("nearest_mode", "round_prefer_floor")),
        "cubic_a": float(given.get("cubic_coeff_a", -0.75)),
    }  # fmt: skip
    scales = builder.data(node.inputs[2 if not old else 1]) if len(node.inputs) > (1 if old else 2) else None
    if scales is not None and scales.size == 4:
        attributes["scales"] = (float(scales[2]), float(scales[3]))
    view = builder.arranged(node, builder.view(node.inputs[0]), IMAGE)
    builder.emit(
        node, "resize", [operand("x", view)], stored("", out, IMAGE), suffix="resize", attributes=attributes
    )
    return True


def _pool(function: str) -> Callable[[Builder, Node], bool]:
    def handler(builder: Builder, node: Node) -> bool:
        shape, out = builder.shape(node.inputs[0]), builder.shape(node.outputs[0])
        if len(shape) != 4 or len([o for o in node.outputs if o]) != 1:
            return False
        view = builder.arranged(node, builder.view(node.inputs[0]), IMAGE)
        if node.op.startswith("Global"):
            attributes: dict[str, Any] = {
                "in_hw": shape[2:],
                "out_hw": (1, 1),
                "kernel": shape[2:],
                "stride": (1, 1),
                "pads": (0, 0, 0, 0),
            }
        else:
            kernel = (1, 1, *node.attributes["kernel_shape"])
            attributes = _conv_attributes(node, shape, kernel, out)
        attributes["function"] = function
        attributes["count_include_pad"] = int(node.attributes.get("count_include_pad", 0))
        builder.emit(
            node, "pool", [operand("x", view)], stored("", out, IMAGE), suffix="pool", attributes=attributes
        )
        return True

    return handler


#: Handlers by operator type: True if the node became layers or views.
SPATIAL: Mapping[str, Callable[[Builder, Node], bool]] = {
    "Conv": _conv, "Resize": _resize, "Upsample": _resize,
    "MaxPool": _pool("max"), "AveragePool": _pool("average"), "GlobalAveragePool": _pool("average"),
    "GlobalMaxPool": _pool("max"),
}  # fmt: skip
