"""What every lowering routine shares: the plan by name, buffers of resident tensors, rings of SRAM slots, DMA commands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import prod

from npusim.dtypes import PRECISIONS, Precision
from npusim.graph import Graph, Layer, Shape4, Tensor
from npusim.layout import PLAIN, Layout, stored_bytes
from npusim.lower.builder import Box, ProgramBuilder
from npusim.lower.chain import read_outside
from npusim.lower.geometry import TensorBox
from npusim.lower.statistics import STATS_BYTES, each_sum, shares, statistics_shape, statistics_tensor
from npusim.plan import LayerPlan, Plan, Slots, TensorPlan
from npusim.program import FLAG_FIRST, LOAD, ROLE, STORE, VECTOR, Gang


class Ring:
    """The slots of one operand: remembers what each holds, hands out the oldest for the next piece."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self._held: dict[Hashable, tuple[Box, ...]] = {}
        self._next = 0

    def get(self, key: Hashable, fill: Callable[[int, int], tuple[Box, ...]]) -> tuple[Box, ...]:
        """The boxes held under `key`; if absent, `fill(address, slot number)` puts them into the oldest slot."""
        if key in self._held:
            return self._held[key]
        count = len(self.slots.addresses)
        if len(self._held) >= count:
            del self._held[next(iter(self._held))]
        number = self._next % count
        self._next += 1
        boxes = fill(self.slots.addresses[number], number)
        self._held[key] = boxes
        return boxes


