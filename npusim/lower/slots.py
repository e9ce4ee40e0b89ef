"""How many SRAM bytes each way of cutting a layer needs: the slots that its lowering will fill."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from npusim.dtypes import ELEMENT_BYTES
from npusim.graph import Graph, Layer, Operand, Shape4
from npusim.layout import Layout, stored_bytes
from npusim.lower.context import aligned
from npusim.lower.geometry import (
    Band,
    band_count,
    bands,
    head_cols,
    head_cols_of,
    input_rows,
    operand_boxes,
    widest_bands,
)
from npusim.lower.sources import source_boxes
from npusim.lower.statistics import STATS_BYTES, statistics_shape, statistics_tensor
from npusim.ops import OPS
from npusim.plan import Pieces
from npusim.precisions import Precisions, tensor_dtypes


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """`count` slots of `slot_bytes` bytes for the operand called `name`."""

    name: str
    slot_bytes: int
    count: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all slots together."""
        return self.slot_bytes * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How tensors are stored, as far as sizes go.

    Attributes:
        resident: tensors that live in SRAM between layers (they need no slot), early statistics among them.
        layout: tensor name -> layout.
        element_bytes: tensor name -> bytes per element.
        alignment: bytes.
        in_place: resident outputs that overwrite an operand (a product is then staged before its residual is added).
    """

    graph: Graph
    resident: Collection[str]
    layout: Callable[[str], Layout]
    element_bytes: Callable[[str], int]
    alignment: int
    in_place: frozenset[str] = frozenset()

    def box_bytes(self, tensor: str, shape: Shape4) -> int:
        """Aligned bytes of a box in SRAM."""
        return aligned(stored_bytes(shape, self.layout(tensor), self.element_bytes(tensor)), self.alignment)

    def operand_bytes(self, operand: Operand, band: Band, cols: tuple[int, int] | None = None) -> int:
        """Aligned bytes of those parts of an operand that are not resident."""
        boxes = operand_boxes(self.graph.tensors, operand, band, cols)
        return sum(self.box_bytes(b.tensor, b.shape) for b in boxes if b.tensor not in self.resident)


def element_bytes_of(graph: Graph, precisions: Precisions) -> dict[str, int]:
    """Bytes per element of each tensor when layers have these precisions."""
    return {name: ELEMENT_BYTES[dtype] for name, dtype in tensor_dtypes(graph, precisions).items()}


Known = dict[tuple[str, int], Any]


def layer_slots(storage: Storage, layer: Layer, pieces: Pieces, known: Known | None = None) -> list[SlotSpec]:
    """The slots that lowering fills for a layer cut into these pieces; empty ones are left out.

    `known` remembers, for one layer and storage, what depends on the rows or the columns of a piece alone.
    """
    streams = OPS[layer.op].streams
    if streams == "product":
        specs = _product_slots(storage, layer, pieces, {} if known is None else known)
    elif streams == "norm":
        specs = _norm_slots(storage, layer, pieces)
    else:
        specs = _row_slots(storage, layer, pieces)
    return [s for s in specs if s.slot_bytes]


def largest_band(storage: Storage, layer: Layer, rows: int) -> tuple[Band, int]:
    """The band that reads most input rows when the output is cut into bands of `rows`; and the number of bands."""
    out = storage.graph.tensors[layer.output].shape
    count = band_count(out, rows)
    candidates = widest_bands(out, rows)
    if "out_hw" not in layer.attributes:
        return candidates[0], count
    spans = [input_rows(layer, band.r0, band.r1) for band in candidates]
    widest = max(range(len(spans)), key=lambda i: spans[i][1] - spans[i][0])
    tallest = candidates[0]
    return candidates[widest]._replace(r1=candidates[widest].r0 + tallest.r1 - tallest.r0), count


def _product_slots(storage: Storage, layer: Layer, pieces: Pieces, known: Known) -> list[SlotSpec]:
    out = storage.graph.tensors[layer.output].shape
    if layer.op == "matmul":
        return _matmul_slots(storage, layer, pieces)
    if ("x", pieces.rows) not in known:
        known["x", pieces.rows] = _streamed(storage, layer, pieces.rows)
    band, count, x = known["x", pieces.rows]
    cols = min(pieces.cols, out[3])
    blocks = -(-out[3] // cols)
    if ("w", cols) not in known:
        known["w", cols] = weight_bytes(storage, layer, cols)
    weight = known["w", cols]
    height = (band.h1 - band.h0, band.r1 - band.r0)
    gated = bool(layer.attributes.get("gated"))
    piece = (1, *height, cols)
    out_bytes = 0 if layer.output in storage.resident else storage.box_bytes(layer.output, piece)
    staged = 2 if gated else int(layer.output in storage.in_place)
    pre = staged * storage.box_bytes(layer.output, piece)
    flight = min(pieces.depth, count * blocks)
    return [
        SlotSpec("x", x, min(pieces.depth, count)),
        SlotSpec("w", weight, min(pieces.depth, blocks)),
        SlotSpec("pre", pre, flight),
        SlotSpec("out", out_bytes, flight),
        *_aux_slots(storage, layer, band, (0, cols), flight),
    ]


def _streamed(storage: Storage, layer: Layer, rows: int) -> tuple[Band, int, int]:
    """The largest band of so many output rows, the number of bands, and the bytes of x that it needs."""
    band, count = largest_band(storage, layer, rows)
    x_low, x_high = input_rows(layer, band.r0, band.r1)
    return (
        band,
        count,
        storage.operand_bytes(layer.operands[0], Band(band.b, band.h0, band.h1, x_low, x_high)),
    )


def weight_bytes(storage: Storage, layer: Layer, cols: int) -> int:
    """Aligned bytes of the weights and biases of `cols` output columns, or of all rows of an attention product's second factor."""
    if layer.op == "matmul":
        _, heads, rows, _ = storage.graph.tensors[layer.operands[1].parts[0].tensor].shape
        return storage.operand_bytes(layer.operands[1], Band(0, 0, heads, 0, rows))
    factor = 2 if layer.attributes.get("gated") else 1
    total = 0
    for operand in layer.operands:
        if operand.role == "weight":
            name = operand.parts[0].tensor
            depth = storage.graph.tensors[name].shape[3]
            total += factor * storage.box_bytes(name, (1, 1, cols, depth))
        elif operand.role == "bias":
            total += factor * storage.box_bytes(operand.parts[0].tensor, (1, 1, 1, cols))
    return total


