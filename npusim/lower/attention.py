"""Lower an attention segment tile by tile: scores and probabilities never leave SRAM.

A tile is some heads times some query rows. With two or more tiles in flight, the product of tile i+1 is issued before the
softmax of tile i, so that tensor and vector engines overlap although each queue is in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from npusim.graph import Graph, Layer, Shape4
from npusim.lower.builder import Box
from npusim.lower.context import Feed, Lowering, Ring
from npusim.lower.epilogue import apply_epilogue
from npusim.lower.geometry import Band, HeadCols, TensorBox, head_cols, head_cols_of, operand_boxes
from npusim.lower.slots import SlotSpec, Storage
from npusim.ops import product_of
from npusim.plan import SegmentPlan
from npusim.program import FLAG_ACTIVATIONS, FLAG_FIRST, FLAG_LAST, PRODUCT, ROLE, VECTOR


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """The three phases of one attention, with how each operand stores its heads."""

    graph: Graph
    scores: Layer
    softmax: Layer
    values: Layer

    @property
    def shape(self) -> Shape4:
        """[batch, heads, queries, keys]."""
        return self.graph.tensors[self.scores.output].shape

    @property
    def query(self) -> HeadCols:
        """Heads in Q."""
        return head_cols(self.graph, self.scores, self.scores.operands[0])

    @property
    def key(self) -> HeadCols:
        """Heads in K."""
        return head_cols(self.graph, self.scores, self.scores.operands[1])

    @property
    def value(self) -> HeadCols:
        """Heads in V."""
        return head_cols(self.graph, self.values, self.values.operands[1])

    @property
    def out(self) -> HeadCols:
        """Heads in the output."""
        shape = self.graph.tensors[self.values.output].shape
        return head_cols_of(shape, int(self.values.attributes["heads"]), shape[3])


class _Tile(NamedTuple):
    number: int
    b: int
    h0: int
    h1: int
    r0: int
    r1: int


def attention_layers(graph: Graph, names: tuple[str, ...]) -> AttentionLayers:
    """The phases by layer name, in the order scores, softmax, values."""
    by_name = {layer.name: layer for layer in graph.layers}
    return AttentionLayers(graph, *(by_name[n] for n in names))


def attention_tiles(shape: Shape4, heads_per_tile: int, rows_per_tile: int) -> Iterator[_Tile]:
    """Tiles in execution order: batch, heads, query rows; the last of each may be smaller."""
    number = 0
    batch, heads, queries, _ = shape
    for b in range(batch):
        for h in range(0, heads, heads_per_tile):
            for r in range(0, queries, rows_per_tile):
                yield _Tile(number, b, h, min(h + heads_per_tile, heads), r, min(r + rows_per_tile, queries))
                number += 1


def attention_slots(
    storage: Storage, layers: AttentionLayers, heads: int, rows: int, depth: int, *, in_place: bool
) -> list[SlotSpec]:
    """SRAM slots of an attention segment whose tiles have `heads` heads and `rows` query rows."""
    batch, all_heads, queries, keys = layers.shape
    heads, rows = min(heads, all_heads), min(rows, queries)
    groups = batch * -(-all_heads // heads)
    tiles = groups * -(-queries // rows)

    def operand(layer: Layer, index: int, view: HeadCols, height: int) -> int:
        return storage.operand_bytes(
            layer.operands[index], view.band(0, 0, heads, 0, height), view.cols(0, heads)
        )

    score = storage.box_bytes(layers.scores.output, (1, heads, rows, keys))
    out_shape: Shape4 = (
        (1, 1, rows, heads * layers.out.width) if layers.out.in_cols else (1, heads, rows, layers.out.width)
    )
    out = (
        0 if layers.values.output in storage.resident else storage.box_bytes(layers.values.output, out_shape)
    )
    flight = min(depth, tiles)
    specs = [
        SlotSpec("q", operand(layers.scores, 0, layers.query, rows), flight),
        SlotSpec("k", operand(layers.scores, 1, layers.key, keys), min(depth, groups)),
        SlotSpec("v", operand(layers.values, 1, layers.value, keys), min(depth, groups)),
        SlotSpec("s", score, flight),
        SlotSpec("p", 0 if in_place else score, flight),
        SlotSpec("a", out, flight),
        *(
            SlotSpec(
                f"aux{e.operand}",
                storage.operand_bytes(layers.scores.operands[e.operand], Band(0, 0, heads, 0, rows)),
                flight,
            )
            for e in layers.scores.epilogue
            if e.operand >= 0
        ),
    ]
    return [s for s in specs if s.slot_bytes]


def lower_attention(low: Lowering, segment: SegmentPlan, index: int) -> None:
    """Emit the commands of one attention segment."""
    emitter = _Emitter(low, segment, index)
    tiles = list(attention_tiles(emitter.layers.shape, segment.heads_per_tile, segment.rows_per_tile))
    low.open_output(emitter.layers.values.output)
    ahead = 1 if segment.depth > 1 else 0
    scores: dict[int, Box] = {}
    for step in range(len(tiles) + ahead):
        if step < len(tiles):
            scores[step] = emitter.scores(tiles[step])
        if step >= ahead:
            emitter.finish(tiles[step - ahead], scores.pop(step - ahead))


class _Emitter:
    """Commands of one tile: scores, softmax, values, store."""

    def __init__(self, low: Lowering, segment: SegmentPlan, index: int) -> None:
        self.low, self.segment, self.index = low, segment, index
        self.layers = attention_layers(low.graph, segment.layers)
        self.feed = Feed(low, self.layers.scores, segment.slots, index)
        self.rings: dict[str, Ring] = self.feed.rings

    def _fetch(
        self,
        ring: str,
        layer: Layer,
        operand: int,
        view: HeadCols,
        tile: _Tile,
        rows: tuple[int, int],
        role: str,
    ) -> tuple[Box, ...]:
        band = view.band(tile.b, tile.h0, tile.h1, *rows)
        boxes = list(
            operand_boxes(self.low.graph.tensors, layer.operands[operand], band, view.cols(tile.h0, tile.h1))
        )
        key = (tile.b, tile.h0, *rows)
        return self.low.fetch(
            self.rings.get(ring),
            key,
            boxes,
            self.low.layer_id(layer),
            role,
            segment=self.index,
            tile=tile.number,
        )

    def scores(self, tile: _Tile) -> Box:
        """Load Q (and K with a new head), multiply; returns the scores."""
        layers, low = self.layers, self.low
        keys = layers.shape[3]
        q = self._fetch("q", layers.scores, 0, layers.query, tile, (tile.r0, tile.r1), "load_qk")
        k = self._fetch("k", layers.scores, 1, layers.key, tile, (0, keys), "load_qk")
        heads, rows = tile.h1 - tile.h0, tile.r1 - tile.r0
        box = TensorBox(layers.scores.output, (tile.b, tile.h0, tile.r0, 0), (1, heads, rows, keys))
        out = self.rings["s"].get(tile.number, lambda address, slot: low.place([box], address, slot))[0]
        self._product(
            layers.scores, "qk", [*((0, b) for b in q), *((1, b) for b in k)], out, tile, (heads, rows, keys)
        )
        apply_epilogue(self.feed, out, Band(tile.b, tile.h0, tile.h1, tile.r0, tile.r1), None, tile.number)
        return out

    def finish(self, tile: _Tile, scores: Box) -> None:
        """Softmax in place or beside, load V with a new head, multiply, store."""
        layers, low = self.layers, self.low
        probabilities = self._softmax(tile, scores)
        v = self._fetch("v", layers.values, 1, layers.value, tile, (0, layers.shape[3]), "load_probs_v")
        heads, rows, width = tile.h1 - tile.h0, tile.r1 - tile.r0, layers.out.width
        if layers.out.in_cols:
            target = TensorBox(
                layers.values.output, (tile.b, 0, tile.r0, tile.h0 * width), (1, 1, rows, heads * width)
            )
        else:
            target = TensorBox(layers.values.output, (tile.b, tile.h0, tile.r0, 0), (1, heads, rows, width))
        if low.is_resident(target.tensor):
            out = low.home(target)
        else:
            out = self.rings["a"].get(tile.number, lambda address, slot: low.place([target], address, slot))[
                0
            ]
        reads = [(0, probabilities), *((1, b) for b in v)]
        self._product(layers.values, "pv", reads, out, tile, (heads, rows, width))
        if not low.is_resident(target.tensor):
            low.store(
                out, target, low.layer_id(layers.values), "store_out", segment=self.index, tile=tile.number
            )

    def _softmax(self, tile: _Tile, scores: Box) -> Box:
        low, layer = self.low, self.layers.softmax
        box = TensorBox(layer.output, scores.offset, scores.shape)
        if self.segment.in_place:
            address = low.builder.address_of(scores.buffer)
            out = low.place([box], address, tile.number % self.segment.depth)[0]
        else:
            out = self.rings["p"].get(tile.number, lambda address, slot: low.place([box], address, slot))[0]
        low.builder.command(
            VECTOR, low.vector_gang(), layer=low.layer_id(layer), role=ROLE["softmax"], segment=self.index, tile=tile.number,
            function="softmax", reads=[(0, scores)], writes=[(9, out)], extents=(1, prod(box.shape), 1, 1),
        )  # fmt: skip
        return out

    def _product(
        self,
        layer: Layer,
        role: str,
        reads: list[tuple[int, Box]],
        out: Box,
        tile: _Tile,
        size: tuple[int, int, int],
    ) -> None:
        low = self.low
        product = product_of(low.graph, layer)
        assert product is not None
        heads, rows, cols = size
        low.builder.command(
            PRODUCT, low.compute_gang(layer), layer=low.layer_id(layer), role=ROLE[role], segment=self.index, tile=tile.number,
            reads=reads, writes=[(9, out)], pair=low.precision(layer).activation_pair, extents=(heads, rows, cols, product.k),
            flags=FLAG_FIRST | FLAG_LAST | FLAG_ACTIVATIONS,
        )  # fmt: skip
