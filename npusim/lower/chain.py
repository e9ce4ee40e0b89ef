"""Row chains: which rows of each member a tile makes, when, and how many tiles of each result are alive at once.

A chain is a set of layers whose output rows depend on a few input rows only (convolutions, linear maps, norms of rows, softmax,
attention over keys that are made elsewhere, GroupNorm's second pass). The last member's rows are cut into tiles; each member makes,
for each tile, the rows that its consumers need and that it has not made yet, so that a halo is kept and nothing is computed twice.

With two or more tiles in flight a member whose input comes from another kind of engine works one tile behind: its *stage*. Then
in-order queues overlap although the tiles of one member follow one another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from npusim.graph import Graph, Layer
from npusim.lower.geometry import row_unit, rows_reader
from npusim.ops import OPS

Rows = tuple[int, int]


@dataclass(frozen=True)
class Member:
    """One layer of a chain.

    Attributes:
        stage: how many tiles it is behind the first members.
        rows: output rows that it makes for each tile of an image (possibly none).
        places: tiles of its output that are alive at once, if the output has no home in SRAM.
        stored: whether a layer outside the chain, or the model's user, reads its output.
    """

    layer: Layer
    stage: int
    rows: tuple[Rows, ...]
    places: int
    stored: bool

    @cached_property
    def tallest(self) -> Rows:
        """The rows of the tile in which most are made."""
        return max(self.rows, key=lambda r: r[1] - r[0])

    @cached_property
    def most_read(self) -> Rows:
        """The rows of the first operand that are read for the tile that reads most."""
        need = rows_reader(self.layer)
        return max({need(*r) for r in self.rows if r[0] < r[1]}, key=lambda r: (r[1] - r[0], r))

    @cached_property
    def heights(self) -> Mapping[int, int]:
        """How many tiles make so many rows, for each number of rows (tiles that make none left out)."""
        found: dict[int, int] = {}
        for low, high in self.rows:
            if low < high:
                found[high - low] = found.get(high - low, 0) + 1
        return found


@dataclass(frozen=True, slots=True)
class Chain:
    """Members in execution order; tiles per image; images."""

    members: tuple[Member, ...]
    tiles: int
    images: int

    def schedule(self) -> Iterator[tuple[Member, int, int]]:
        """(member, image, tile) in the order in which commands are issued."""
        total = self.tiles * self.images
        behind = max(m.stage for m in self.members)
        for step in range(total + behind):
            for member in self.members:
                number = step - member.stage
                if 0 <= number < total:
                    image, tile = divmod(number, self.tiles)
                    if member.rows[tile][0] < member.rows[tile][1]:
                        yield member, image, tile


def starts_on_tensor(layer: Layer) -> bool:
    """Whether the first command of a layer runs on a tensor engine."""
    return OPS[layer.op].streams == "product"


def ends_on_tensor(layer: Layer) -> bool:
    """Whether the last command of a layer runs on a tensor engine: a product without a vector epilogue."""
    return starts_on_tensor(layer) and all(e.function == "scale" for e in layer.epilogue)


def chain_of(
    graph: Graph, names: Sequence[str], rows: int, *, depth: int, outside: Collection[str] | None = None
) -> Chain:
    """The geometry of a chain.

    Args:
        names: members in execution order.
        rows: output rows of the last member in one tile.
        depth: 1: every member finishes a tile before the next begins; 2: stages.
        outside: outputs that are read outside the chain, if known.
    """
    members = set(names)
    layers = [x for x in graph.layers if x.name in members]
    inside = {x.output: x for x in layers}
    readers = _readers(graph, layers)
    if outside is None:
        outside = read_outside(graph, graph.consumers(), layers)
    total = graph.tensors[layers[-1].output].shape[2]
    tiles = -(-total // rows)
    made = _rows_made(graph, layers, readers, rows, tiles)
    stages = _stages(layers, inside, depth)
    found = tuple(
        Member(
            x,
            stages[x.name],
            made[x.name],
            _places(x, readers[x.name], made, stages, depth),
            x.output in outside,
        )
        for x in layers
    )
    return Chain(found, tiles, graph.tensors[layers[-1].output].shape[0])


def _needed(layer: Layer, operand: int) -> Callable[[int, int], Rows]:
    """Rows of an operand that output rows `[low, high)` read."""
    return rows_reader(layer) if operand == 0 else (lambda low, high: (low, high))


def _readers(graph: Graph, layers: Sequence[Layer]) -> dict[str, list[tuple[Layer, int]]]:
    """Member -> the members that read its output, with the operand's number."""
    found: dict[str, list[tuple[Layer, int]]] = {x.name: [] for x in layers}
    made = {x.output: x.name for x in layers}
    for layer in layers:
        for number, operand in enumerate(layer.operands):
            for part in operand.parts:
                if part.tensor in made:
                    found[made[part.tensor]].append((layer, number))
    return found


def read_outside(
    graph: Graph, consumers: Mapping[str, Sequence[int]], layers: Sequence[Layer]
) -> frozenset[str]:
    """Outputs of some layers that another layer, or the model's user, reads."""
    inside, every = {x.name for x in layers}, graph.layers
    return frozenset(
        x.output
        for x in layers
        if graph.tensors[x.output].kind == "output"
        or any(every[i].name not in inside for i in consumers[x.output])
    )


def _rows_made(
    graph: Graph,
    layers: Sequence[Layer],
    readers: Mapping[str, Sequence[tuple[Layer, int]]],
    rows: int,
    tiles: int,
) -> dict[str, tuple[Rows, ...]]:
    """New output rows of each member for each tile, from the last member backwards."""
    made: dict[str, tuple[Rows, ...]] = {}
    last = graph.tensors[layers[-1].output].shape[2]
    for layer in reversed(layers):
        total, unit = graph.tensors[layer.output].shape[2], row_unit(layer)
        cut, done = [], 0
        reading = [(made[c.name], _needed(c, n)) for c, n in readers[layer.name]]
        for tile in range(tiles):
            wanted = [need(*theirs[tile])[1] for theirs, need in reading if theirs[tile][0] < theirs[tile][1]]
            if not reading:
                wanted = [-(-min(last, rows * (tile + 1)) * total // last)]
            if tile == tiles - 1:
                wanted.append(total)  # rows that nobody reads too: the network asks for them
            high = min(total, -(-max([done, *wanted]) // unit) * unit)
            cut.append((done, high))
            done = high
        made[layer.name] = tuple(cut)
    return made


def _stages(layers: Sequence[Layer], inside: Mapping[str, Layer], depth: int) -> dict[str, int]:
    stages: dict[str, int] = {}
    for layer in layers:
        producers = [inside[t] for t in dict.fromkeys(layer.reads()) if t in inside]
        stages[layer.name] = max(
            (stages[p.name] + int(depth > 1 and ends_on_tensor(p) != starts_on_tensor(layer)) for p in producers),
            default=0,
        )  # fmt: skip
    return stages


def _places(
    layer: Layer,
    readers: Sequence[tuple[Layer, int]],
    made: Mapping[str, tuple[Rows, ...]],
    stages: Mapping[str, int],
    depth: int,
) -> int:
    """Most tiles of a result between the step that makes them and the last step that reads them."""
    own = made[layer.name]
    most = 1
    for reader, number in readers:
        behind = stages[reader.name] - stages[layer.name]
        need = _needed(reader, number)
        oldest = 0
        for tile, (low, high) in enumerate(made[reader.name]):
            if low < high:
                first = need(low, high)[0]
                while own[oldest][1] <= first:
                    oldest += 1
                most = max(most, tile + behind - oldest + 1)
    return max(most, depth)
