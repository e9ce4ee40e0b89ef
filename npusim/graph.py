"""The network as data: tensors, operands and layers, joined in an acyclic networkx graph.

Every tensor has four storage axes, `[batch, heads, rows, cols]`, the last one contiguous:

==================  ==========================================================
image NCHW          `[N, 1, H*W, C]` (channels last; whole image rows tile it)
sequence            `[N, 1, L, C]`
attention scores    `[N, heads, queries, keys]`
weight of a layer   `[1, 1, outputs, inputs * kernel_h * kernel_w]`
anything else       `[1, 1, product of leading axes, last axis]`
==================  ==========================================================

Reshapes, transposes, splits and concatenations that such a storage can express are not layers: an `Operand` names the
parts it reads and which columns of them. What it cannot express becomes a `rearrange` layer, and is costed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import networkx as nx

TensorKind = Literal["input", "output", "weight", "intermediate", "state"]
Shape4 = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How an ONNX constant is laid into its tensor: steps, reshape, transpose, broadcast, reshape to the tensor's shape.

    Attributes:
        reshape, permutation, expand: sizes, order of dimensions, sizes after broadcasting.
        steps: what the model itself does first, in order: `("reshape", sizes)`, `("transpose", order)`,
            `("take", (axis, position, position ...))`, `("slice", (axis, start, stop, step))`.
        dequantize: for integer constants, before all else: names of the scale and of the zero point (or ''), and the axis.
    """

    reshape: tuple[int, ...]
    permutation: tuple[int, ...]
    expand: tuple[int, ...]
    steps: tuple[tuple[str, tuple[int, ...]], ...] = ()
    dequantize: tuple[str, str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """A batch norm that a constant takes in: `factor` is scale / sqrt(variance + epsilon), one per channel.

    Attributes:
        part: `weight` (times factor, channels first), `bias` ((bias - mean) x factor + shift; without a source the bias is 0) or
            `factor` (the factor itself).
        scale, shift, mean, variance: names of ONNX constants, one element per channel.
    """

    part: Literal["weight", "bias", "factor"]
    scale: str
    shift: str
    mean: str
    variance: str
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of the network.

    Attributes:
        name: unique in its graph.
        shape: `[batch, heads, rows, cols]` elements.
        kind: where it comes from and goes to.
        source: the ONNX value it holds (for weights: the initializer), empty if npusim made it.
        source_shape: shape of that ONNX value.
        packing: for weights, how the ONNX constant becomes this tensor.
        normalization: a batch norm that is folded into it.
    """

    name: str
    shape: Shape4
    kind: TensorKind
    source: str = ""
    source_shape: tuple[int, ...] = ()
    packing: Packing | None = None
    normalization: Normalization | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Part:
    """Columns `[start, start + size)` of a tensor."""

    tensor: str
    start: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How an input or output of the model lies in stored tensors, so that running it can pack and unpack its arrays.

    Attributes:
        name: the model's name for it.
        shape: its shape there.
        parts: the stored columns that hold it, in order.
        atoms: `(axis, size)` factors of the storage axes, outermost first within each axis, axes ascending.
        dims: for each dimension of the value, indices into `atoms`, outermost first.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    atoms: tuple[tuple[int, int], ...]
    dims: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """What a layer reads: one or more parts joined along the columns (a concatenation costs no copy).

    Attributes:
        role: `x` (the operand that is streamed), `y` (the other factor of a product), `weight`, `bias`, `scale`,
            `residual` (same shape as the output), `broadcast` (its axes are 1 or the output's), `index`.
        parts: the columns, in order.
    """

    role: str
    parts: tuple[Part, ...]

    @property
    def cols(self) -> int:
        """Columns of all parts together."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Epilogue:
    """A vector function applied to each finished piece of a layer's output.

    Attributes:
        function: a key of the hardware's vector function table.
        operand: index of the layer operand that it also reads, or -1.
        value: a constant factor (function `scale`: folded into requantization).
        parameters: named constants of the function (`alpha`, `min`, `approximate` ...).
        source: the ONNX value that the piece holds before this function, or empty where the model has no such value.
    """

    function: str
    operand: int = -1
    value: float = 1.0
    parameters: tuple[tuple[str, float | str], ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One fused, canonical operator with one output.

    Attributes:
        name: unique; the module path when the exporter left one.
        op: a key of `npusim.ops.OPS`.
        operands: what it reads; the first has role `x`.
        output: name of the tensor it writes.
        attributes: numbers and words that the operator needs (kernel, stride, pads, groups, epsilon, scale ...).
        epilogue: vector functions applied to each finished piece, in order.
        scope: module path, for roll-ups (`down_blocks.0.attentions.0`).
        sources: names of the ONNX nodes it stands for.
        group: layers that belong together (the three phases of one attention share it), or empty.
    """

    name: str
    op: str
    operands: tuple[Operand, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    epilogue: tuple[Epilogue, ...] = ()
    scope: str = ""
    sources: tuple[str, ...] = ()
    group: str = ""

    def operand(self, role: str) -> Operand | None:
        """The operand with this role, or None."""
        return next((o for o in self.operands if o.role == role), None)

    def reads(self) -> Iterator[str]:
        """Names of the tensors it reads, in operand order, with repeats."""
        for operand in self.operands:
            for part in operand.parts:
                yield part.tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What share of the model was understood.

    Attributes:
        nodes: ONNX nodes that compute something at run time.
        modelled_nodes: those that a known layer stands for.
        unmodelled: operator types costed only by their bytes on the vector engine, with the nodes' names.
    """

    nodes: int
    modelled_nodes: int
    unmodelled: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A network of layers.

    Attributes:
        name: for people.
        tensors: by name.
        layers: in a topological order (the execution order).
        coverage: how much of the model these layers stand for.
        inputs, outputs: how the model's run-time inputs and outputs lie in tensors.
        constants: data of weights that are no initializers of the file, because folding computed them.
        model_sha256: hash of the bytes that were read.
        opset, producer: what the file says of itself.
    """

    name: str
    tensors: Mapping[str, Tensor]
    layers: tuple[Layer, ...]
    coverage: Coverage
    inputs: tuple[Window, ...] = ()
    outputs: tuple[Window, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    model_sha256: str = ""
    opset: int = 0
    producer: str = ""

    def dag(self) -> nx.DiGraph[str]:
        """The layers as a networkx DAG: nodes are layer names (attribute `layer`), edges carry the `tensor`."""
        dag: nx.DiGraph[str] = nx.DiGraph(name=self.name)
        producer = {layer.output: layer.name for layer in self.layers}
        for layer in self.layers:
            dag.add_node(layer.name, layer=layer)
        for layer in self.layers:
            for tensor in layer.reads():
                if tensor in producer:
                    dag.add_edge(producer[tensor], layer.name, tensor=tensor)
        return dag

    def producers(self) -> dict[str, int]:
        """Tensor name -> index of the layer that writes it."""
        return {layer.output: i for i, layer in enumerate(self.layers)}

    def consumers(self) -> dict[str, list[int]]:
        """Tensor name -> indices of the layers that read it, ascending."""
        found: dict[str, list[int]] = {name: [] for name in self.tensors}
        for i, layer in enumerate(self.layers):
            for tensor in dict.fromkeys(layer.reads()):
                found[tensor].append(i)
        return found

    def of_kind(self, kind: TensorKind) -> tuple[Tensor, ...]:
        """All tensors of one kind, in insertion order."""
        return tuple(t for t in self.tensors.values() if t.kind == kind)
