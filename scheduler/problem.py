"""What is being planned, and the two possible answers: decisions, or why it cannot be done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal, cast

from npusim.arrays import Array
from npusim.cost import Engines, arrays_of
from npusim.dtypes import PRECISIONS, Precision
from npusim.graph import Coverage, Graph, Layer
from npusim.hardware import Npu
from npusim.layout import PLAIN, Layout, stored_bytes
from npusim.lower.chain import read_outside
from npusim.lower.context import aligned
from npusim.lower.fragments import Fragments
from npusim.lower.slots import Storage, element_bytes_of
from npusim.lower.statistics import (
    STATS_BYTES,
    Share,
    early_norms,
    shares,
    statistics_shape,
    statistics_tensor,
)
from npusim.ops import OPS
from npusim.precisions import Precisions
from npusim.units import format_bytes

Policy = Literal["serial", "decoupled"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A network on an NPU under one policy.

    Attributes:
        precision: of every layer that `precisions` does not name.
        precisions: layer -> precision, of a network whose casts are layers (see `npusim.precisions`).
        layouts: layout of each tensor that is not plain.
        units: product layer -> the tensor engines that share it.
        shared: whether tensor engines of two kinds may share a product.
        apart: attention segments that are not joined though they could be.
        chains: layers that run joined, when the last of them is due.
        sums_early: whether the sums of norms may be taken where their input is made: then they are tensors that may stay in SRAM.
        whole: the network that this is a part of, if it is one.
        held: tensors that a part finds in SRAM, and those that it leaves there.
        memo: results that equal structures share, for as long as this network is being planned.
        fragments: commands that equal units share.
    """

    graph: Graph
    npu: Npu
    precision: str
    policy: Policy
    layouts: Mapping[str, Layout]
    units: Mapping[str, Engines]
    precisions: Precisions = field(default_factory=dict)
    shared: bool = False
    chains: tuple[tuple[str, ...], ...] = ()
    sums_early: bool = False
    apart: frozenset[str] = frozenset()
    whole: Problem | None = None
    held: frozenset[str] = frozenset()
    memo: dict[object, object] = field(default_factory=dict, compare=False, repr=False)
    fragments: Fragments = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def element_bytes(self) -> Mapping[str, int]:
        """Bytes per element of each tensor."""
        if self.whole is not None:
            return self.whole.element_bytes
        return element_bytes_of(
            self.graph, {x.name: self.precision_of(x.name).name for x in self.graph.layers}
        )

    def precision_of(self, layer: str) -> Precision:
        """Precision of a layer."""
        return PRECISIONS[self.precisions.get(layer, self.precision)]

    def arrays(self, layer: str) -> Sequence[Array]:
        """The multiplier arrays that share a product layer."""
        engines = self.units[layer]
        if ("arrays", engines) not in self.memo:
            self.memo["arrays", engines] = arrays_of(self.npu, engines)
        return cast("Sequence[Array]", self.memo["arrays", engines])

    @cached_property
    def everything_fits(self) -> bool:
        """Whether all tensors together fit the SRAM."""
        if self.whole is not None:
            return self.whole.everything_fits
        return sum(map(self.tensor_bytes, self.graph.tensors)) <= self.npu.sram.sram_bytes

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        """Layers by name."""
        return {x.name: x for x in self.graph.layers}

    @cached_property
    def sums(self) -> Mapping[str, Layer]:
        """Tensor of early statistics -> its norm."""
        norms = early_norms(self.graph) if self.whole is None else self.whole.sums.values()
        inside = [x for x in norms if x.name in self.by_name]
        return {statistics_tensor(x.name): x for x in inside} if self.sums_early else {}

    @cached_property
    def shares(self) -> Mapping[str, Sequence[Share]]:
        """Tensor -> its shares of all statistics that can be taken early."""
        return shares(self.graph, self.sums.values()) if self.whole is None else self.whole.shares

    def sums_of(self, names: Iterable[str]) -> frozenset[str]:
        """Early statistics that these layers add to or read."""
        layers = [self.by_name[n] for n in names]
        added = {s.tensor for x in layers for s in self.shares.get(x.output, ())}
        return frozenset(added | ({statistics_tensor(x.name) for x in layers} & self.sums.keys()))

    @cached_property
    def consumers(self) -> Mapping[str, list[int]]:
        """Tensor -> indices of the layers that read it."""
        return self.graph.consumers()

    def read_outside(self, names: Sequence[str]) -> frozenset[str]:
        """Outputs of these layers that another layer, or the model's user, reads."""
        if self.whole is not None:
            return self.whole.read_outside(names)
        return read_outside(self.graph, self.consumers, [self.by_name[n] for n in names])

    @cached_property
    def turn(self) -> Sequence[int]:
        """When each layer runs: its place in the graph's order, or that of the last member of its chain."""
        index = {x.name: i for i, x in enumerate(self.graph.layers)}
        turns = list(range(len(index)))
        for chain in self.chains:
            for name in chain:
                turns[index[name]] = index[chain[-1]]
        return turns

    @cached_property
    def in_place(self) -> Mapping[str, str]:
        """Output -> the operand whose SRAM place it may take: same storage, and dead once the layer has run.

        A residual sum may overwrite its residual (the product is staged first); a norm or an elementwise layer its input.
        """
        if self.whole is not None:
            inside = self.graph.tensors
            return {o: d for o, d in self.whole.in_place.items() if o in inside and d in inside}
        producers, turn = self.graph.producers(), self.turn
        found: dict[str, str] = {}
        for index, layer in enumerate(self.graph.layers):
            name = _overwritable(layer)
            if name is None or self.graph.tensors[name].kind != "intermediate":
                continue
            others = [producers[name], *(i for i in self.consumers[name] if i != index)]
            if any(turn[i] >= turn[index] for i in others):
                continue
            same = self.graph.tensors[name].shape == self.graph.tensors[layer.output].shape
            if (
                same
                and self.element_bytes[name] == self.element_bytes[layer.output]
                and self.layouts.get(name) == self.layouts.get(layer.output)
                and list(layer.reads()).count(name) == 1
            ):
                found[layer.output] = name
        return found

    def part(self, names: Sequence[str], resident: frozenset[str]) -> Problem:
        """Some layers on their own, with the boundary state that they have when these tensors are resident.

        Their operands are its inputs; what another layer reads is its output, or stays in SRAM.
        """
        layers = tuple(self.by_name[n] for n in names)
        made = {x.output for x in layers}
        tensors = {}
        for layer in layers:
            for name in (*layer.reads(), layer.output):
                outside = name not in made and self.graph.tensors[name].kind != "weight"
                tensors[name] = replace(
                    self.graph.tensors[name], kind="input" if outside else self.graph.tensors[name].kind
                )
        for name in self.read_outside(names):
            tensors[name] = replace(tensors[name], kind="intermediate" if name in resident else "output")
        graph = Graph(
            name=layers[-1].name, tensors=tensors, layers=layers, coverage=Coverage(nodes=0, modelled_nodes=0, unmodelled={}),
            model_sha256="",
        )  # fmt: skip
        inside = {statistics_tensor(x.name) for x in layers} & self.sums.keys()
        held = frozenset(t for t in (*tensors, *inside) if t in resident)
        return replace(self, graph=graph, chains=(), whole=self.whole or self, held=held)

    def inside(self, names: Sequence[str]) -> frozenset[str]:
        """Outputs of these layers that none but they read."""
        return frozenset(self.by_name[n].output for n in names) - self.read_outside(names)

    @cached_property
    def held_bytes(self) -> int:
        """SRAM bytes of what a part of a network is given there; a result in the place of its operand counts once."""
        before = {t: self.in_place.get(t, t) for t in self.held}
        return sum(self.tensor_bytes(t) for t, b in before.items() if b == t or b not in self.held)

    def storage(self, resident: frozenset[str]) -> Storage:
        """Sizes of pieces when these tensors live in SRAM."""
        return Storage(
            graph=self.graph,
            resident=resident,
            layout=lambda name: self.layouts.get(name, PLAIN),
            element_bytes=lambda name: self.element_bytes[name],
            alignment=self.npu.sram.alignment_bytes,
            in_place=frozenset(t for t in resident if self.in_place.get(t) in resident),
        )

    def tensor_bytes(self, name: str) -> int:
        """Aligned stored bytes of a whole tensor: the place that it takes."""
        return aligned(self.moved_bytes(name), self.npu.sram.alignment_bytes)

    def moved_bytes(self, name: str) -> int:
        """Stored bytes of a whole tensor without alignment: what moving it once costs."""
        if name in self.sums:
            return prod(statistics_shape(self.graph, self.sums[name])) * STATS_BYTES
        shape = self.graph.tensors[name].shape
        return stored_bytes(shape, self.layouts.get(name, PLAIN), self.element_bytes[name])


