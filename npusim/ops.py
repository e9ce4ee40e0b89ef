"""What each canonical operator computes: its product extents and multiply-accumulates, or its vector work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from npusim.graph import Graph, Layer

EngineKind = Literal["tensor", "vector", "dma"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A batch of matrix products `[m, k] x [k, n]`.

    Attributes:
        batch: independent products (heads x batch for attention, groups for convolutions).
        m, n, k: rows, columns, depth of each.
        activations: whether both factors are activations (attention) rather than weight and activation.
    """

    batch: int
    m: int
    n: int
    k: int
    activations: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all of them."""
        return self.batch * self.m * self.n * self.k


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec:
    """One row of the operator table.

    Attributes:
        engine: kind of engine that does the work.
        streams: how pieces may be cut: `product` (rows x columns), `rows` (independent rows), `images` (whole image
            rows with halo), `whole` (one piece).
        passes: times each element is visited.
        why: the reason, for readers.
    """

    engine: EngineKind
    streams: Literal["product", "rows", "images", "norm", "whole"]
    passes: int = 1
    why: str = ""


OPS: Mapping[str, OpSpec] = {
    "conv": OpSpec(engine="tensor", streams="product", why="rows are image rows, with halo"),
    "linear": OpSpec(engine="tensor", streams="product", why="a constant matrix"),
    "matmul": OpSpec(engine="tensor", streams="product", why="two activations, one matrix per head"),
    "softmax": OpSpec(engine="vector", streams="rows", why="each row on its own"),
    "layer_norm": OpSpec(engine="vector", streams="rows", why="each row on its own"),
    "group_norm": OpSpec(
        engine="vector", streams="norm", passes=2, why="statistics over all rows, then the normalization"
    ),
    "elementwise": OpSpec(engine="vector", streams="rows", why="element by element"),
    "resize": OpSpec(engine="vector", streams="images", why="each output row reads one band of input rows"),
    "pool": OpSpec(engine="vector", streams="images", why="each output row reads one band of input rows"),
    "gather": OpSpec(engine="vector", streams="rows", why="one table row per index"),
    "copy": OpSpec(engine="vector", streams="whole", why="data that no view can express"),
    "rearrange": OpSpec(engine="vector", streams="whole", why="a transpose that storage cannot express"),
    "unknown": OpSpec(engine="vector", streams="whole", why="costed by its bytes; named in the coverage"),
}


def product_of(graph: Graph, layer: Layer) -> Product | None:
    """The matrix products that a layer asks of a tensor engine, or None for vector layers."""
    out = graph.tensors[layer.output].shape
    if layer.op == "linear":
        weight = graph.tensors[layer.operands[1].parts[0].tensor].shape
        return Product(batch=1, m=out[0] * out[1] * out[2], n=weight[2], k=weight[3])
    if layer.op == "conv":
        weight = graph.tensors[layer.operands[1].parts[0].tensor].shape
        groups = int(layer.attributes["groups"])
        return Product(batch=groups, m=out[0] * out[2], n=weight[2] // groups, k=weight[3])
    if layer.op == "matmul":
        heads = int(layer.attributes["heads"])
        x = graph.tensors[layer.operands[0].parts[0].tensor].shape
        per_head = x[1] * layer.operands[0].cols // heads
        if layer.attributes["y_rows"] == "outputs":
            return Product(batch=out[0] * heads, m=out[2], n=out[3], k=per_head, activations=True)
        return Product(
            batch=out[0] * heads, m=out[2], n=out[3] * out[1] // heads, k=per_head, activations=True
        )
    return None


def macs_of(graph: Graph, layer: Layer) -> int:
    """Multiply-accumulates of a layer's convolution, linear map or attention product; 0 for vector layers."""
    product = product_of(graph, layer)
    return product.macs if product is not None else 0


def vector_work(graph: Graph, layer: Layer) -> tuple[tuple[str, int], ...]:
    """(function, elements) pairs of a layer's vector work, its epilogue included."""
    elements = prod(graph.tensors[layer.output].shape)
    work: list[tuple[str, int]] = []
    if layer.op == "group_norm":
        work += [("group_norm_stats", elements), ("group_norm_apply", elements)]
    elif layer.op == "elementwise":
        work.append((str(layer.attributes["function"]), elements))
    elif layer.op == "pool":
        kernel = layer.attributes["kernel"]
        work.append(("pool", elements * int(kernel[0]) * int(kernel[1])))
    elif layer.op in ("softmax", "layer_norm", "resize", "gather"):
        work.append((layer.op, elements))
    elif OPS[layer.op].engine == "vector":
        read = sum(prod(graph.tensors[p.tensor].shape[:3]) * p.size for o in layer.operands for p in o.parts)
        work.append(("copy", max(elements, read)))
    work += [(e.function, elements) for e in layer.epilogue if e.function != "scale"]
    return tuple(work)


def index_tensors(graph: Graph) -> set[str]:
    """Tensors that hold row numbers of a table, casts on the way included: 32-bit integers in every precision."""
    found: set[str] = set()
    for layer in reversed(graph.layers):
        casts = layer.output in found and layer.attributes.get("function") == "cast"
        if layer.op == "gather" or casts:
            found.update(part.tensor for part in layer.operands[0].parts)
    return found
