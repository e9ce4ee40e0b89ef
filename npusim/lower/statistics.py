"""Where the sums of a GroupNorm are taken: by the norm itself, in a first pass over its input, or by the layers that make its input.

The latter are *early*: every finished piece of that input is still in SRAM when it is added, and the norm reads its input once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from npusim.graph import Graph, Layer, Shape4
from npusim.lower.builder import Box

#: Sum and sum of squares of a group, in 64 bits: exact for integers, so that the cut does not change the result.
STATS_BYTES = 8


@dataclass(frozen=True, slots=True)
class Share:
    """One tensor's share of a norm's sums.

    Attributes:
        norm: the layer.
        first: column of the norm's input at which the tensor begins.
        width: columns of a group.
        elements: how many it has.
    """

    norm: str
    first: int
    width: int
    elements: int

    @property
    def tensor(self) -> str:
        """Name of the tensor that holds the sums."""
        return statistics_tensor(self.norm)

    def box(self, piece: Box, home: int) -> Box:
        """The sums, in buffer `home`, of all groups that a piece has columns of (in [images, 1, groups, 2])."""
        low = self.first + piece.offset[3]
        groups = low // self.width, -(-(low + piece.shape[3]) // self.width)
        return Box(home, (piece.offset[0], 0, groups[0], 0), (piece.shape[0], 1, groups[1] - groups[0], 2))


def statistics_tensor(norm: str) -> str:
    """Name of the tensor of a norm's sums."""
    return f"{norm}:stats"


def statistics_shape(graph: Graph, norm: Layer) -> Shape4:
    """Sums and sums of squares of each group of each image."""
    return (graph.tensors[norm.output].shape[0], 1, int(norm.attributes["groups"]), 2)


def each_sum(shape: Shape4, home: int) -> list[Box]:
    """A box for each group of each image: what a piece adds to one of them need not wait for the others."""
    return [Box(home, (b, 0, g, 0), (1, 1, 1, shape[3])) for b in range(shape[0]) for g in range(shape[2])]


def first_column(norm: Layer, tensor: str, column: int) -> int:
    """Where a column of one of its parts lies in a norm's input.

    Raises:
        KeyError: the norm does not read it.
    """
    position = 0
    for part in norm.operands[0].parts:
        if part.tensor == tensor and part.start <= column < part.start + part.size:
            return position + column - part.start
        position += part.size
    raise KeyError(f"'{norm.name}' reads no column {column} of '{tensor}'")


def early_norms(graph: Graph) -> tuple[Layer, ...]:
    """Norms whose sums can be taken early, in execution order.

    Each part of the input must be the whole output of another layer that makes each element once, in pieces of whole features: no
    input of the network, and no result of an attention (its tiles are heads).
    """
    made = {x.output: x for x in graph.layers}
    return tuple(x for x in graph.layers if x.op == "group_norm" and _made_elsewhere(graph, x, made))


def _made_elsewhere(graph: Graph, norm: Layer, made: Mapping[str, Layer]) -> bool:
    parts, shape = norm.operands[0].parts, graph.tensors[norm.output].shape
    names = [p.tensor for p in parts]
    return len(set(names)) == len(names) and all(
        p.tensor in made
        and not made[p.tensor].group
        and graph.tensors[p.tensor].shape == (*shape[:3], p.size)
        for p in parts
    )


def shares(graph: Graph, early: Iterable[Layer]) -> dict[str, tuple[Share, ...]]:
    """Tensor -> its shares of the sums of these norms."""
    found: dict[str, tuple[Share, ...]] = {}
    for norm in early:
        operand = norm.operands[0]
        width = operand.cols // int(norm.attributes["groups"])
        for part in operand.parts:
            elements = prod(graph.tensors[norm.output].shape[:3]) * part.size
            share = Share(norm.name, first_column(norm, part.tensor, part.start), width, elements)
            found[part.tensor] = (*found.get(part.tensor, ()), share)
    return found
