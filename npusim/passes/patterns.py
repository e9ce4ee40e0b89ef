"""Recognise operators that exporters spell out: GroupNorm, GELU, SiLU, QuickGELU.

Each matcher starts at one characteristic node and returns the composite node with the nodes that it replaces, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from npusim.onnx_model import Node, OnnxModel


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    model: OnnxModel
    producer: Mapping[str, Node]
    users: Mapping[str, tuple[Node, ...]]

    def sole_user(self, value: str, op: str) -> Node | None:
        """The only reader of `value`, if it is an `op` and the value is no graph output."""
        users = self.users.get(value, ())
        if len(users) != 1 or value in self.model.outputs or users[0].op != op:
            return None
        return users[0]

    def scalar(self, value: str) -> float | None:
        data = self.model.constants.get(value)
        return float(data.ravel()[0]) if data is not None and data.size == 1 else None

    def shape(self, value: str) -> tuple[int, ...]:
        known = self.model.values.get(value)
        return known.shape if known is not None and known.shape is not None else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    node: Node
    replaces: tuple[Node, ...]


def fuse_patterns(model: OnnxModel) -> OnnxModel:
    """Replace every recognised group of nodes by one composite node; sources of the parts are kept."""
    index = _index(model)
    taken: set[str] = set()
    placed: dict[str, Node] = {}
    for match in _matches(index):
        names = {n.name for n in match.replaces}
        if names & taken:
            continue
        taken |= names
        placed[match.replaces[-1].name] = match.node
    nodes = [placed.get(n.name, n) for n in model.nodes if n.name not in taken or n.name in placed]
    return model.evolve(nodes=tuple(nodes))


def _index(model: OnnxModel) -> _Index:
    users: dict[str, list[Node]] = {}
    for node in model.nodes:
        for value in dict.fromkeys(node.inputs):
            users.setdefault(value, []).append(node)
    return _Index(
        model=model,
        producer={o: n for n in model.nodes for o in n.outputs},
        users={k: tuple(v) for k, v in users.items()},
    )


def _matches(index: _Index) -> Iterator[_Match]:
    for node in index.model.nodes:
        for matcher in _MATCHERS.get(node.op, ()):
            match = matcher(index, node)
            if match is not None:
                yield match
                break


def _other(node: Node, value: str) -> str | None:
    """The second operand of a commutative binary node."""
    if len(node.inputs) != 2 or value not in node.inputs:
        return None
    return node.inputs[1] if node.inputs[0] == value else node.inputs[0]


def _composite(op: str, parts: tuple[Node, ...], inputs: tuple[str, ...], **attributes: object) -> _Match:
    last = parts[-1]
    sources = tuple(s for p in parts for s in p.sources)
    node = Node(op=op, name=last.name, inputs=inputs, outputs=last.outputs[:1], attributes=attributes,
                scope=parts[0].scope or last.scope, sources=sources)  # fmt: skip
    return _Match(node=node, replaces=parts)


def _silu(index: _Index, sigmoid: Node) -> _Match | None:
    """x * sigmoid(x), or QuickGELU: x * sigmoid(1.702 x)."""
    product = index.sole_user(sigmoid.outputs[0], "Mul")
    if product is None:
        return None
    x = _other(product, sigmoid.outputs[0])
    if x == sigmoid.inputs[0]:
        return _composite("Silu", (sigmoid, product), (sigmoid.inputs[0],))
    scaled = index.producer.get(sigmoid.inputs[0])
    if x is None or scaled is None or scaled.op != "Mul" or len(index.users[scaled.outputs[0]]) != 1:
        return None
    factor = _other(scaled, x)
    if factor is None or index.scalar(factor) is None:
        return None
    return _composite("QuickGelu", (scaled, sigmoid, product), (x,), alpha=index.scalar(factor))


def _gelu(index: _Index, erf: Node) -> _Match | None:
    """0.5 x (1 + erf(x / sqrt 2)), whichever way the three factors are multiplied together."""
    scaled = index.producer.get(erf.inputs[0])
    if scaled is None or scaled.op not in ("Div", "Mul") or len(index.users[scaled.outputs[0]]) != 1:
        return None
    x, factor = scaled.inputs
    if scaled.op == "Mul" and index.scalar(factor) is None:
        x, factor = factor, x
    value = index.scalar(factor)
    wanted = np.sqrt(2.0) if scaled.op == "Div" else np.sqrt(0.5)
    if value is None or abs(value - wanted) > 1e-2 * wanted:
        return None
    plus_one = index.sole_user(erf.outputs[0], "Add")
    if plus_one is None or index.scalar(_other(plus_one, erf.outputs[0]) or "") != 1.0:
        return None
    products = _gelu_products(index, plus_one, x)
    if products is None:
        return None
    return _composite("Gelu", (scaled, erf, plus_one, *products), (x,))


def _gelu_products(index: _Index, plus_one: Node, x: str) -> tuple[Node, ...] | None:
    """The multiplications by x and by 0.5 that follow `1 + erf`, in either order, or `x / 2` computed beforehand."""
    first = index.sole_user(plus_one.outputs[0], "Mul")
    if first is None:
        return None
    other = _other(first, plus_one.outputs[0])
    if other is None:
        return None
    half = index.producer.get(other)
    if half is not None and half.op == "Mul" and index.scalar(_other(half, x) or "") == 0.5:
        return (half, first)
    second = index.sole_user(first.outputs[0], "Mul")
    if second is None:
        return None
    rest = _other(second, first.outputs[0])
    if (other == x and index.scalar(rest or "") == 0.5) or (rest == x and index.scalar(other) == 0.5):
        return (first, second)
    return None


def _group_norm(index: _Index, norm: Node) -> _Match | None:
    """Reshape [N, G, -1] - InstanceNormalization - Reshape back - Mul - Add."""
    before = index.producer.get(norm.inputs[0])
    after = index.sole_user(norm.outputs[0], "Reshape")
    if before is None or before.op != "Reshape" or after is None or len(index.users[before.outputs[0]]) != 1:
        return None
    x, grouped = index.shape(before.inputs[0]), index.shape(before.outputs[0])
    if (
        len(x) < 3
        or len(grouped) < 3
        or index.shape(after.outputs[0]) != x
        or grouped[0] != x[0]
        or x[1] % grouped[1]
    ):
        return None
    if not _is_plain(index, norm):
        return None
    parts, affine = _affine(index, after, x[1])
    return _composite(
        "GroupNormalization",
        (before, norm, *parts),
        (before.inputs[0], *affine),
        num_groups=grouped[1],
        epsilon=float(norm.attributes.get("epsilon", 1e-5)),
    )


def _is_plain(index: _Index, norm: Node) -> bool:
    """Whether the InstanceNormalization's own scale and bias are known to be one and zero."""
    scale, bias = (index.model.constants.get(i) for i in norm.inputs[1:3])
    return scale is not None and bias is not None and bool(np.all(scale == 1)) and bool(np.all(bias == 0))