class Lowering:
    """State while one plan is lowered: where each tensor is, and the Program being built."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph = graph
        self.npu = plan.npu
        self.tensor_plans: dict[str, TensorPlan] = {t.name: t for t in plan.tensors}
        self.layer_plans: Mapping[str, LayerPlan] = {p.name: p for p in plan.layers}
        gangs, lanes = gangs_of(plan)
        segments = tuple(s.name for s in plan.segments)
        self.builder = ProgramBuilder(gangs, lanes, [layer.name for layer in graph.layers], segments)
        self._gang_index = {(g.kind, g.engines): i for i, g in enumerate(gangs)}
        self.ids: dict[str, int] = {}
        self.homes: dict[str, int] = {}
        self._members = {s.name: s.layers for s in plan.segments}
        self._consumers = graph.consumers()
        self._outside: dict[tuple[str, ...], frozenset[str]] = {}
        self._waiting: dict[str, int] = {}
        self._alignment = plan.npu.sram.alignment_bytes
        self.layer_index = {layer.name: i for i, layer in enumerate(graph.layers)}
        for tensor in graph.tensors.values():
            self._add_tensor(tensor)
        early = [x for x in graph.layers if self.layer_plans[x.name].early_statistics]
        self.shares = shares(graph, early)
        for layer in early:
            self._add_statistics(layer)

    def read_outside(self, segment: str, layer: Layer) -> frozenset[str]:
        """Outputs of a segment's layers, or of a layer on its own, that others read."""
        names = self._members.get(segment, (layer.name,))
        if names not in self._outside:
            layers = [self.graph.layers[self.layer_index[n]] for n in names]
            self._outside[names] = read_outside(self.graph, self._consumers, layers)
        return self._outside[names]

    def _add_tensor(self, tensor: Tensor) -> None:
        planned = self.tensor_plans[tensor.name]
        layout = Layout(planned.block, planned.padded)
        index = self.builder.tensor(tensor.name, tensor.kind, tensor.shape, planned.element_bytes, layout)
        self.ids[tensor.name] = index
        if planned.home == "dram" or planned.loaded:
            tracked = tensor.kind not in ("weight", "input")
            buffer = self.builder.dram_buffer(index, planned.size_bytes, tracked=tracked)
            (self._waiting if planned.loaded else self.homes)[tensor.name] = buffer
        elif tensor.kind == "input":  # left in SRAM by whatever ran before
            self.open_output(tensor.name)

    def _add_statistics(self, norm: Layer) -> None:
        """Sums that are taken early: a tensor that lives in the SRAM from the first layer that adds to it."""
        name, shape = statistics_tensor(norm.name), statistics_shape(self.graph, norm)
        (slot,) = (s for s in self.layer_plans[norm.name].slots if s.name == "stats")
        self.internal_tensor(name, shape, STATS_BYTES)
        self.tensor_plans[name] = TensorPlan(
            name=name, home="sram", element_bytes=STATS_BYTES, address=slot.addresses[0], size_bytes=slot.slot_bytes
        )  # fmt: skip
        if not {p.tensor for p in norm.operands[0].parts} & {x.output for x in self.graph.layers}:
            self.open_output(name)  # left in SRAM by whatever ran before

    def bring_inputs(self, layer: Layer) -> None:
        """Load the layer's resident inputs into their places, unless an earlier layer did."""
        for name in dict.fromkeys(layer.reads()):
            if name in self._waiting:
                source = self.builder.whole(self._waiting.pop(name))
                self.open_output(name)
                place = self.builder.whole(self.homes[name])
                self.builder.command(
                    LOAD, self.dma_gang(0), layer=self.layer_id(layer), role=ROLE["other"], reads=[(0, source)], writes=[(0, place)],
                )  # fmt: skip

    def internal_tensor(self, name: str, shape: Shape4, element_bytes: int) -> int:
        """Index of a tensor that only this Program knows (an ungated product, norm statistics), made on first use."""
        if name not in self.ids:
            self.ids[name] = self.builder.tensor(name, "state", shape, element_bytes, PLAIN)
        return self.ids[name]

    # ---- names to numbers --------------------------------------------------------------------------------------

    def layer_id(self, layer: Layer) -> int:
        """Program index of a layer."""
        return self.layer_index[layer.name]

    def precision(self, layer: Layer) -> Precision:
        """The precision that the plan gives a layer."""
        return PRECISIONS[self.layer_plans[layer.name].precision]

    def compute_gang(self, layer: Layer) -> int:
        """The tensor-engine gang of a product layer."""
        planned = self.layer_plans[layer.name]
        return self._gang_index["tensor", _each(planned)]

    def vector_gang(self) -> int:
        """All vector engines together."""
        unit = self.npu.vector_engine
        return self._gang_index["vector", tuple((unit.kind, i) for i in range(unit.count))]

    def dma_gang(self, purpose: int) -> int:
        """DMA channel for a purpose (0 activations, 1 weights, 2 stores), as far as there are channels."""
        channel = purpose % self.npu.dma.channels
        return self._gang_index["dma", (("dma", channel),)]

    # ---- places ------------------------------------------------------------------------------------------------

    def is_resident(self, tensor: str) -> bool:
        """Whether the tensor lives in SRAM between layers."""
        return self.tensor_plans[tensor].home == "sram"

    def home(self, box: TensorBox) -> Box:
        """The box in the tensor's own buffer (SRAM if resident, else DRAM)."""
        return Box(self.homes[box.tensor], box.offset, box.shape)

    def shape(self, tensor: str) -> Shape4:
        """Shape of a tensor of the graph, or of one that only this Program knows."""
        return self.builder.tensors[self.ids[tensor]][2]

    def open_output(self, tensor: str) -> None:
        """Give a resident tensor its SRAM place; called when its layer starts."""
        planned = self.tensor_plans[tensor]
        if planned.home == "sram":
            shape = self.shape(tensor)
            self.homes[tensor] = self.builder.sram_buffer(
                self.ids[tensor], planned.address, planned.size_bytes, (0, 0, 0, 0), shape
            )

    def box_bytes(self, box: TensorBox) -> int:
        """Aligned SRAM bytes of a box."""
        planned = self.tensor_plans[box.tensor]
        size = stored_bytes(box.shape, Layout(planned.block, planned.padded), planned.element_bytes)
        return aligned(size, self._alignment)

    def place(self, boxes: Sequence[TensorBox], address: int, slot: int) -> tuple[Box, ...]:
        """SRAM buffers for boxes, one after the other from `address`."""
        placed = []
        for box in boxes:
            size = self.box_bytes(box)
            buffer = self.builder.sram_buffer(
                self.ids[box.tensor], address, size, box.offset, box.shape, slot
            )
            placed.append(Box(buffer, box.offset, box.shape))
            address += size
        return tuple(placed)

    # ---- moving ------------------------------------------------------------------------------------------------

    def fetch(self, ring: Ring | None, key: Hashable, boxes: Sequence[TensorBox], layer: int, role: str, *, purpose: int = 0,
              segment: int = -1, tile: int = -1) -> tuple[Box, ...]:  # fmt: skip
        """The boxes in SRAM: resident ones where they are, the others loaded into the ring (once per key)."""
        absent = [b for b in boxes if not self.is_resident(b.tensor)]
        loaded: tuple[Box, ...] = ()
        if absent:
            assert ring is not None, f"no slot was planned for {absent[0].tensor}"

            def fill(address: int, slot: int) -> tuple[Box, ...]:
                placed = self.place(absent, address, slot)
                self.builder.command(
                    LOAD, self.dma_gang(purpose), layer=layer, role=ROLE[role], segment=segment, tile=tile,
                    reads=[(i, self.home(b)) for i, b in enumerate(absent)],
                    writes=[(i, p) for i, p in enumerate(placed)],
                )  # fmt: skip
                return placed

            loaded = ring.get(key, fill)
        found = iter(loaded)
        return tuple(self.home(b) if self.is_resident(b.tensor) else next(found) for b in boxes)

    def store(
        self, source: Box, target: TensorBox, layer: int, role: str, *, segment: int = -1, tile: int = -1
    ) -> None:
        """Write a finished piece to the tensor's home in DRAM."""
        self.builder.command(
            STORE, self.dma_gang(2), layer=layer, role=ROLE[role], segment=segment, tile=tile,
            reads=[(0, source)], writes=[(0, self.home(target))],
        )  # fmt: skip


