"""Lower a row chain tile by tile: what its members hand to one another never leaves SRAM."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from npusim.graph import Layer
from npusim.lower.builder import Box
from npusim.lower.chain import Chain, Member, chain_of
from npusim.lower.context import Feed, Lowering
from npusim.lower.geometry import Band, TensorBox
from npusim.lower.product import blocks_of, emit_product, heads_piece, weight_piece
from npusim.lower.roles import roles_of
from npusim.lower.slots import (
    SlotSpec,
    Storage,
    constants_bytes,
    norm_statistics_bytes,
    operand_slots,
    weight_bytes,
)
from npusim.lower.vector import early_statistics, emit_normalization, emit_rows, emit_statistics
from npusim.ops import OPS
from npusim.plan import SegmentPlan, Slots


def chain_slots(
    storage: Storage, chain: Chain, cols: Sequence[int], depth: int, *, kept: bool
) -> dict[str, list[SlotSpec]]:
    """SRAM slots of each member: what it loads from outside, its weights (all of them, if `kept`), its staged product, its tiles."""
    made = {m.layer.output for m in chain.members}
    outer = replace(storage, resident={*storage.resident, *made})
    return {
        m.layer.name: _member_slots(storage, outer, m, chain, c, depth, kept=kept)
        for m, c in zip(chain.members, cols, strict=True)
    }


def _member_slots(
    storage: Storage, outer: Storage, member: Member, chain: Chain, cols: int, depth: int, *, kept: bool
) -> list[SlotSpec]:
    layer, graph = member.layer, storage.graph
    out = graph.tensors[layer.output].shape
    flight = min(depth, chain.tiles * chain.images)
    height = member.tallest[1] - member.tallest[0]
    specs = operand_slots(outer, layer, _bands(layer, member, out[1]), flight)
    if OPS[layer.op].streams == "product":
        blocks = -(-out[3] // cols)
        piece = storage.box_bytes(layer.output, (1, out[1], height, min(cols, out[3])))
        staged = 2 if layer.attributes.get("gated") else int(layer.output in storage.in_place)
        specs += [
            SlotSpec(
                "w", weight_bytes(outer, layer, min(cols, out[3])), blocks if kept else min(depth, blocks)
            ),
            SlotSpec("pre", staged * piece, min(depth, flight * blocks)),
        ]
    else:
        specs.append(SlotSpec("params", constants_bytes(outer, layer), 1))
    if OPS[layer.op].streams == "norm":
        specs.append(SlotSpec("stats", norm_statistics_bytes(outer, layer), 1))
    if layer.output not in storage.resident:
        whole = storage.box_bytes(layer.output, (1, out[1], height, out[3]))
        specs.append(SlotSpec("out", whole, min(member.places, chain.tiles * chain.images)))
    return [s for s in specs if s.slot_bytes]


def _bands(layer: Layer, member: Member, heads: int) -> dict[int, list[Band]]:
    """Operand number -> bands among which the largest that a tile reads is: any of spatial operands, the tallest tile's of others."""
    found = {n: [Band(0, 0, heads, *member.tallest)] for n in range(1, len(layer.operands))}
    return {0: [Band(0, 0, heads, *member.most_read)], **found}


