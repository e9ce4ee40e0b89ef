"""Recognise operators that exporters spell out: GroupNorm, GELU, SiLU, QuickGELU.

Each matcher starts at one characteristic node and returns the composite node with the nodes that it replaces, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isclose, pi, sqrt

import numpy as np

from npusim.onnx_model import Node, OnnxModel
from npusim.passes.polynomials import Arithmetic, Polynomial


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    model: OnnxModel
    producer: Mapping[str, Node]
    users: Mapping[str, tuple[Node, ...]]

    def sole_user(self, value: str, op: str = "") -> Node | None:
        """The only reader of `value`, if it is an `op` (where one is named) and the value is no graph output."""
        users = self.users.get(value, ())
        if len(users) != 1 or value in self.model.outputs or op not in ("", users[0].op):
            return None
        return users[0]

    def arithmetic(self) -> Arithmetic:
        return Arithmetic(producer=self.producer, scalar=self.scalar)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """A function of x that is spelled with t = function(argument): both as polynomials, the argument of x, the result of x and t."""

    op: str
    argument: Polynomial
    result: Polynomial
    attributes: Mapping[str, object]


_GATED: Polynomial = {(1, 1): 1.0}
_HALVED: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
_INNER: Polynomial = {(1,): sqrt(2 / pi), (3,): 0.044715 * sqrt(2 / pi)}

#: Constants may have been rounded to bfloat16 twice, the factors 1 and 0.5 are exact in every format.
_ROUNDED = 2.0**-8
_CURVES: Mapping[str, tuple[_Curve, ...]] = {
    "Erf": (_Curve(op="Gelu", argument={(1,): sqrt(0.5)}, result=_HALVED, attributes={}),),
    "Tanh": (_Curve(op="Gelu", argument=_INNER, result=_HALVED, attributes={"approximate": "tanh"}),),
    "Sigmoid": (  # (1 + tanh(a)) / 2 is the sigmoid of 2 a
        _Curve(op="Gelu", argument={e: 2 * c for e, c in _INNER.items()}, result=_GATED, attributes={"approximate": "tanh"}),
    ),
}  # fmt: skip


def _activation(index: _Index, function: Node) -> _Match | None:
    """GELU in both its forms, SiLU and QuickGELU, whichever way their factors are multiplied together."""
    arithmetic = index.arithmetic()
    for x in arithmetic.behind(function.inputs[0]):
        argument = arithmetic.polynomial(function.inputs[0], (x,))
        curve = _curve(function.op, argument) if argument is not None else None
        if curve is None:
            continue
        for result in _results(index, function.outputs[0]):
            if index.shape(result) == index.shape(x) and _alike(
                arithmetic.polynomial(result, (x, function.outputs[0])), curve.result, 0.0
            ):
                return _spelled(index, curve, x, function, result)
    return None


def _curve(function: str, argument: Polynomial) -> _Curve | None:
    """The curve that a function of this argument may be part of."""
    if function == "Sigmoid" and set(argument) == {(1,)}:
        alpha = argument[1,]
        named: dict[str, object] = {} if alpha == 1.0 else {"alpha": alpha}
        return _Curve(op="QuickGelu" if named else "Silu", argument=argument, result=_GATED, attributes=named)
    return next((c for c in _CURVES[function] if _alike(argument, c.argument, _ROUNDED)), None)


def _alike(found: Polynomial | None, wanted: Polynomial, tolerance: float) -> bool:
    return (
        found is not None
        and set(found) == set(wanted)
        and all(isclose(found[e], wanted[e], rel_tol=tolerance) for e in wanted)
    )


def _results(index: _Index, value: str) -> Iterator[str]:
    """Values that arithmetic makes of a value that has one reader after the other."""
    node = index.sole_user(value)
    while node is not None and index.arithmetic().made(node.outputs[0]) is not None:
        yield node.outputs[0]
        node = index.sole_user(node.outputs[0])


def _spelled(index: _Index, curve: _Curve, x: str, function: Node, result: str) -> _Match:
    """The curve in place of the nodes that serve nothing else."""
    arithmetic = index.arithmetic()
    before = arithmetic.nodes(function.inputs[0], (x,)) or ()
    after = arithmetic.nodes(result, (x, function.outputs[0])) or ()
    parts = {n.name: n for n in (*before, function, *after)}
    gone: dict[str, Node] = {}
    for name, node in reversed(parts.items()):
        value = node.outputs[0]
        served = value not in index.model.outputs and all(u.name in gone for u in index.users.get(value, ()))
        if served or value == result:
            gone[name] = node
    return _composite(curve.op, tuple(reversed(gone.values())), (x,), **curve.attributes)


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
    "Sigmoid": (_activation,),
    "Erf": (_activation,),
    "Tanh": (_activation,),
    "Pad": (_padded_conv,),
    "IsNaN": (_guarded_softmax,),
    "InstanceNormalization": (_group_norm,),
}
