"""An attention segment: its layers, its tiles, and the SRAM slots that they need.

A tile is some heads times some query rows times all keys, or a block of keys: then a running maximum, sum and output take up
one block after the other (online softmax), and no more than a block of K, V and the scores is in SRAM for each tile in flight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from npusim.graph import Graph, Layer, Shape4
from npusim.layout import Layout, stored_bytes
from npusim.lower.context import aligned
from npusim.lower.geometry import Band, HeadCols, TensorBox, head_cols, head_cols_of
from npusim.lower.slots import SlotSpec, Storage

#: Running maxima, sums and outputs, factors and partial products are FP32.
STATE_BYTES = 4
#: Columns of the running state of a row: its maximum and its sum.
STATE_COLS = 2


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


class AttentionTile(NamedTuple):
    """Heads `[h0, h1)`, query rows `[r0, r1)` and keys `[k0, k1)` of batch element `b`; whether its rows begin and end with it."""

    number: int
    b: int
    h0: int
    h1: int
    r0: int
    r1: int
    k0: int
    k1: int
    first: bool = True
    last: bool = True

    @property
    def size(self) -> Shape4:
        """Shape of the scores: [1, heads, rows, keys]."""
        return 1, self.h1 - self.h0, self.r1 - self.r0, self.k1 - self.k0

    @property
    def rows(self) -> tuple[int, int, int]:
        """What tiles that differ in their keys alone share."""
        return self.b, self.h0, self.r0


def attention_layers(graph: Graph, names: tuple[str, ...]) -> AttentionLayers:
    """The phases by layer name, in the order scores, softmax, values."""
    by_name = {layer.name: layer for layer in graph.layers}
    return AttentionLayers(graph, *(by_name[n] for n in names))


def attention_tiles(
    shape: Shape4, heads_per_tile: int, rows_per_tile: int, keys_per_tile: int = 0
) -> Iterator[AttentionTile]:
    """Tiles in execution order: batch, heads, query rows, keys; the last of each may be smaller. No keys per tile: all.

    Keys go up and down in turn, so that the blocks that are still in SRAM are the first for the next query rows.
    """
    batch, heads, queries, keys = shape
    starts = range(0, keys, keys_per_tile or keys)
    number = 0
    for b in range(batch):
        for h in range(0, heads, heads_per_tile):
            for turn, r in enumerate(range(0, queries, rows_per_tile)):
                order = starts[::-1] if turn % 2 else starts
                for k in order:
                    ends = min(h + heads_per_tile, heads), min(r + rows_per_tile, queries)
                    stop = min(k + (keys_per_tile or keys), keys)
                    yield AttentionTile(
                        number, b, h, ends[0], r, ends[1], k, stop, k == order[0], k == order[-1]
                    )
                    number += 1


def output_box(layers: AttentionLayers, tile: AttentionTile) -> TensorBox:
    """What a tile adds to the output."""
    _, heads, rows, _ = tile.size
    name, width = layers.values.output, layers.out.width
    if layers.out.in_cols:
        return TensorBox(name, (tile.b, 0, tile.r0, tile.h0 * width), (1, 1, rows, heads * width))
    return TensorBox(name, (tile.b, tile.h0, tile.r0, 0), (1, heads, rows, width))


def block_layout(layout: Layout, keys_per_tile: int) -> Layout:
    """Layout of scores of which blocks of keys are in SRAM (none: all keys): padded rows are padded to a block."""
    return Layout(keys_per_tile, keys_per_tile) if layout.block and keys_per_tile else layout


def attention_slots(
    storage: Storage, layers: AttentionLayers, heads: int, rows: int, depth: int, *, in_place: bool, keys: int = 0
) -> list[SlotSpec]:  # fmt: skip
    """SRAM slots of an attention segment whose tiles have `heads` heads, `rows` query rows and `keys` keys (0: all)."""
    batch, all_heads, queries, all_keys = layers.shape
    heads, rows = min(heads, all_heads), min(rows, queries)
    blocks = -(-all_keys // keys) if keys else 1
    cut = keys if blocks > 1 else 0
    groups = batch * -(-all_heads // heads)
    bands = groups * -(-queries // rows)
    flight = min(depth, bands * blocks)

    def operand(layer: Layer, index: int, view: HeadCols, height: int) -> int:
        return storage.operand_bytes(
            layer.operands[index], view.band(0, 0, heads, 0, height), view.cols(0, heads)
        )

    def beside(index: int) -> int:
        part = layers.scores.operands[index]
        cols = (0, cut) if cut and part.cols > 1 else None
        return storage.operand_bytes(part, Band(0, 0, heads, 0, rows), cols)

    name = layers.scores.output
    score = aligned(
        stored_bytes(
            (1, heads, rows, cut or all_keys), block_layout(storage.layout(name), cut), storage.element_bytes(name)
        ),
        storage.alignment,
    )  # fmt: skip
    shape = output_box(layers, AttentionTile(0, 0, 0, heads, 0, rows, 0, 0)).shape
    out = 0 if layers.values.output in storage.resident else storage.box_bytes(layers.values.output, shape)
    streamed = min(depth, groups) if blocks == 1 else flight
    specs = [
        SlotSpec("q", operand(layers.scores, 0, layers.query, rows), min(depth, bands)),
        SlotSpec("k", operand(layers.scores, 1, layers.key, cut or all_keys), streamed),
        SlotSpec("v", operand(layers.values, 1, layers.value, cut or all_keys), streamed),
        SlotSpec("s", score, flight),
        SlotSpec("p", 0 if in_place else score, flight),
        SlotSpec("a", out, min(depth, bands)),
        *(
            SlotSpec(f"aux{e.operand}", beside(e.operand), flight)
            for e in layers.scores.epilogue
            if e.operand >= 0
        ),
    ]
    if cut:
        state, running = heads * rows * STATE_BYTES, prod(shape) * STATE_BYTES
        specs += [
            SlotSpec("m", aligned(state * STATE_COLS, storage.alignment), min(depth, bands)),
            SlotSpec("f", aligned(state, storage.alignment), flight),
            SlotSpec("o", aligned(running, storage.alignment), 1),
            SlotSpec("t", aligned(running, storage.alignment), 1),
        ]
    return [s for s in specs if s.slot_bytes]