def _overwritable(layer: Layer) -> str | None:
    """The one operand that a layer's output may overwrite piece by piece, or None."""
    if layer.attributes.get("gated"):
        return None  # the gate writes its output before the residual is read
    if OPS[layer.op].streams == "product":
        operands = [
            layer.operands[e.operand] for e in layer.epilogue if e.function == "add" and e.operand >= 0
        ]
        operands = [o for o in operands if o.role == "residual"]
    else:
        operands = [layer.operands[0]] if layer.op in ("group_norm", "layer_norm", "elementwise") else []
    if len(operands) != 1 or len(operands[0].parts) != 1:
        return None
    return operands[0].parts[0].tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """Why nothing fits: demand against capacity, in bytes, with the three largest contributors and what would help."""

    where: str
    demand_bytes: int
    capacity_bytes: int
    contributors: tuple[tuple[str, int], ...]
    levers: tuple[str, ...]

    @property
    def gap_bytes(self) -> int:
        """Missing bytes."""
        return self.demand_bytes - self.capacity_bytes

    def sentence(self) -> str:
        """The whole reason as one sentence."""
        largest = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.contributors[:3])
        return (
            f"{self.where}: needs {self.demand_bytes} bytes of SRAM, {self.capacity_bytes} are there "
            f"({self.gap_bytes} too few; largest: {largest}); {' or '.join(self.levers)}"
        )
