"""Lower vector layers: rows of softmax, norms and elementwise functions, image bands, and the two passes of GroupNorm."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from npusim.graph import Layer
from npusim.lower.builder import Box
from npusim.lower.context import Feed, Lowering
from npusim.lower.epilogue import apply_epilogue
from npusim.lower.geometry import Band, TensorBox, bands, operand_boxes
from npusim.lower.roles import Roles, roles_of
from npusim.lower.slots import constant_operands, piece_operands
from npusim.lower.sources import source_boxes
from npusim.lower.statistics import STATS_BYTES, statistics_shape, statistics_tensor
from npusim.program import FLAG_FIRST, FLAG_LAST, LOAD, ROLE, VECTOR


def lower_rows(low: Lowering, layer: Layer) -> None:
    """Stream a layer whose output bands are independent."""
    planned = low.layer_plans[layer.name]
    assert planned.pieces is not None
    feed = Feed(low, layer, planned.slots)
    low.open_output(layer.output)
    for number, band in enumerate(bands(low.graph.tensors[layer.output].shape, planned.pieces.rows)):
        emit_rows(feed, band, number)


def emit_rows(feed: Feed, band: Band, number: int) -> None:
    """Fetch a band of every operand, compute, run the epilogue, store."""
    low, layer = feed.low, feed.layer
    roles, tile = roles_of(low.graph, layer), feed.tile(number)
    reads = [(0, b) for b in _fetch_band(feed, 0, band, roles, tile)]
    params = [_table_rows(feed, band, reads, tile)] if layer.op == "gather" else _parameters(feed)
    for operand, _ in piece_operands(layer):
        reads += [(operand, b) for b in _fetch_band(feed, operand, band, roles, tile)]
    target = _target(low, layer, band)
    out = feed.out(target, number)
    function, elements = _main_work(low, layer, target, reads)
    low.builder.command(
        VECTOR, low.vector_gang(), layer=feed.index, role=ROLE[roles.compute], segment=feed.segment, tile=tile,
        function=function, reads=[*reads, *params], writes=[(9, out)], extents=(1, elements, 1, 1),
    )  # fmt: skip
    apply_epilogue(feed, out, band, None, number)
    feed.finish(out, target, roles.store, number)


def _main_work(low: Lowering, layer: Layer, out: TensorBox, reads: list[tuple[int, Box]]) -> tuple[str, int]:
    """Function and element count of one piece, as `ops.vector_work` counts them for the whole layer."""
    elements = prod(out.shape)
    if layer.op == "elementwise":
        return str(layer.attributes["function"]), elements
    if layer.op == "pool":
        kernel = layer.attributes["kernel"]
        return "pool", elements * int(kernel[0]) * int(kernel[1])
    if layer.op in ("copy", "rearrange", "unknown"):
        return "copy", max(elements, sum(prod(b.shape) for _, b in reads))
    return layer.op, elements


def _fetch_band(feed: Feed, number: int, band: Band, roles: Roles, tile: int) -> tuple[Box, ...]:
    low, layer = feed.low, feed.layer
    operand = layer.operands[number]
    boxes = source_boxes(low.graph, layer, number, band)
    kind = low.graph.tensors[operand.parts[0].tensor].kind
    role = "weight" if kind == "weight" else roles.load
    key = tuple((b.tensor, b.offset, b.shape) for b in boxes)
    return feed.fetch("x" if number == 0 else f"aux{number}", key, boxes, role, tile=tile)


def _parameters(feed: Feed) -> list[tuple[int, Box]]:
    """Affine parameters, loaded once."""
    boxes = [
        b
        for o in constant_operands(feed.layer)
        for b in operand_boxes(feed.low.graph.tensors, o, Band(0, 0, 1, 0, 1))
    ]
    if not boxes:
        return []
    return [(5, b) for b in feed.fetch("params", 0, boxes, "weight", purpose=1)]


def _table_rows(feed: Feed, band: Band, index: list[tuple[int, Box]], tile: int) -> tuple[int, Box]:
    """The rows of an embedding table that the indices of a band name: a gathering load, whose table box is nominal."""
    low, layer = feed.low, feed.layer
    table = layer.operands[1].parts[0].tensor
    total, cols = low.graph.tensors[table].shape[2:]
    rows = band.r1 - band.r0
    name, target = f"{layer.name}:rows", (band.b, 0, band.r0, 0)
    tensor = low.internal_tensor(
        name, low.graph.tensors[layer.output].shape, low.tensor_plans[table].element_bytes
    )
    slots = feed.rings["params"].slots
    buffer = low.builder.sram_buffer(
        tensor, slots.addresses[0], slots.slot_bytes, target, (1, 1, rows, cols), 0
    )
    gathered = Box(buffer, target, (1, 1, rows, cols))
    low.builder.command(
        LOAD, low.dma_gang(1), layer=feed.index, role=ROLE["weight"], segment=feed.segment, tile=tile,
        reads=[(0, low.home(TensorBox(table, (0, 0, 0, 0), (1, 1, min(rows, total), cols)))), *((1, b) for _, b in index)],
        writes=[(0, gathered)], attributes={"gathers": True},
    )  # fmt: skip
    return 5, gathered


def _target(low: Lowering, layer: Layer, band: Band) -> TensorBox:
    cols = low.graph.tensors[layer.output].shape[3]
    return TensorBox(
        layer.output, (band.b, band.h0, band.r0, 0), (1, band.h1 - band.h0, band.r1 - band.r0, cols)
    )


def lower_group_norm(low: Lowering, layer: Layer) -> None:
    """Statistics over all bands of an image, then the normalization, in reverse: the last bands are still in SRAM.

    Sums that were taken early leave the normalization alone, in order.
    """
    planned = low.layer_plans[layer.name]
    assert planned.pieces is not None
    feed = Feed(low, layer, planned.slots)
    low.open_output(layer.output)
    shape = low.graph.tensors[layer.output].shape
    for image in range(shape[0]):
        cut = [b for b in bands(shape, planned.pieces.rows) if b.b == image]
        stats = early_statistics(feed, image)
        order = list(enumerate(cut))
        if stats is None:
            stats = emit_statistics(feed, cut)
            order.reverse()
        for number, band in order:
            emit_normalization(feed, stats, band, image * len(cut) + number)


def emit_normalization(feed: Feed, stats: Box, band: Band, number: int) -> None:
    """The second pass of GroupNorm over a band."""
    low, layer = feed.low, feed.layer
    roles, tile = roles_of(low.graph, layer), feed.tile(number)
    params = _parameters(feed)
    x = _fetch_band(feed, 0, band, roles, tile)
    target = _target(low, layer, band)
    out = feed.out(target, number)
    low.builder.command(
        VECTOR, low.vector_gang(), layer=feed.index, role=ROLE[roles.compute], segment=feed.segment, tile=tile,
        function="group_norm_apply", reads=[*((0, b) for b in x), (8, stats), *params], writes=[(9, out)],
        extents=(1, prod(target.shape), 1, 1),
    )  # fmt: skip
    apply_epilogue(feed, out, band, None, number)
    feed.finish(out, target, roles.store, number)


def early_statistics(feed: Feed, image: int) -> Box | None:
    """The sums of one image, if the layers that make the norm's input took them."""
    low, layer = feed.low, feed.layer
    if not low.layer_plans[layer.name].early_statistics:
        return None
    home = low.homes[statistics_tensor(layer.name)]
    return Box(home, (image, 0, 0, 0), (1, *statistics_shape(low.graph, layer)[1:]))


