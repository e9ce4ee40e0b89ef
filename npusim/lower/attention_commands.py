"""Lower an attention segment tile by tile: scores and probabilities never leave SRAM.

With two or more tiles in flight, the product of tile i+1 is issued before the softmax of tile i, so that tensor and vector engines
overlap although each queue is in order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod

from npusim.graph import Layer
from npusim.lower.attention import (
    STATE_BYTES,
    STATE_COLS,
    AttentionTile,
    attention_layers,
    attention_tiles,
    output_box,
)
from npusim.lower.builder import Box
from npusim.lower.context import Feed, Lowering, Ring
from npusim.lower.epilogue import apply_epilogue
from npusim.lower.geometry import Band, HeadCols, TensorBox, operand_boxes
from npusim.ops import product_of
from npusim.plan import SegmentPlan
from npusim.program import (
    FLAG_ACTIVATIONS,
    FLAG_FIRST,
    FLAG_LAST,
    FLAG_REASSOCIATES,
    PRODUCT,
    ROLE,
    VECTOR,
)

#: Operand numbers of the commands of online softmax: the piece itself, the running maximum and sum, the factor of what was before.
PIECE, RUNNING, FACTOR = 9, 8, 7


def lower_attention(low: Lowering, segment: SegmentPlan, index: int) -> None:
    """Emit the commands of one attention segment."""
    layers = attention_layers(low.graph, segment.layers)
    cut = 0 < segment.keys_per_tile < layers.shape[3]
    emitter = (_KeyTiles if cut else _WholeRows)(low, segment, index)
    tiles = list(
        attention_tiles(
            layers.shape, segment.heads_per_tile, segment.rows_per_tile, segment.keys_per_tile if cut else 0
        )
    )
    low.open_output(layers.values.output)
    ahead = 1 if segment.depth > 1 else 0
    scores: dict[int, Box] = {}
    for step in range(len(tiles) + ahead):
        if step < len(tiles):
            scores[step] = emitter.scores(tiles[step])
        if step >= ahead:
            emitter.finish(tiles[step - ahead], scores.pop(step - ahead))
    emitter.close()


class _Emitter(ABC):
    """Commands that both kinds of tiles share: the scores, the places of probabilities and outputs, products, stores."""

    def __init__(self, low: Lowering, segment: SegmentPlan, index: int) -> None:
        self.low, self.segment, self.index = low, segment, index
        self.layers = attention_layers(low.graph, segment.layers)
        self.feed = Feed(low, self.layers.scores, segment.slots, index)
        self.rings: dict[str, Ring] = self.feed.rings

    @abstractmethod
    def finish(self, tile: AttentionTile, scores: Box) -> None:
        """What follows the scores of a tile."""

    @abstractmethod
    def close(self) -> None:
        """What is left to do after the last tile."""

    def scores(self, tile: AttentionTile) -> Box:
        """Load Q (and K with a new head or block), multiply; returns the scores."""
        layers = self.layers
        q = self._fetch("q", layers.scores, 0, layers.query, tile, (tile.r0, tile.r1), "load_qk")
        k = self._fetch("k", layers.scores, 1, layers.key, tile, (tile.k0, tile.k1), "load_qk")
        box = TensorBox(layers.scores.output, (tile.b, tile.h0, tile.r0, tile.k0), tile.size)
        out = self.feed.place("s", tile.number, box)
        reads = [*((0, b) for b in q), *((1, b) for b in k)]
        self._product(layers.scores, "qk", reads, out, tile, tile.size[3], FLAG_FIRST | FLAG_LAST)
        keys = None if tile.size[3] == layers.shape[3] else (tile.k0, tile.k1)
        apply_epilogue(self.feed, out, Band(tile.b, tile.h0, tile.h1, tile.r0, tile.r1), keys, tile.number)
        return out

    def _fetch(
        self,
        ring: str,
        layer: Layer,
        operand: int,
        view: HeadCols,
        tile: AttentionTile,
        rows: tuple[int, int],
        role: str,
    ) -> tuple[Box, ...]:
        band = view.band(tile.b, tile.h0, tile.h1, *rows)
        boxes = list(
            operand_boxes(self.low.graph.tensors, layer.operands[operand], band, view.cols(tile.h0, tile.h1))
        )
        return self.low.fetch(
            self.rings.get(ring),
            (tile.b, tile.h0, *rows),
            boxes,
            self.low.layer_id(layer),
            role,
            segment=self.index,
            tile=tile.number,
        )

    def _values(self, tile: AttentionTile) -> tuple[Box, ...]:
        """V of a tile's keys, loaded with a new head or block."""
        layers = self.layers
        return self._fetch(
            "v", layers.values, 1, layers.value, tile, (tile.k0, tile.k1), "load_probs_v"
        )  # fmt: skip

    def _probabilities(self, tile: AttentionTile, scores: Box) -> Box:
        """The place of the probabilities: that of the scores, or one beside."""
        box = TensorBox(self.layers.softmax.output, scores.offset, scores.shape)
        if not self.segment.in_place:
            return self.feed.place("p", tile.number, box)
        address = self.low.builder.address_of(scores.buffer)
        return self.low.place([box], address, tile.number % self.segment.depth)[0]

    def _output(self, tile: AttentionTile) -> Box:
        """The place of what a tile adds to the output."""
        target = output_box(self.layers, tile)
        if self.low.is_resident(target.tensor):
            return self.low.home(target)
        return self.feed.place("a", tile.rows, target)

    def _store(self, out: Box, tile: AttentionTile) -> None:
        target = output_box(self.layers, tile)
        if not self.low.is_resident(target.tensor):
            layer = self.low.layer_id(self.layers.values)
            self.low.store(out, target, layer, "store_out", segment=self.index, tile=tile.number)

    def _product(
        self, layer: Layer, role: str, reads: list[tuple[int, Box]], out: Box, tile: AttentionTile, cols: int, flags: int,
        **attributes: str,
    ) -> None:  # fmt: skip
        """A product of each head: [rows, k] x [k, cols]; k is the head size, or the keys of the tile."""
        low = self.low
        product = product_of(low.graph, layer)
        assert product is not None
        _, heads, rows, keys = tile.size
        low.builder.command(
            PRODUCT, low.compute_gang(layer), layer=low.layer_id(layer), role=ROLE[role], segment=self.index, tile=tile.number,
            reads=reads, writes=[(PIECE, out)], pair=low.precision(layer).activation_pair,
            extents=(heads, rows, cols, product.k if layer is self.layers.scores else keys),
            flags=flags | FLAG_ACTIVATIONS, attributes=attributes,
        )  # fmt: skip

    def _vector(
        self, layer: Layer, role: str, function: str, tile: AttentionTile, reads: list[tuple[int, Box]], writes: list[tuple[int, Box]],
        elements: int, flags: int = 0, **attributes: str,
    ) -> None:  # fmt: skip
        low = self.low
        low.builder.command(
            VECTOR, low.vector_gang(), layer=low.layer_id(layer), role=ROLE[role], segment=self.index, tile=tile.number,
            function=function, reads=reads, writes=writes, extents=(1, elements, 1, 1), flags=flags, attributes=attributes,
        )  # fmt: skip


