"""Fuse canonical layers: biases, scales, activations and residuals join the layer that makes their input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from npusim.graph import Epilogue, Graph, Layer, Operand, Part, Tensor

_PRODUCTS = frozenset({"conv", "linear"})
_NORMS = frozenset({"group_norm", "layer_norm"})
_ACTIVATIONS = frozenset(
    {
        "silu",
        "gelu",
        "quick_gelu",
        "relu",
        "sigmoid",
        "tanh",
        "hard_swish",
        "hard_sigmoid",
        "leaky_relu",
        "clip",
    }
)
_COMMUTATIVE = frozenset({"add", "mul"})


@dataclass(slots=True)
class _State:
    """Layers by position (None once merged away), with who produces and reads each tensor."""

    tensors: dict[str, Tensor]
    layers: list[Layer | None]
    producer: dict[str, int]
    readers: dict[str, list[int]]

    def replace(self, position: int, layer: Layer, gone: int) -> None:
        """Put `layer` at `position` and remove the layer at `gone` with its output."""
        removed = self.layers[gone]
        assert removed is not None
        for tensor in dict.fromkeys(removed.reads()):
            self.readers[tensor] = [r for r in self.readers[tensor] if r != gone]
        del self.tensors[removed.output]
        self.layers[gone] = None
        self.layers[position] = layer
        self.producer[layer.output] = position
        for tensor in dict.fromkeys(layer.reads()):
            if position not in self.readers[tensor]:
                self.readers[tensor].append(position)


def fuse_layers(graph: Graph) -> Graph:
    """Apply every fusion once, in execution order; names of layers survive, names of tensors follow their layers."""
    state = _State(
        tensors=dict(graph.tensors),
        layers=list(graph.layers),
        producer=graph.producers(),
        readers=graph.consumers(),
    )
    for position in range(len(state.layers)):
        for fusion in _FUSIONS:
            if state.layers[position] is not None and fusion(state, position):
                break
    layers = tuple(layer for layer in state.layers if layer is not None)
    return _rename_tensors(replace(graph, tensors=state.tensors, layers=_group_attention(layers)))


def _whole(state: _State, operand: Operand) -> str | None:
    """The tensor that the operand reads entirely, or None."""
    if len(operand.parts) != 1:
        return None
    part = operand.parts[0]
    tensor = state.tensors[part.tensor]
    return part.tensor if part == Part(part.tensor, 0, tensor.shape[3]) else None


def _sole_producer(state: _State, operand: Operand, reader: int) -> int | None:
    """Position of the layer that makes this operand for `reader` alone, or None."""
    tensor = _whole(state, operand)
    if tensor is None or tensor not in state.producer or state.tensors[tensor].kind != "intermediate":
        return None
    return state.producer[tensor] if state.readers[tensor] == [reader] else None


def _merge_elementwise(state: _State, position: int) -> bool:
    """Activation, residual, broadcast or constant factor after a product or a norm."""
    layer = state.layers[position]
    if layer is None or layer.op != "elementwise":
        return False
    function = str(layer.attributes["function"])
    candidates = [layer.operands[0]]
    if function in _COMMUTATIVE and len(layer.operands) == 2 and layer.operands[1].role == "residual":
        candidates.append(layer.operands[1])
    found = [(p, o) for o in candidates if (p := _sole_producer(state, o, position)) is not None]
    for source, joined in sorted(found, key=lambda pair: -pair[0]):
        merged = _merged(state, source, layer, joined, function)
        if merged is not None:
            state.replace(position, merged, gone=source)
            return True
    return False


def _merged(state: _State, source: int, layer: Layer, joined: Operand, function: str) -> Layer | None:
    producer = state.layers[source]
    assert producer is not None
    others = tuple(o for o in layer.operands if o is not joined)
    if producer.op not in _PRODUCTS | _NORMS | {"matmul"} or len(others) > 1:
        return None
    if others and _ends_attention(state, producer):
        return None  # its segment ends with the product: a residual is a layer of its own
    bias = _as_bias(state, producer, others, function)
    if bias is not None:
        shifted = tuple(  # the model adds the bias after these: it has no values of the sums before
            replace(e, operand=e.operand + (e.operand >= 2), source="") for e in producer.epilogue
        )
        return _joined(producer, layer, (*producer.operands[:2], bias, *producer.operands[2:]), shifted)
    epilogue = _as_epilogue(producer, layer, others, function)
    if epilogue is None:
        return None
    epilogue = replace(epilogue, source=state.tensors[producer.output].source)
    roles = tuple(replace(o, role="residual" if o.role == "x" else o.role) for o in others)
    return _joined(producer, layer, (*producer.operands, *roles), (*producer.epilogue, epilogue))


def _ends_attention(state: _State, layer: Layer) -> bool:
    """Whether a layer multiplies what a softmax makes."""
    tensor = layer.operands[0].parts[0].tensor
    before = state.layers[state.producer[tensor]] if tensor in state.producer else None
    return layer.op == "matmul" and before is not None and before.op == "softmax"


def _as_bias(state: _State, producer: Layer, others: tuple[Operand, ...], function: str) -> Operand | None:
    """A constant per output, added to a product to which nothing but sums were done."""
    if (
        producer.op not in _PRODUCTS
        or any(e.function != "add" for e in producer.epilogue)
        or producer.operand("bias")
        or function != "add"
        or not others
    ):
        return None
    tensor = _whole(state, others[0])
    if tensor is None or state.tensors[tensor].kind != "weight":
        return None
    outputs = state.tensors[producer.output].shape[3]
    return replace(others[0], role="bias") if state.tensors[tensor].shape == (1, 1, 1, outputs) else None


def _as_epilogue(
    producer: Layer, layer: Layer, others: tuple[Operand, ...], function: str
) -> Epilogue | None:
    if function == "scale":
        return Epilogue("scale", value=float(layer.attributes["value"]))
    if producer.op in _NORMS and others and not _follows_norm(producer, others[0]):
        return None
    if function in _ACTIVATIONS and not others and producer.op != "matmul":
        return Epilogue(function, parameters=_parameters(layer))
    if function in _COMMUTATIVE and others and (others[0].role != "x" or len(others[0].parts) == 1):
        return Epilogue(function, operand=len(producer.operands))
    return None


def _follows_norm(norm: Layer, other: Operand) -> bool:
    """Whether a norm may take the operand: LayerNorm one that broadcasts; one of its size could be the input that it overwrites."""
    return norm.op == "layer_norm" and other.role == "broadcast"


def _parameters(layer: Layer) -> tuple[tuple[str, float | str], ...]:
    """Constants that an activation needs besides its operand."""
    named = {
        k: v for k, v in layer.attributes.items() if k != "function" and isinstance(v, int | float | str)
    }
    return tuple(sorted(named.items()))


def _joined(
    producer: Layer, layer: Layer, operands: tuple[Operand, ...], epilogue: tuple[Epilogue, ...]
) -> Layer:
    sources = (*producer.sources, *(s for s in layer.sources if s not in producer.sources))
    return replace(producer, operands=operands, output=layer.output, epilogue=epilogue, sources=sources)


def _merge_geglu(state: _State, position: int) -> bool:
    """linear, halves, half x gelu(other half): one linear layer whose pieces are gated before they are stored."""
    product = state.layers[position]
    if (
        product is None
        or product.op != "elementwise"
        or product.attributes["function"] != "mul"
        or len(product.operands) != 2
    ):
        return False
    for gate, value in (product.operands, product.operands[::-1]):
        merged = _geglu_layer(state, position, product, gate, value)
        if merged is not None:
            return True
    return False


def _geglu_layer(state: _State, position: int, product: Layer, gate: Operand, value: Operand) -> Layer | None:
    gelu_position = _sole_producer(state, gate, position)
    gelu = state.layers[gelu_position] if gelu_position is not None else None
    if (
        gelu is None
        or gelu_position is None
        or gelu.op != "elementwise"
        or gelu.attributes["function"] != "gelu"
    ):
        return None
    source = gelu.operands[0]
    if len(source.parts) != 1 or len(value.parts) != 1 or source.parts[0].tensor != value.parts[0].tensor:
        return None
    tensor = source.parts[0].tensor
    at = state.producer.get(tensor)
    linear = state.layers[at] if at is not None else None
    cols = state.tensors[tensor].shape[3]
    halves = (value.parts[0].start, source.parts[0].start, value.parts[0].size * 2)
    if (
        linear is None
        or at is None
        or linear.op != "linear"
        or linear.epilogue
        or halves != (0, cols // 2, cols)
    ):
        return None
    if sorted(state.readers[tensor]) != sorted({gelu_position, position}):
        return None
    sources = (*linear.sources, *gelu.sources, *product.sources)
    merged = replace(
        linear, output=product.output, sources=tuple(dict.fromkeys(sources)),
        epilogue=(Epilogue("geglu", parameters=_parameters(gelu), source=state.tensors[tensor].source),),
        attributes={**linear.attributes, "gated": True},
    )  # fmt: skip
    state.replace(position, merged, gone=gelu_position)
    state.replace(position, merged, gone=at)
    return merged


def _hoist_scales(state: _State, position: int) -> bool:
    """Constant factors of the operands of a product of activations become factors of the product."""
    product = state.layers[position]
    if product is None or product.op != "matmul" or product.epilogue:
        return False
    for index, operand in enumerate(product.operands[:2]):
        at = _sole_producer(state, operand, position)
        scale = state.layers[at] if at is not None else None
        if (
            scale is None
            or at is None
            or scale.op != "elementwise"
            or scale.attributes["function"] != "scale"
        ):
            continue
        source = replace(scale.operands[0], role=operand.role)
        operands = tuple(source if i == index else o for i, o in enumerate(product.operands))
        factor = Epilogue("scale", value=float(scale.attributes["value"]))
        sources = tuple(dict.fromkeys((*scale.sources, *product.sources)))
        product = replace(product, operands=operands, epilogue=(*product.epilogue, factor), sources=sources)
        state.replace(position, product, gone=at)
    return bool(product.epilogue)


_FUSIONS: tuple[Callable[[_State, int], bool], ...] = (_merge_geglu, _merge_elementwise, _hoist_scales)


def _group_attention(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Name product - softmax - product chains: the three phases of one attention share a group."""
    producer = {layer.output: layer for layer in layers}
    readers: dict[str, int] = {}
    for layer in layers:
        for tensor in dict.fromkeys(layer.reads()):
            readers[tensor] = readers.get(tensor, 0) + 1
    groups: dict[str, str] = {}
    for values in layers:
        softmax = producer.get(values.operands[0].parts[0].tensor)
        if (
            values.op != "matmul"
            or softmax is None
            or softmax.op != "softmax"
            or readers[softmax.output] != 1
        ):
            continue
        scores = producer.get(softmax.operands[0].parts[0].tensor)
        if scores is None or scores.op != "matmul" or readers[scores.output] != 1:
            continue
        name = values.name.removesuffix(".pv")
        groups.update(dict.fromkeys((scores.name, softmax.name, values.name), name))
    return tuple(
        replace(layer, group=groups[layer.name]) if layer.name in groups else layer for layer in layers
    )


def _rename_tensors(graph: Graph) -> Graph:
    """Give each produced tensor the name of the layer that now makes it."""
    names = {layer.output: layer.name for layer in graph.layers}

    def renamed(operand: Operand) -> Operand:
        return replace(
            operand, parts=tuple(replace(p, tensor=names.get(p.tensor, p.tensor)) for p in operand.parts)
        )

    tensors: Mapping[str, Tensor] = {
        names.get(name, name): replace(tensor, name=names.get(name, name))
        for name, tensor in graph.tensors.items()
    }
    layers = tuple(
        replace(layer, output=names[layer.output], operands=tuple(renamed(o) for o in layer.operands))
        for layer in graph.layers
    )
    outputs = tuple(replace(w, parts=renamed(Operand(role="x", parts=w.parts)).parts) for w in graph.outputs)
    held = {part.tensor for window in outputs for part in window.parts}
    used = {t for layer in layers for t in (*layer.reads(), layer.output)}
    kept = {k: v for k, v in tensors.items() if k in used | held or v.kind in ("input", "output")}
    return replace(graph, layers=layers, outputs=outputs, tensors=kept)
