"""Lower vector layers: rows of softmax, norms and elementwise functions, image bands, and the two passes of GroupNorm."""

from __future__ import annotations

from math import prod

from npusim.graph import Layer
from npusim.lower.builder import Box
from npusim.lower.context import Lowering, Ring
from npusim.lower.epilogue import apply_epilogue
from npusim.lower.geometry import Band, TensorBox, bands, operand_boxes
from npusim.lower.roles import Roles, roles_of
from npusim.lower.slots import STATS_BYTES, constant_operands, piece_operands
from npusim.lower.sources import source_boxes
from npusim.program import FLAG_FIRST, FLAG_LAST, LOAD, ROLE, VECTOR


def lower_rows(low: Lowering, layer: Layer) -> None:
    """Stream a layer whose output bands are independent."""
    planned = low.layer_plans[layer.name]
    assert planned.pieces is not None
    rings = {s.name: Ring(s) for s in planned.slots}
    low.open_output(layer.output)
    roles, index = roles_of(low.graph, layer), low.layer_id(layer)
    params = None
    for number, band in enumerate(bands(low.graph.tensors[layer.output].shape, planned.pieces.rows)):
        reads = [(0, b) for b in _fetch_band(low, rings, layer, 0, band, roles, number)]
        if layer.op == "gather":
            params = [_table_rows(low, rings, layer, band, reads, number)]
        elif params is None:
            params = _parameters(low, rings, layer)
        for operand, _ in piece_operands(layer):
            reads += [(operand, b) for b in _fetch_band(low, rings, layer, operand, band, roles, number)]
        target, out = _output(low, rings, layer, band, number)
        function, elements = _main_work(low, layer, target, reads)
        low.builder.command(
            VECTOR, low.vector_gang(), layer=index, role=ROLE[roles.compute], tile=number, function=function,
            reads=[*reads, *params], writes=[(9, out)], extents=(1, elements, 1, 1),
        )  # fmt: skip
        apply_epilogue(low, layer, rings, out, band, None, number)
        if not low.is_resident(layer.output):
            low.store(out, target, index, roles.store, tile=number)


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


def _fetch_band(
    low: Lowering, rings: dict[str, Ring], layer: Layer, number: int, band: Band, roles: Roles, tile: int
) -> tuple[Box, ...]:
    operand = layer.operands[number]
    boxes = source_boxes(low.graph, layer, number, band)
    ring = rings.get("x" if number == 0 else f"aux{number}")
    kind = low.graph.tensors[operand.parts[0].tensor].kind
    role = "weight" if kind == "weight" else roles.load
    key = tuple((b.tensor, b.offset, b.shape) for b in boxes)
    return low.fetch(ring, key, boxes, low.layer_id(layer), role, tile=tile)


def _parameters(low: Lowering, rings: dict[str, Ring], layer: Layer) -> list[tuple[int, Box]]:
    """Affine parameters, loaded once."""
    boxes = [
        b for o in constant_operands(layer) for b in operand_boxes(low.graph.tensors, o, Band(0, 0, 1, 0, 1))
    ]
    if not boxes:
        return []
    found = low.fetch(rings.get("params"), 0, boxes, low.layer_id(layer), "weight", purpose=1)
    return [(5, b) for b in found]


def _table_rows(
    low: Lowering, rings: dict[str, Ring], layer: Layer, band: Band, index: list[tuple[int, Box]], tile: int
) -> tuple[int, Box]:
    """The rows of an embedding table that the indices of a band name: a gathering load, whose table box is nominal."""
    table = layer.operands[1].parts[0].tensor
    total, cols = low.graph.tensors[table].shape[2:]
    rows = band.r1 - band.r0
    name, target = f"{layer.name}:rows", (band.b, 0, band.r0, 0)
    tensor = low.internal_tensor(
        name, low.graph.tensors[layer.output].shape, low.tensor_plans[table].element_bytes
    )
    slots = rings["params"].slots
    buffer = low.builder.sram_buffer(
        tensor, slots.addresses[0], slots.slot_bytes, target, (1, 1, rows, cols), 0
    )
    gathered = Box(buffer, target, (1, 1, rows, cols))
    low.builder.command(
        LOAD, low.dma_gang(1), layer=low.layer_id(layer), role=ROLE["weight"], tile=tile,
        reads=[(0, low.home(TensorBox(table, (0, 0, 0, 0), (1, 1, min(rows, total), cols)))), *((1, b) for _, b in index)],
        writes=[(0, gathered)], attributes={"gathers": True},
    )  # fmt: skip
    return 5, gathered