class _WholeRows(_Emitter):
    """Tiles with all keys: scores, softmax, values, store."""

    def close(self) -> None:
        """Nothing: every tile is finished at once."""

    def finish(self, tile: AttentionTile, scores: Box) -> None:
        """Softmax in place or beside, load V with a new head, multiply, store."""
        layers = self.layers
        probabilities = self._probabilities(tile, scores)
        self._vector(
            layers.softmax, "softmax", "softmax", tile, [(0, scores)], [(PIECE, probabilities)], prod(tile.size)
        )  # fmt: skip
        v = self._values(tile)
        out = self._output(tile)
        reads = [(0, probabilities), *((1, b) for b in v)]
        self._product(layers.values, "pv", reads, out, tile, layers.out.width, FLAG_FIRST | FLAG_LAST)
        self._store(out, tile)


class _KeyTiles(_Emitter):
    """Tiles with a block of keys, joined by online softmax.

    Each row keeps the running maximum and sum of its scores. A block's softmax raises them and leaves exp(score - maximum) in place of
    the scores, and the factor by which what was summed before shrinks. The product with the block's V is FP32; the running output
    takes it up (output x factor + product), is divided by the running sum after the last block, and stored in its format.

    With two tiles in flight, block i's product is taken up after the softmax of block i+1, so that vector engines never wait for it.
    """

    def __init__(self, low: Lowering, segment: SegmentPlan, index: int) -> None:
        super().__init__(low, segment, index)
        self._late: tuple[AttentionTile, Box | None, Box, Box] | None = None
        shape = self.layers.shape
        softmax, values = self.layers.softmax.name, self.layers.values
        out = low.graph.tensors[values.output].shape
        self._states = {
            "m": low.internal_tensor(f"{softmax}:running", (*shape[:3], STATE_COLS), STATE_BYTES),
            "f": low.internal_tensor(f"{softmax}:factor", (*shape[:3], 1), STATE_BYTES),
            "o": low.internal_tensor(f"{values.name}:running", out, STATE_BYTES),
            "t": low.internal_tensor(f"{values.name}:part", out, STATE_BYTES),
        }

    def finish(self, tile: AttentionTile, scores: Box) -> None:
        """Softmax of a block, the block before taken up, product with the block's V."""
        layers = self.layers
        probabilities = self._probabilities(tile, scores)
        state, factor = self._softmax(tile, scores, probabilities)
        self.close()
        v = self._values(tile)
        target = output_box(layers, tile)
        total = self._state("o", tile.rows, target)
        out = total if factor is None else self._state("t", tile.number, target)
        reads = [(0, probabilities), *((1, b) for b in v)]
        self._product(
            layers.values, "pv", reads, out, tile, layers.out.width, self._flags(tile), online="part"
        )
        self._late = tile, factor, out, state
        if self.segment.depth == 1:
            self.close()

    def close(self) -> None:
        """Take up the last product, and finish its rows if it was theirs."""
        if self._late is None:
            return
        tile, factor, part, state = self._late
        self._late = None
        values, flags = self.layers.values, self._flags(tile)
        total = self._state("o", tile.rows, output_box(self.layers, tile))
        size = prod(total.shape)
        whole = (PIECE, total)
        if factor is not None:
            self._vector(
                values, "other", "mul", tile, [whole, (FACTOR, factor)], [whole], size, flags, online="scale"
            )
            self._vector(values, "other", "add", tile, [whole, (0, part)], [whole], size, flags, online="add")
        if tile.last:
            out = self._output(tile)
            self._vector(
                values, "other", "div", tile, [whole, (RUNNING, state)], [(PIECE, out)], size, flags, online="divide"
            )  # fmt: skip
            self._store(out, tile)

    def _softmax(self, tile: AttentionTile, scores: Box, probabilities: Box) -> tuple[Box, Box | None]:
        """Emit a block's softmax; returns the running maximum and sum, and the factor of what was before (None: nothing was)."""
        rows = (1, *tile.size[1:3])
        offset = (tile.b, tile.h0, tile.r0, 0)
        state = self._state("m", tile.rows, TensorBox("", offset, (*rows, STATE_COLS)))
        factor = self._state("f", tile.number, TensorBox("", offset, (*rows, 1))) if not tile.first else None
        before = [(RUNNING, state)] if factor is not None else []
        after = [(FACTOR, factor)] if factor is not None else []
        self._vector(
            self.layers.softmax, "softmax", "softmax", tile, [(0, scores), *before],
            [(PIECE, probabilities), (RUNNING, state), *after], prod(tile.size), self._flags(tile), online="softmax",
        )  # fmt: skip
        return state, factor

    def _flags(self, tile: AttentionTile) -> int:
        return FLAG_REASSOCIATES | (FLAG_FIRST if tile.first else 0) | (FLAG_LAST if tile.last else 0)

    def _state(self, slot: str, key: object, box: TensorBox) -> Box:
        """The place of a box of FP32 state: the same for one key as long as its slot is not needed for another."""
        ring = self.rings[slot]

        def fill(address: int, number: int) -> tuple[Box, ...]:
            buffer = self.low.builder.sram_buffer(
                self._states[slot], address, ring.slots.slot_bytes, box.offset, box.shape, number
            )
            return (Box(buffer, box.offset, box.shape),)

        return ring.get(key, fill)[0]