def _aux_slots(
    storage: Storage, layer: Layer, band: Band, cols: tuple[int, int] | None, count: int
) -> list[SlotSpec]:
    """Slots of the operands that only the epilogue reads."""
    found = []
    for epilogue in layer.epilogue:
        if epilogue.operand >= 0:
            operand = layer.operands[epilogue.operand]
            chosen = cols if operand.cols > 1 else None
            found.append(
                SlotSpec(f"aux{epilogue.operand}", storage.operand_bytes(operand, band, chosen), count)
            )
    return found


def operand_slots(
    storage: Storage, layer: Layer, bands_of: Mapping[int, Sequence[Band]], flight: int
) -> list[SlotSpec]:
    """Slots of the operands that are cut by rows: the streamed one, and those of the epilogue, for the bands that are read of each."""
    numbers = [
        0,
        *(i for i, _ in piece_operands(layer)),
        *(e.operand for e in layer.epilogue if e.operand >= 0),
    ]
    return [
        SlotSpec(
            "x" if i == 0 else f"aux{i}", max(storage.operand_bytes(layer.operands[i], b) for b in bands_of[i]), flight
        )
        for i in dict.fromkeys(numbers)
    ]  # fmt: skip


def _matmul_slots(storage: Storage, layer: Layer, pieces: Pieces) -> list[SlotSpec]:
    graph = storage.graph
    heads = int(layer.attributes["heads"])
    x, y = layer.operands[0], layer.operands[1]
    out = graph.tensors[layer.output].shape
    x_heads, y_heads = head_cols(graph, layer, x), head_cols(graph, layer, y)
    o_heads = head_cols_of(out, heads, out[3])
    rows, cols = min(pieces.rows, out[2]), min(pieces.cols, o_heads.width)
    x_bytes = storage.operand_bytes(x, x_heads.band(0, 0, 1, 0, rows), x_heads.cols(0, 1))
    y_rows = graph.tensors[y.parts[0].tensor].shape[2]
    if layer.attributes["y_rows"] == "outputs":
        y_bytes = storage.operand_bytes(y, y_heads.band(0, 0, 1, 0, cols), y_heads.cols(0, 1))
    else:
        y_bytes = storage.operand_bytes(y, y_heads.band(0, 0, 1, 0, y_rows), (0, cols))
    out_bytes = 0 if layer.output in storage.resident else storage.box_bytes(layer.output, (1, 1, rows, cols))
    bands_per_head, blocks = -(-out[2] // rows), -(-o_heads.width // cols)
    outer = out[0] * heads
    flight = min(pieces.depth, outer * bands_per_head * blocks)
    band = o_heads.band(0, 0, 1, 0, rows)
    return [
        SlotSpec("x", x_bytes, min(pieces.depth, outer * bands_per_head)),
        SlotSpec("w", y_bytes, min(pieces.depth, outer * blocks)),
        SlotSpec("out", out_bytes, flight),
        *_aux_slots(storage, layer, band, (0, cols), flight),
    ]


def constant_operands(layer: Layer) -> list[Operand]:
    """Operands of a vector layer that every piece reads whole: affine parameters."""
    return [o for o in layer.operands if o.role in ("scale", "bias", "table")]


def piece_operands(layer: Layer) -> list[tuple[int, Operand]]:
    """Operands of a vector layer besides x that are cut like the output, with their numbers."""
    epilogue = {e.operand for e in layer.epilogue}
    return [
        (i, o)
        for i, o in enumerate(layer.operands)
        if i and i not in epilogue and o.role in ("residual", "broadcast", "whole")
    ]


def constants_bytes(storage: Storage, layer: Layer, rows: int = 1) -> int:
    """Aligned bytes of the affine parameters, or of `rows` rows of a table."""
    return sum(
        storage.operand_bytes(o, Band(0, 0, 1, 0, rows if o.role == "table" else 1))
        for o in constant_operands(layer)
    )


def _row_slots(storage: Storage, layer: Layer, pieces: Pieces) -> list[SlotSpec]:
    out = storage.graph.tensors[layer.output].shape
    band, count = largest_band(storage, layer, pieces.rows)
    flight = min(pieces.depth, count)
    piece = (1, band.h1 - band.h0, band.r1 - band.r0, out[3])
    out_bytes = 0 if layer.output in storage.resident else storage.box_bytes(layer.output, piece)
    others = [
        SlotSpec(f"aux{i}", _source_bytes(storage, layer, i, band, pieces.rows), flight)
        for i, _ in piece_operands(layer)
    ]
    return [
        SlotSpec("x", _source_bytes(storage, layer, 0, band, pieces.rows), flight),
        SlotSpec("params", constants_bytes(storage, layer, band.r1 - band.r0), 1),
        SlotSpec("out", out_bytes, flight),
        *others,
        *_aux_slots(storage, layer, band, None, flight),
    ]


def _source_bytes(storage: Storage, layer: Layer, index: int, band: Band, rows: int) -> int:
    """Aligned bytes of what a band reads of an operand; of the band that reads most, where rows correspond in no simple way."""
    simple = OPS[layer.op].streams != "whole"
    cut = [band] if simple else bands(storage.graph.tensors[layer.output].shape, rows)
    return max(
        sum(
            storage.box_bytes(b.tensor, b.shape)
            for b in source_boxes(storage.graph, layer, index, one)
            if b.tensor not in storage.resident
        )
        for one in cut
    )


def norm_statistics_bytes(storage: Storage, layer: Layer) -> int:
    """Aligned bytes of the sums of one image; none where they are taken early and have a home."""
    if statistics_tensor(layer.name) in storage.resident:
        return 0
    return aligned(prod(statistics_shape(storage.graph, layer)[1:]) * STATS_BYTES, storage.alignment)


def _norm_slots(storage: Storage, layer: Layer, pieces: Pieces) -> list[SlotSpec]:
    out = storage.graph.tensors[layer.output].shape
    band, count = largest_band(storage, layer, pieces.rows)
    per_image = count // out[0]
    flight = min(pieces.depth, per_image)
    out_bytes = (
        0
        if layer.output in storage.resident
        else storage.box_bytes(layer.output, (1, 1, band.r1 - band.r0, out[3]))
    )
    return [
        SlotSpec("x", storage.operand_bytes(layer.operands[0], band), flight),
        SlotSpec("params", constants_bytes(storage, layer, 1), 1),
        SlotSpec("stats", norm_statistics_bytes(storage, layer), 1),
        SlotSpec("out", out_bytes, flight),
    ]


#: Row numbers of tables are 32-bit integers.
INDEX_BYTES = 4
