"""Layouts and engines: decided once, before tiling."""

from __future__ import annotations

from itertools import combinations

from npusim.cost import Engines, arrays_of, product_ps
from npusim.dtypes import PRECISIONS
from npusim.graph import Graph, Layer
from npusim.hardware import Npu
from npusim.layout import Layout
from npusim.ops import product_of
from npusim.precisions import Precisions


def choose_layouts(graph: Graph, npu: Npu) -> dict[str, Layout]:
    """Blocked layouts for the factors of attention's first product, padded rows for its scores; all else stays plain.

    Q and K are read by depth: each head's rows are padded to the tensor engine's depth and stored contiguously, so that a head
    moves as one run. V and the output stay token-major, since linear layers write and read them (their heads move as short runs).
    Source: our reading of the paper's Table 6, where Q and K move at the rate of the scores and V and the output more slowly.
    """
    depth, cols = npu.tensor_engine[0].array_depth, npu.tensor_engine[0].array_cols
    uses: dict[str, set[str]] = {}
    for layer in graph.layers:
        for name in layer.reads():
            uses.setdefault(name, set()).add(layer.name)
    layouts: dict[str, Layout] = {}
    for layer in graph.layers:
        if layer.op != "matmul" or layer.attributes["y_rows"] != "outputs":
            continue
        heads = int(layer.attributes["heads"])
        for operand in layer.operands[:2]:
            tensor = graph.tensors[operand.parts[0].tensor]
            whole = len(operand.parts) == 1 and operand.cols == tensor.shape[3]
            if (
                whole
                and tensor.kind == "intermediate"
                and uses[tensor.name] == {layer.name}
                and tensor.shape[1] == 1
            ):
                width = tensor.shape[3] // heads
                layouts[tensor.name] = Layout(width, -(-width // depth) * depth)
        keys = graph.tensors[layer.output].shape[3]
        if keys % cols:
            padded = Layout(keys, -(-keys // cols) * cols)
            layouts[layer.output] = padded
            softmax = _softmax_after(graph, layer)
            if softmax is not None:
                layouts[softmax.output] = padded
    return layouts


def _softmax_after(graph: Graph, scores: Layer) -> Layer | None:
    return next((x for x in graph.layers if x.group and x.group == scores.group and x.op == "softmax"), None)


def gangs(npu: Npu, *, shared: bool) -> list[Engines]:
    """The gangs among which a product's is chosen: any number of engines of one kind, and (if `shared`) all engines of two kinds.

    Of two kinds the one with more multipliers leads.
    """
    kinds = sorted(npu.tensor_engine, key=lambda e: -e.count * e.macs_per_cycle)
    found: list[Engines] = [((e.kind, n),) for e in kinds for n in range(1, e.count + 1)]
    if shared:
        found += [((a.kind, a.count), (b.kind, b.count)) for a, b in combinations(kinds, 2)]
    return found


def choose_units(
    graph: Graph, npu: Npu, precisions: Precisions, *, shared: bool = False
) -> dict[str, Engines]:
    """For each product layer the gang on which it runs fastest in closed form; of equally fast ones that with the fewest engines."""
    chosen: dict[str, Engines] = {}
    cache: dict[object, Engines] = {}
    choices = gangs(npu, shared=shared)
    for layer in graph.layers:
        product = product_of(graph, layer)
        if product is None:
            continue
        kind = PRECISIONS[precisions[layer.name]]
        key = (product, kind)
        if key not in cache:
            pair = kind.activation_pair if product.activations else kind.weight_pair
            extents = (product.batch, product.m, product.n, product.k)
            times = [
                (
                    int(product_ps(npu, arrays_of(npu, g), extents, pair, activations=product.activations)),
                    sum(n for _, n in g),
                    i,
                )
                for i, g in enumerate(choices)
            ]
            cache[key] = choices[min(times)[2]]
        chosen[layer.name] = cache[key]
    return chosen
