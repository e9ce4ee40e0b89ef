"""Lower convolutions, linear maps and products of activations, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from npusim.graph import Layer
from npusim.lower.builder import Box
from npusim.lower.context import Feed, Lowering, aligned
from npusim.lower.epilogue import apply_epilogue
from npusim.lower.geometry import (
    Band,
    HeadCols,
    TensorBox,
    bands,
    head_cols,
    head_cols_of,
    input_rows,
    operand_boxes,
)
from npusim.lower.roles import roles_of
from npusim.ops import product_of
from npusim.plan import Pieces
from npusim.program import FLAG_ACTIVATIONS, FLAG_FIRST, FLAG_LAST, PRODUCT, ROLE, VECTOR


class Piece(NamedTuple):
    """One step: keys and boxes of both factors, the output box, the extents (batch, m, n, k)."""

    x_key: tuple[int, ...]
    x: list[TensorBox]
    y_key: tuple[int, ...]
    y: list[TensorBox]
    out: TensorBox
    band: Band
    cols: tuple[int, int]
    extents: tuple[int, int, int, int]


def lower_product(low: Lowering, layer: Layer) -> None:
    """Stream a product layer through SRAM in the pieces that the plan gives."""
    planned = low.layer_plans[layer.name]
    assert planned.pieces is not None
    feed = Feed(low, layer, planned.slots)
    cut = _matmul_pieces if layer.op == "matmul" else _weight_pieces
    low.open_output(layer.output)
    for number, piece in enumerate(cut(low, layer, planned.pieces)):
        emit_product(feed, piece, number)


def emit_product(feed: Feed, piece: Piece, number: int) -> None:
    """Fetch both factors of a piece, multiply, gate, run the epilogue, store."""
    low, layer = feed.low, feed.layer
    roles, tile = roles_of(low.graph, layer), feed.tile(number)
    precision = low.precision(layer)
    activations = layer.op == "matmul"
    x = feed.fetch("x", piece.x_key, piece.x, roles.load, tile=tile)
    y = feed.fetch(
        "w", piece.y_key, piece.y, roles.load_second, purpose=0 if activations else 1, tile=tile
    )  # fmt: skip
    out = feed.out(piece.out, number)
    gated = bool(layer.attributes.get("gated"))
    staged = gated or bool(low.tensor_plans[layer.output].in_place_of)
    target = _staged(feed, piece, number, halves=2 if gated else 1) if staged else [out]
    low.builder.command(
        PRODUCT, low.compute_gang(layer), layer=feed.index, role=ROLE[roles.compute], segment=feed.segment, tile=tile,
        reads=[*((0, b) for b in x), *((1, b) for b in y)], writes=[(9, b) for b in target],
        pair=precision.activation_pair if activations else precision.weight_pair, extents=piece.extents,
        flags=FLAG_FIRST | FLAG_LAST | (FLAG_ACTIVATIONS if activations else 0),
    )  # fmt: skip
    if gated:
        _gate(feed, target, out, tile)
    apply_epilogue(
        feed, out, piece.band, piece.cols, number, staged=target[0] if staged and not gated else None
    )
    feed.finish(out, piece.out, roles.store, number)


def _staged(feed: Feed, piece: Piece, number: int, *, halves: int) -> list[Box]:
    """Places for a product before its gate (both halves) or before its residual is added in place."""
    low, layer = feed.low, feed.layer
    shape = low.graph.tensors[layer.output].shape
    element_bytes = low.tensor_plans[layer.output].element_bytes
    tensor = low.internal_tensor(f"{layer.name}:pre", (*shape[:3], halves * shape[3]), element_bytes)
    size = aligned(prod(piece.out.shape) * element_bytes, low.npu.sram.alignment_bytes)

    def fill(address: int, slot: int) -> tuple[Box, ...]:
        found = []
        for half in range(halves):
            offset = (*piece.out.offset[:3], piece.out.offset[3] + half * shape[3])
            buffer = low.builder.sram_buffer(
                tensor, address + half * size, size, offset, piece.out.shape, slot
            )
            found.append(Box(buffer, offset, piece.out.shape))
        return tuple(found)

    return list(feed.rings["pre"].get(number, fill))


def _gate(feed: Feed, halves: list[Box], out: Box, tile: int) -> None:
    feed.low.builder.command(
        VECTOR, feed.low.vector_gang(), layer=feed.index, role=ROLE["other"], segment=feed.segment, tile=tile, function="geglu",
        reads=[(i, b) for i, b in enumerate(halves)], writes=[(9, out)], extents=(1, prod(out.shape), 1, 1),
    )  # fmt: skip


def blocks_of(total: int, size: int) -> list[tuple[int, int]]:
    """Columns `[0, total)` in blocks of at most `size`."""
    return [(c, min(c + size, total)) for c in range(0, total, size)]


def _ordered(
    pieces: Pieces, rows: list[Band], cols: list[tuple[int, int]]
) -> Iterator[tuple[Band, tuple[int, int]]]:
    if pieces.order == "rows":
        yield from ((band, block) for band in rows for block in cols)
    else:
        yield from ((band, block) for block in cols for band in rows)


def _weight_pieces(low: Lowering, layer: Layer, pieces: Pieces) -> Iterator[Piece]:
    out = low.graph.tensors[layer.output].shape
    for band, cols in _ordered(pieces, bands(out, pieces.rows), blocks_of(out[3], pieces.cols)):
        yield weight_piece(low, layer, band, cols)


def weight_piece(low: Lowering, layer: Layer, band: Band, cols: tuple[int, int]) -> Piece:
    """Some columns of a band of a convolution or linear map."""
    tensors = low.graph.tensors
    out = tensors[layer.output].shape
    product = product_of(low.graph, layer)
    assert product is not None
    gated = 2 if layer.attributes.get("gated") else 1
    x_low, x_high = input_rows(layer, band.r0, band.r1)
    x_band = band._replace(r0=x_low, r1=x_high)
    heads, rows, width = band.h1 - band.h0, band.r1 - band.r0, cols[1] - cols[0]
    return Piece(
        x_key=tuple(band),
        x=list(operand_boxes(tensors, layer.operands[0], x_band)),
        y_key=cols,
        y=[b for half in range(gated) for b in _weights(low, layer, cols, half * out[3])],
        out=TensorBox(layer.output, (band.b, band.h0, band.r0, cols[0]), (1, heads, rows, width)),
        band=band,
        cols=cols,
        extents=(product.batch, heads * rows, gated * width // product.batch, product.k),
    )


def _weights(low: Lowering, layer: Layer, cols: tuple[int, int], shift: int) -> Iterator[TensorBox]:
    """Weights (rows of the weight tensor) and bias of some output columns."""
    for operand in layer.operands:
        name = operand.parts[0].tensor
        if operand.role == "weight":
            depth = low.graph.tensors[name].shape[3]
            yield TensorBox(name, (0, 0, cols[0] + shift, 0), (1, 1, cols[1] - cols[0], depth))
        elif operand.role == "bias":
            yield TensorBox(name, (0, 0, 0, cols[0] + shift), (1, 1, 1, cols[1] - cols[0]))


def _matmul_pieces(low: Lowering, layer: Layer, pieces: Pieces) -> Iterator[Piece]:
    graph = low.graph
    heads = int(layer.attributes["heads"])
    out = graph.tensors[layer.output].shape
    width = head_cols_of(out, heads, out[3]).width
    rows = [Band(0, 0, 1, r, min(r + pieces.rows, out[2])) for r in range(0, out[2], pieces.rows)]
    for b in range(out[0]):
        for h in range(heads):
            for band, cols in _ordered(pieces, rows, blocks_of(width, pieces.cols)):
                yield heads_piece(low, layer, Band(b, h, h + 1, band.r0, band.r1), cols)


def heads_piece(low: Lowering, layer: Layer, band: Band, cols: tuple[int, int] | None = None) -> Piece:
    """Some query rows of some heads of an attention product: all columns of each, or (of a single head) a block of them."""
    graph = low.graph
    heads = int(layer.attributes["heads"])
    x, y = layer.operands[0], layer.operands[1]
    out = graph.tensors[layer.output].shape
    o_heads = head_cols_of(out, heads, out[3])
    product = product_of(graph, layer)
    assert product is not None
    b, h0, h1, r0, r1 = band
    block = cols if cols is not None else (0, o_heads.width)
    o_band = o_heads.band(b, h0, h1, r0, r1)
    first = (h0 * o_heads.width if o_heads.in_cols else 0) + block[0]
    last = ((h1 - 1) * o_heads.width if o_heads.in_cols else 0) + block[1]
    y_total = graph.tensors[y.parts[0].tensor].shape[2]
    y_band, y_cols = _second_box(layer, head_cols(graph, layer, y), band, block, y_total)
    x_heads = head_cols(graph, layer, x)
    return Piece(
        x_key=(b, h0, r0),
        x=list(operand_boxes(graph.tensors, x, x_heads.band(b, h0, h1, r0, r1), x_heads.cols(h0, h1))),
        y_key=(b, h0, *block),
        y=list(operand_boxes(graph.tensors, y, y_band, y_cols)),
        out=TensorBox(
            layer.output, (b, o_band.h0, r0, first), (1, o_band.h1 - o_band.h0, r1 - r0, last - first)
        ),
        band=o_band,
        cols=(first, last),
        extents=(h1 - h0, r1 - r0, block[1] - block[0], product.k),
    )


def _second_box(
    layer: Layer, heads: HeadCols, band: Band, cols: tuple[int, int], rows: int
) -> tuple[Band, tuple[int, int] | None]:
    """Rows and columns of the second factor: its rows are the outputs (keys) or the inputs (values) of the product."""
    b, h0, h1 = band.b, band.h0, band.h1
    if layer.attributes["y_rows"] == "outputs":
        return heads.band(b, h0, h1, *cols), heads.cols(h0, h1)
    first = (h0 * heads.width if heads.in_cols else 0) + cols[0]
    last = ((h1 - 1) * heads.width if heads.in_cols else 0) + cols[1]
    return heads.band(b, h0, h1, 0, rows), (first, last)