def emit_statistics(feed: Feed, cut: Sequence[Band]) -> Box:
    """The first pass of GroupNorm: sums over all bands of one image, in the order given."""
    low, layer = feed.low, feed.layer
    roles = roles_of(low.graph, layer)
    _parameters(feed)
    cols = low.graph.tensors[layer.output].shape[3]
    every = statistics_shape(low.graph, layer)
    tensor = low.internal_tensor(statistics_tensor(layer.name), every, STATS_BYTES)
    offset, shape = (cut[0].b, 0, 0, 0), (1, *every[1:])
    slot = feed.rings["stats"].slots
    buffer = low.builder.sram_buffer(tensor, slot.addresses[0], slot.slot_bytes, offset, shape)
    stats = Box(buffer, offset, shape)
    for number, band in enumerate(cut):
        x = _fetch_band(feed, 0, band, roles, number)
        reads = [(0, b) for b in x] + ([(8, stats)] if number else [])
        flags = (FLAG_FIRST if number == 0 else 0) | (FLAG_LAST if number == len(cut) - 1 else 0)
        low.builder.command(
            VECTOR, low.vector_gang(), layer=feed.index, role=ROLE["norm_stats"], segment=feed.segment, tile=number,
            function="group_norm_stats", reads=reads, writes=[(8, stats)],
            extents=(1, (band.r1 - band.r0) * cols, 1, 1), flags=flags,
        )  # fmt: skip
    return stats