class _ChainFeed(Feed):
    """Finds what other members made in the places of their tiles."""

    def __init__(
        self, low: Lowering, member: Member, slots: Sequence[Slots], segment: int, feeds: Mapping[str, _ChainFeed]
    ) -> None:  # fmt: skip
        super().__init__(low, member.layer, slots, segment)
        self.member, self.feeds = member, feeds
        self.number = 0
        self._tiles: dict[int, tuple[Band, Box]] = {}

    def tile(self, number: int) -> int:
        """The tile under way: its pieces share it."""
        return self.number

    def fetch(
        self, slot: str, key: Hashable, boxes: Sequence[TensorBox], role: str, *, purpose: int = 0, tile: int = -1
    ) -> tuple[Box, ...]:  # fmt: skip
        """Boxes of an operand: those of members from the tiles that hold them, all others as usual."""
        outside = [b for b in boxes if not self._inside(b)]
        loaded = (
            iter(super().fetch(slot, key, outside, role, purpose=purpose, tile=tile)) if outside else iter(())
        )
        found: list[Box] = []
        for box in boxes:
            found += self.feeds[box.tensor].held(box) if self._inside(box) else [next(loaded)]
        return tuple(found)

    def _inside(self, box: TensorBox) -> bool:
        return box.tensor in self.feeds and not self.low.is_resident(box.tensor)

    def held(self, box: TensorBox) -> list[Box]:
        """The parts of a box of this member's output, by the tile that made them."""
        first, last = box.offset[2], box.offset[2] + box.shape[2]
        found = []
        for band, place in self._tiles.values():
            start, stop = max(band.r0, first), min(band.r1, last)
            if band.b == box.offset[0] and start < stop:
                found.append(Box(
                    place.buffer, (*box.offset[:2], start, box.offset[3]), (*box.shape[:2], stop - start, box.shape[3]),
                ))  # fmt: skip
        return found

    def out(self, target: TensorBox, number: int) -> Box:
        """The place of a piece: a part of its tile's place."""
        if self.low.is_resident(target.tensor):
            return self.low.home(target)
        return Box(self._tiles[self.number][1].buffer, target.offset, target.shape)

    def finish(self, out: Box, target: TensorBox, role: str, number: int) -> None:
        """Nothing yet: a tile is stored whole."""

    def open(self, image: int, tile: int, tiles: int) -> Band:
        """Begin a tile: give its output the oldest place."""
        self.number = image * tiles + tile
        heads = self.low.graph.tensors[self.layer.output].shape[1]
        band = Band(image, 0, heads, *self.member.rows[tile])
        if not self.low.is_resident(self.layer.output):
            addresses = self.rings["out"].slots.addresses
            place = self.number % len(addresses)
            self._tiles = {n: held for n, held in self._tiles.items() if n > self.number - len(addresses)}
            self._tiles[self.number] = (band, self.low.place([self._whole(band)], addresses[place], place)[0])
        return band

    def close(self, band: Band) -> None:
        """End a tile: add it to early statistics, store it if somebody outside reads it."""
        resident = self.low.is_resident(self.layer.output)
        place = self.low.home(self._whole(band)) if resident else self._tiles[self.number][1]
        self.add_sums(place, self.number)
        if self.member.stored and not resident:
            role = roles_of(self.low.graph, self.layer).store
            self.low.store(place, self._whole(band), self.index, role, segment=self.segment, tile=self.number)

    def _whole(self, band: Band) -> TensorBox:
        shape = self.low.graph.tensors[self.layer.output].shape
        return TensorBox(
            self.layer.output, (band.b, 0, band.r0, 0), (1, shape[1], band.r1 - band.r0, shape[3])
        )


def lower_chain(low: Lowering, segment: SegmentPlan, index: int) -> None:
    """Emit the commands of one row chain."""
    last = low.graph.layers[low.layer_index[segment.layers[-1]]]
    outside = low.read_outside(segment.name, last)
    chain = chain_of(low.graph, segment.layers, segment.rows_per_tile, depth=segment.depth, outside=outside)
    feeds: dict[str, _ChainFeed] = {}
    for member in chain.members:
        slots = low.layer_plans[member.layer.name].slots
        feeds[member.layer.output] = _ChainFeed(low, member, slots, index, feeds)
        low.open_output(member.layer.output)
    statistics: dict[tuple[str, int], Box] = {}
    for member, image, tile in chain.schedule():
        feed = feeds[member.layer.output]
        if member.layer.op == "group_norm" and tile == 0:
            statistics[member.layer.name, image] = _statistics(feed, member, image)
        band = feed.open(image, tile, chain.tiles)
        _emit(feed, member, band, statistics.get((member.layer.name, image)))
        feed.close(band)
    feeds.clear()  # they know one another: a circle would keep the whole Program alive until the collector comes


def _statistics(feed: _ChainFeed, member: Member, image: int) -> Box:
    """Sums that were taken early, or GroupNorm's first pass, from the last tile to the first: then the first are still in SRAM."""
    early = early_statistics(feed, image)
    if early is not None:
        return early
    heads = feed.low.graph.tensors[member.layer.output].shape[1]
    cut = [Band(image, 0, heads, *rows) for rows in reversed(member.rows) if rows[0] < rows[1]]
    return emit_statistics(feed, cut)


def _emit(feed: _ChainFeed, member: Member, band: Band, statistics: Box | None) -> None:
    """All commands of one member for one tile."""
    low, layer = feed.low, member.layer
    if statistics is not None:
        emit_normalization(feed, statistics, band, feed.number)
    elif layer.op == "matmul":
        heads = int(layer.attributes["heads"])
        emit_product(feed, heads_piece(low, layer, Band(band.b, 0, heads, band.r0, band.r1)), feed.number)
    elif OPS[layer.op].streams == "product":
        pieces = low.layer_plans[layer.name].pieces
        assert pieces is not None
        blocks = blocks_of(low.graph.tensors[layer.output].shape[3], pieces.cols)
        for number, cols in enumerate(blocks):
            emit_product(feed, weight_piece(low, layer, band, cols), feed.number * len(blocks) + number)
    else:
        emit_rows(feed, band, feed.number)
