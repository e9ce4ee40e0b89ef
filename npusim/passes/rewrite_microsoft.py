"""The fused operators that onnxruntime's optimizers write (domain com.microsoft) in standard operators.

Source: onnxruntime's ContribOperators documentation.
"""

from __future__ import annotations

from collections.abc import Mapping

from npusim.passes.rewrite import Rewriter, Rule


def _renamed(op: str) -> Rule:
    """The same operator under its standard name."""

    def rule(writer: Rewriter) -> bool:
        inputs = [i for i in writer.node.inputs if i]
        writer.add(
            op, inputs, writer.shape(writer.input(0)), writer.output(0), **dict(writer.node.attributes)
        )
        return True

    return rule


def _skip_layer_norm(writer: Rewriter) -> bool:
    """Sum of input, skip and bias, then LayerNormalization; the sum is the fourth output."""
    if writer.output(1) or writer.output(2):
        return False
    total = writer.binary(
        "Add", writer.input(0), writer.input(1), "" if writer.input(4) else writer.output(3)
    )
    if writer.input(4):
        total = writer.binary("Add", total, writer.input(4), writer.output(3))
    affine = [i for i in (writer.input(2), writer.input(3)) if i]
    writer.add(
        "LayerNormalization", (total, *affine), writer.shape(total), writer.output(0), axis=-1,
        epsilon=float(writer.attribute("epsilon", 1e-12)),
    )  # fmt: skip
    return True


def _group_norm(writer: Rewriter) -> bool:
    """GroupNorm, channels last unless it says otherwise, with SiLU if activation is 1."""
    return _normalized(writer, writer.input(0))


def _skip_group_norm(writer: Rewriter) -> bool:
    """Sum of input, skip and bias, then GroupNorm; the sum is the second output."""
    skip, bias = writer.input(3), writer.input(4)
    shape = writer.shape(writer.input(0))
    if len(writer.shape(skip)) == 2:
        skip = writer.reshape(skip, (shape[0], 1, 1, shape[3]))
    total = writer.binary("Add", writer.input(0), skip, "" if bias else writer.output(1))
    if bias:
        total = writer.binary("Add", total, bias, writer.output(1))
    return _normalized(writer, total)


def _normalized(writer: Rewriter, x: str) -> bool:
    last = bool(writer.attribute("channels_last", 1))
    rank = len(writer.shape(x))
    if rank < 3 or int(writer.attribute("groups", 0)) < 1:
        return False
    first = writer.transpose(x, (0, rank - 1, *range(1, rank - 1))) if last else x
    found = writer.add(
        "GroupNormalization", (first, writer.input(1), writer.input(2)), writer.shape(first),
        num_groups=int(writer.attribute("groups", 1)), epsilon=float(writer.attribute("epsilon", 1e-5)),
    )  # fmt: skip
    if writer.attribute("activation", 0) == 1:
        found = writer.unary("Silu", found)
    if last:
        writer.transpose(found, (0, *range(2, rank), 1), writer.output(0))
    else:
        writer.reshape(found, writer.shape(found), writer.output(0))
    return True


def _bias_split_gelu(writer: Rewriter) -> bool:
    """(x + bias) in two halves: the left one times GELU of the right one."""
    total = writer.binary("Add", writer.input(0), writer.input(1))
    rank, cols = len(writer.shape(total)), writer.shape(total)[-1]
    left = writer.slice(total, rank - 1, 0, cols // 2)
    right = writer.slice(total, rank - 1, cols // 2, cols)
    writer.binary("Mul", left, writer.unary("Gelu", right), writer.output(0))
    return True


def _bias_add(writer: Rewriter) -> bool:
    """x + bias + skip."""
    total = writer.binary("Add", writer.input(0), writer.input(1))
    writer.binary("Add", total, writer.input(2), writer.output(0))
    return True


def _bias_gelu(approximate: str) -> Rule:
    def rule(writer: Rewriter) -> bool:
        x = writer.input(0)
        if writer.input(1):
            x = writer.binary("Add", x, writer.input(1))
        writer.unary("Gelu", x, writer.output(0), approximate=approximate)
        return True

    return rule


def _nhwc_conv(writer: Rewriter) -> bool:
    """Convolution of channels-last images by a channels-last weight [outputs, height, width, inputs]."""
    x = writer.transpose(writer.input(0), (0, 3, 1, 2))
    out = writer.values[writer.output(0)].shape if writer.output(0) in writer.values else None
    batch, _, *size = writer.shape(x)
    outputs, *kernel, _ = writer.shape(writer.input(1))
    if out is None:
        sizes = _conv_sizes(writer, size, kernel)
        if sizes is None:
            return False
        out = (batch, *sizes, outputs)
    rest = [i for i in writer.node.inputs[2:3] if i]
    found = writer.add(
        "Conv", (x, writer.input(1), *rest), (batch, outputs, *out[1:3]),
        **{**writer.node.attributes, "weight_layout": "OHWI"},
    )  # fmt: skip
    writer.transpose(found, (0, 2, 3, 1), writer.output(0))
    return True


def _conv_sizes(writer: Rewriter, size: list[int], kernel: list[int]) -> list[int] | None:
    """Output height and width of a convolution with explicit padding; None where padding is automatic."""
    if writer.attribute("auto_pad", "NOTSET") != "NOTSET":
        return None
    strides, dilations = writer.attribute("strides", (1, 1)), writer.attribute("dilations", (1, 1))
    pads = writer.attribute("pads", (0, 0, 0, 0))
    return [
        (size[a] + pads[a] + pads[a + 2] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1
        for a in (0, 1)
    ]


def _fused_matmul(writer: Rewriter) -> bool:
    """MatMul of operands that may be transposed, times a constant."""
    if writer.attribute("transBatchA", 0) or writer.attribute("transBatchB", 0):
        return False
    factors = []
    for index, key in ((0, "transA"), (1, "transB")):
        value = writer.input(index)
        rank = len(writer.shape(value))
        if rank < 2:
            return False
        turned = (*range(rank - 2), rank - 1, rank - 2)
        factors.append(writer.transpose(value, turned) if writer.attribute(key, 0) else value)
    alpha = float(writer.attribute("alpha", 1.0))
    product = writer.matmul(factors[0], factors[1], writer.output(0) if alpha == 1.0 else "")
    if alpha != 1.0:
        writer.binary("Mul", product, writer.constant(alpha), writer.output(0))
    return True


MICROSOFT: Mapping[str, Rule] = {
    "com.microsoft.Gelu": _renamed("Gelu"),
    "com.microsoft.QuickGelu": _renamed("QuickGelu"),
    "com.microsoft.SkipLayerNormalization": _skip_layer_norm,
    "com.microsoft.GroupNorm": _group_norm,
    "com.microsoft.SkipGroupNorm": _skip_group_norm,
    "com.microsoft.BiasSplitGelu": _bias_split_gelu,
    "com.microsoft.BiasAdd": _bias_add,
    "com.microsoft.BiasGelu": _bias_gelu("none"),
    "com.microsoft.FastGelu": _bias_gelu("tanh"),
    "com.microsoft.NhwcConv": _nhwc_conv,
    "com.microsoft.FusedMatMul": _fused_matmul,
}