def _affine(index: _Index, after: Node, channels: int) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """The per-channel Mul and Add that follow, if both are there."""
    scale = index.sole_user(after.outputs[0], "Mul")
    gamma = _other(scale, after.outputs[0]) if scale is not None else None
    if scale is None or gamma is None or not _per_channel(index, gamma, channels):
        return (after,), ()
    shift = index.sole_user(scale.outputs[0], "Add")
    beta = _other(shift, scale.outputs[0]) if shift is not None else None
    if shift is None or beta is None or not _per_channel(index, beta, channels):
        return (after,), ()
    return (after, scale, shift), (gamma, beta)


def _per_channel(index: _Index, value: str, channels: int) -> bool:
    shape = index.shape(value)
    return value in index.model.initializers and int(np.prod(shape)) == channels


def _guarded_softmax(index: _Index, check: Node) -> _Match | None:
    """Where(IsNaN(p), 0, p) of p = Softmax(...): rows that are masked entirely become zero."""
    chosen = index.sole_user(check.outputs[0], "Where")
    softmax = index.producer.get(check.inputs[0])
    if chosen is None or softmax is None or softmax.op != "Softmax":
        return None
    if chosen.inputs[2] != check.inputs[0] or index.scalar(chosen.inputs[1]) != 0.0:
        return None
    if len(index.users[check.inputs[0]]) != 2 or check.inputs[0] in index.model.outputs:
        return None
    return _composite(
        "Softmax", (softmax, check, chosen), softmax.inputs, **{**softmax.attributes, "zero_if_masked": 1}
    )


def _padded_conv(index: _Index, pad: Node) -> _Match | None:
    """Zero padding of an image, then a convolution that pads by itself as well."""
    conv = index.sole_user(pad.outputs[0], "Conv")
    if (
        conv is None
        or conv.inputs[0] != pad.outputs[0]
        or conv.attributes.get("auto_pad", "NOTSET") != "NOTSET"
    ):
        return None
    sizes = _zero_padding(index, pad)
    spatial = len(index.shape(pad.inputs[0])) - 2
    own = conv.attributes.get("pads", (0,) * (2 * spatial))
    if sizes is None or len(sizes) != 2 * (spatial + 2) or len(own) != 2 * spatial:
        return None
    low, high = sizes[: spatial + 2], sizes[spatial + 2 :]
    if any((*low[:2], *high[:2])):
        return None
    pads = tuple(a + b for a, b in zip(own, (*low[2:], *high[2:]), strict=True))
    inputs = (pad.inputs[0], *conv.inputs[1:])
    return _composite("Conv", (pad, conv), inputs, **{**conv.attributes, "pads": pads})


def _zero_padding(index: _Index, pad: Node) -> tuple[int, ...] | None:
    """Sizes that Pad adds before and after each dimension, if it adds zeros; else None."""
    if pad.attributes.get("mode", "constant") != "constant" or pad.attributes.get("value", 0.0) != 0.0:
        return None
    if len(pad.inputs) > 3 or (len(pad.inputs) > 2 and pad.inputs[2] and index.scalar(pad.inputs[2]) != 0.0):
        return None
    if len(pad.inputs) < 2:
        sizes = pad.attributes.get("pads", ())
    else:
        data = index.model.constants.get(pad.inputs[1])
        sizes = () if data is None else data.ravel().tolist()
    found = tuple(int(s) for s in sizes)
    return found if found and min(found) >= 0 else None


_MATCHERS: Mapping[str, tuple[Callable[[_Index, Node], _Match | None], ...]] = {
    "Sigmoid": (_silu,),
    "Erf": (_gelu,),
    "Pad": (_padded_conv,),
    "IsNaN": (_guarded_softmax,),
    "InstanceNormalization": (_group_norm,),
}