class Feed:
    """Where the commands of one layer find their operands and put their results: resident tensors at home, all else in rings."""

    def __init__(self, low: Lowering, layer: Layer, slots: Sequence[Slots], segment: int = -1) -> None:
        self.low, self.layer, self.segment = low, layer, segment
        self.index = low.layer_id(layer)
        self.rings = {s.name: Ring(s) for s in slots}

    def tile(self, number: int) -> int:
        """The tile that piece `number` belongs to."""
        return number

    def fetch(
        self, slot: str, key: Hashable, boxes: Sequence[TensorBox], role: str, *, purpose: int = 0, tile: int = -1
    ) -> tuple[Box, ...]:  # fmt: skip
        """Boxes of an operand in SRAM, loaded into the ring `slot` where they are not there already."""
        return self.low.fetch(
            self.rings.get(slot), key, boxes, self.index, role, purpose=purpose, segment=self.segment, tile=tile
        )  # fmt: skip

    def out(self, target: TensorBox, number: int) -> Box:
        """The place of a piece of the output."""
        if self.low.is_resident(target.tensor):
            return self.low.home(target)
        return self.place("out", number, target)

    def place(self, slot: str, key: Hashable, target: TensorBox) -> Box:
        """The place of a box in a ring."""
        return self.rings[slot].get(key, lambda address, number: self.low.place([target], address, number))[0]

    def finish(self, out: Box, target: TensorBox, role: str, number: int) -> None:
        """Add a finished piece to early statistics, store it unless its tensor stays in SRAM."""
        self.add_sums(out, self.tile(number))
        if not self.low.is_resident(target.tensor):
            self.low.store(out, target, self.index, role, segment=self.segment, tile=self.tile(number))

    def add_sums(self, piece: Box, tile: int) -> None:
        """Add a finished piece to the sums of the norms that have them taken where their input is made. The first begins with zeros."""
        low = self.low
        for share in low.shares.get(self.layer.output, ()):
            if share.tensor not in low.homes:
                low.open_output(share.tensor)
                zeros = each_sum(low.shape(share.tensor), low.homes[share.tensor])
                self._sum([], zeros, 2 * len(zeros), tile, flags=FLAG_FIRST)
            sums = share.box(piece, low.homes[share.tensor])
            self._sum([(0, piece), (8, sums)], [sums], prod(piece.shape), tile)

    def _sum(
        self, reads: Sequence[tuple[int, Box]], sums: Sequence[Box], elements: int, tile: int, *, flags: int = 0
    ) -> None:  # fmt: skip
        self.low.builder.command(
            VECTOR, self.low.vector_gang(), layer=self.index, role=ROLE["norm_stats"], segment=self.segment, tile=tile,
            function="group_norm_stats", reads=reads, writes=[(8, b) for b in sums], extents=(1, elements, 1, 1), flags=flags,
        )  # fmt: skip


def aligned(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def gangs_of(plan: Plan) -> tuple[tuple[Gang, ...], tuple[str, ...]]:
    """Every gang that the plan uses, and the names of all engine lanes."""
    npu = plan.npu
    vector, dma = npu.vector_engine.kind, "dma"
    counts = {
        **{e.kind: e.count for e in npu.tensor_engine},
        vector: npu.vector_engine.count,
        dma: npu.dma.channels,
    }
    used = sorted({_each(p) for p in plan.layers if vector not in p.engines})
    gangs = [
        *(_gang("tensor", engines) for engines in used),
        _gang("vector", [(vector, i) for i in range(npu.vector_engine.count)]),
        *(_gang("dma", [(dma, i)]) for i in range(npu.dma.channels)),
    ]
    return tuple(gangs), tuple(f"{unit}{i}" for unit, count in counts.items() for i in range(count))


def _each(planned: LayerPlan) -> tuple[tuple[str, int], ...]:
    """(kind, number) of each engine of a layer."""
    return tuple((unit, number) for unit, numbers in planned.engines.items() for number in numbers)


def _gang(kind: str, engines: Sequence[tuple[str, int]]) -> Gang:
    numbers: dict[str, list[int]] = {}
    for unit, number in engines:
        numbers.setdefault(unit, []).append(number)
    name = "+".join(f"{u}{n[0]}" if len(n) == 1 else f"{u}{n[0]}-{n[-1]}" for u, n in numbers.items())
    return Gang(name=name, kind=kind, engines=tuple(engines))
