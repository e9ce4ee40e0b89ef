"""Lower convolutions, linear maps and products of activations that stand outside any segment."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from npusim.graph import Layer
from npusim.lower.builder import Box
from npusim.lower.context import Lowering, Ring, aligned
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


class _Piece(NamedTuple):
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
    rings = {s.name: Ring(s) for s in planned.slots}
    cut = _matmul_pieces if layer.op == "matmul" else _weight_pieces
    low.open_output(layer.output)
    roles = roles_of(low.graph, layer)
    index = low.layer_id(layer)
    precision = low.precision(layer)
    activations = layer.op == "matmul"
    pair = precision.activation_pair if activations else precision.weight_pair
    flags = FLAG_FIRST | FLAG_LAST | (FLAG_ACTIVATIONS if activations else 0)
    for number, piece in enumerate(cut(low, layer, planned.pieces)):
        x = low.fetch(rings.get("x"), piece.x_key, piece.x, index, roles.load, tile=number)
        y = low.fetch(
            rings.get("w"),
            piece.y_key,
            piece.y,
            index,
            roles.load_second,
            purpose=0 if activations else 1,
            tile=number,
        )
        out = _output(low, rings, layer, piece, number)
        gated = bool(layer.attributes.get("gated"))
        staged = gated or bool(low.tensor_plans[layer.output].in_place_of)
        target = _staged(low, rings, layer, piece, number, halves=2 if gated else 1) if staged else [out]
        low.builder.command(
            PRODUCT, low.compute_gang(layer), layer=index, role=ROLE[roles.compute], tile=number,
            reads=[*((0, b) for b in x), *((1, b) for b in y)], writes=[(9, b) for b in target],
            pair=pair, extents=piece.extents, flags=flags,
        )  # fmt: skip
        if gated:
            _gate(low, layer, target, out, number)
        apply_epilogue(
            low,
            layer,
            rings,
            out,
            piece.band,
            piece.cols,
            number,
            staged=target[0] if staged and not gated else None,
        )
        if not low.is_resident(layer.output):
            low.store(out, piece.out, index, roles.store, tile=number)


def _output(low: Lowering, rings: dict[str, Ring], layer: Layer, piece: _Piece, number: int) -> Box:
    if low.is_resident(layer.output):
        return low.home(piece.out)
    return rings["out"].get(number, lambda address, slot: low.place([piece.out], address, slot))[0]


def _staged(
    low: Lowering, rings: dict[str, Ring], layer: Layer, piece: _Piece, number: int, *, halves: int
) -> list[Box]:
    """Places for a product before its gate (both halves) or before its residual is added in place."""
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

    return list(rings["pre"].get(number, fill))


def _gate(low: Lowering, layer: Layer, halves: list[Box], out: Box, number: int) -> None:
    elements = out.shape[0] * out.shape[1] * out.shape[2] * out.shape[3]
    low.builder.command(
        VECTOR, low.vector_gang(), layer=low.layer_id(layer), role=ROLE["other"], tile=number, function="geglu",
        reads=[(i, b) for i, b in enumerate(halves)], writes=[(9, out)], extents=(1, elements, 1, 1),
    )  # fmt: skip


def _blocks(total: int, size: int) -> list[tuple[int, int]]:
    return [(c, min(c + size, total)) for c in range(0, total, size)]


def _ordered(
    pieces: Pieces, rows: list[Band], cols: list[tuple[int, int]]
) -> Iterator[tuple[Band, tuple[int, int]]]:
    if pieces.order == "rows":
        yield from ((band, block) for band in rows for block in cols)
    else:
        yield from ((band, block) for block in cols for band in rows)


def _weight_pieces(low: Lowering, layer: Layer, pieces: Pieces) -> Iterator[_Piece]:
    tensors = low.graph.tensors
    out = tensors[layer.output].shape
    product = product_of(low.graph, layer)
    assert product is not None
    gated = 2 if layer.attributes.get("gated") else 1
    for band, cols in _ordered(pieces, bands(out, pieces.rows), _blocks(out[3], pieces.cols)):
        x_low, x_high = input_rows(layer, band.r0, band.r1)
        x_band = band._replace(r0=x_low, r1=x_high)
        m = (band.h1 - band.h0) * (band.r1 - band.r0)
        yield _Piece(
            x_key=tuple(band),
            x=list(operand_boxes(tensors, layer.operands[0], x_band)),
            y_key=cols,
            y=[b for half in range(gated) for b in _weights(low, layer, cols, half * out[3])],
            out=TensorBox(
                layer.output,
                (band.b, band.h0, band.r0, cols[0]),
                (1, band.h1 - band.h0, band.r1 - band.r0, cols[1] - cols[0]),
            ),
            band=band,
            cols=cols,
            extents=(product.batch, m, gated * (cols[1] - cols[0]) // product.batch, product.k),
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


def _matmul_pieces(low: Lowering, layer: Layer, pieces: Pieces) -> Iterator[_Piece]:
    graph = low.graph
    heads = int(layer.attributes["heads"])
    x, y = layer.operands[0], layer.operands[1]
    out = graph.tensors[layer.output].shape
    x_heads, y_heads, o_heads = (
        head_cols(graph, layer, x),
        head_cols(graph, layer, y),
        head_cols_of(out, heads, out[3]),
    )
    product = product_of(graph, layer)
    assert product is not None
    y_total = graph.tensors[y.parts[0].tensor].shape[2]
    rows = [Band(0, 0, 1, r, min(r + pieces.rows, out[2])) for r in range(0, out[2], pieces.rows)]
    for b in range(out[0]):
        for h in range(heads):
            for band, cols in _ordered(pieces, rows, _blocks(o_heads.width, pieces.cols)):
                o_band = o_heads.band(b, h, h + 1, band.r0, band.r1)
                shift = h * o_heads.width if o_heads.in_cols else 0
                o_cols = (cols[0] + shift, cols[1] + shift)
                y_band, y_cols = _second_box(layer, y_heads, b, h, cols, y_total)
                yield _Piece(
                    x_key=(b, h, band.r0),
                    x=list(
                        operand_boxes(
                            graph.tensors,
                            x,
                            x_heads.band(b, h, h + 1, band.r0, band.r1),
                            x_heads.cols(h, h + 1),
                        )
                    ),
                    y_key=(b, h, *cols),
                    y=list(operand_boxes(graph.tensors, y, y_band, y_cols)),
                    out=TensorBox(
                        layer.output,
                        (b, o_band.h0, band.r0, o_cols[0]),
                        (1, 1, band.r1 - band.r0, cols[1] - cols[0]),
                    ),
                    band=o_band,
                    cols=o_cols,
                    extents=(1, band.r1 - band.r0, cols[1] - cols[0], product.k),
                )


def _second_box(
    layer: Layer, heads: HeadCols, b: int, h: int, cols: tuple[int, int], rows: int
) -> tuple[Band, tuple[int, int] | None]:
    """Rows and columns of the second factor: its rows are the outputs (keys) or the inputs (values) of the product."""
    if layer.attributes["y_rows"] == "outputs":
        return heads.band(b, h, h + 1, *cols), heads.cols(h, h + 1)
    shift = h * heads.width if heads.in_cols else 0
    return heads.band(b, h, h + 1, 0, rows), (cols[0] + shift, cols[1] + shift)