def _output(
    low: Lowering, rings: dict[str, Ring], layer: Layer, band: Band, number: int
) -> tuple[TensorBox, Box]:
    cols = low.graph.tensors[layer.output].shape[3]
    target = TensorBox(
        layer.output, (band.b, band.h0, band.r0, 0), (1, band.h1 - band.h0, band.r1 - band.r0, cols)
    )
    if low.is_resident(layer.output):
        return target, low.home(target)
    return target, rings["out"].get(number, lambda address, slot: low.place([target], address, slot))[0]


def lower_group_norm(low: Lowering, layer: Layer) -> None:
    """Statistics over all bands of an image, then the normalization, in reverse: the last bands are still in SRAM."""
    planned = low.layer_plans[layer.name]
    assert planned.pieces is not None
    rings = {s.name: Ring(s) for s in planned.slots}
    low.open_output(layer.output)
    roles, index = roles_of(low.graph, layer), low.layer_id(layer)
    params = _parameters(low, rings, layer)
    shape = low.graph.tensors[layer.output].shape
    for image in range(shape[0]):
        cut = [b for b in bands(shape, planned.pieces.rows) if b.b == image]
        stats = _statistics(low, rings, layer, cut, roles, image)
        for number, band in reversed(list(enumerate(cut))):
            x = _fetch_band(low, rings, layer, 0, band, roles, number)
            target, out = _output(low, rings, layer, band, image * len(cut) + number)
            low.builder.command(
                VECTOR, low.vector_gang(), layer=index, role=ROLE[roles.compute], tile=number, function="group_norm_apply",
                reads=[*((0, b) for b in x), (8, stats), *params], writes=[(9, out)], extents=(1, prod(target.shape), 1, 1),
            )  # fmt: skip
            apply_epilogue(low, layer, rings, out, band, None, number)
            if not low.is_resident(layer.output):
                low.store(out, target, index, roles.store, tile=number)


def _statistics(
    low: Lowering, rings: dict[str, Ring], layer: Layer, cut: list[Band], roles: Roles, image: int
) -> Box:
    groups = int(layer.attributes["groups"])
    images = low.graph.tensors[layer.output].shape[0]
    tensor = low.internal_tensor(f"{layer.name}:stats", (images, 1, groups, 2), STATS_BYTES)
    offset, shape = (image, 0, 0, 0), (1, 1, groups, 2)
    slot = rings["stats"].slots
    buffer = low.builder.sram_buffer(tensor, slot.addresses[0], slot.slot_bytes, offset, shape)
    stats = Box(buffer, offset, shape)
    cols = low.graph.tensors[layer.output].shape[3]
    for number, band in enumerate(cut):
        x = _fetch_band(low, rings, layer, 0, band, roles, number)
        reads = [(0, b) for b in x] + ([(8, stats)] if number else [])
        flags = (FLAG_FIRST if number == 0 else 0) | (FLAG_LAST if number == len(cut) - 1 else 0)
        low.builder.command(
            VECTOR, low.vector_gang(), layer=low.layer_id(layer), role=ROLE["norm_stats"], tile=number,
            function="group_norm_stats", reads=reads, writes=[(8, stats)],
            extents=(1, (band.r1 - band.r0) * cols, 1, 1), flags=flags,
        )  # fmt: skip
    return stats
