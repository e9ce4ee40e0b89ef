"""The choice of a precision for every layer as numbers: costs and errors of options, of casts between layers, of whole assignments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npusim.dtypes import PRECISIONS
from npusim.graph import Graph
from npusim.ops import index_tensors
from npusim.precision_search.costs import CostTable
from npusim.precisions import bound_together
from npusim.sensitivity.errors import Sensitivity, cast_edges

Floats = npt.NDArray[np.float64]
#: An assignment: the index of an option for every choice.
Picks = tuple[int, ...]
#: Objectives of an assignment, in this order.
OBJECTIVES = ("error", "latency_ps", "dram_bytes", "energy_pj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A tensor that passes from one choice to another.

    Attributes:
        writer, reader: choices.
        tensor: its name; one cast per type serves all its readers.
        error: activation type -> noise when the tensor is cast to that type for this reader.
    """

    writer: int
    reader: int
    tensor: str
    error: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """Everything that is chosen between; additive but for casts.

    Attributes:
        groups: layers of each choice: they share a precision.
        options: names of precisions.
        own: [choices, options, 4] objectives of each option (see `OBJECTIVES`); infinite where it cannot be computed.
        edges: tensors between different choices.
        cast: tensor -> [4] objectives of one cast (its error is the edges').
    """

    groups: tuple[tuple[str, ...], ...]
    options: tuple[str, ...]
    own: Floats
    edges: tuple[Edge, ...]
    cast: Mapping[str, Floats]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Activation type of each option."""
        return tuple(PRECISIONS[o].activation for o in self.options)

    def total(self, picks: Sequence[int]) -> Floats:
        """[4] objectives of an assignment."""
        kinds = self.kinds
        found: Floats = self.own[np.arange(len(picks)), list(picks)].sum(axis=0)
        casts: set[tuple[str, str]] = set()
        for edge in self.edges:
            kind = kinds[picks[edge.reader]]
            if kinds[picks[edge.writer]] != kind:
                found[0] += edge.error.get(kind, 0.0)
                casts.add((edge.tensor, kind))
        for tensor, _ in sorted(casts):
            found += self.cast[tensor]
        return found

    def uniform(self, option: str) -> Picks:
        """The assignment that gives every layer one precision."""
        return (self.options.index(option),) * len(self.groups)

    def precisions(self, picks: Sequence[int]) -> dict[str, str]:
        """Layer -> precision."""
        return {n: self.options[p] for names, p in zip(self.groups, picks, strict=True) for n in names}


def choices_of(graph: Graph, errors: Sensitivity, costs: CostTable) -> Choices:
    """Choices of a network from what its layers lose and cost."""
    groups = tuple(bound_together(graph))
    place = {name: i for i, names in enumerate(groups) for name in names}
    options = costs.options
    column = [errors.options.index(o) for o in options]
    own = np.zeros((len(groups), len(options), len(OBJECTIVES)))
    for row, name in enumerate(costs.layers):
        own[place[name], :, 0] += errors.own[errors.layers.index(name), column]
        own[place[name], :, 1:] += costs.own[row]
    edges = []
    indices = index_tensors(graph)
    for (layer, tensor), writer in cast_edges(graph).items():
        shares = errors.cast.get((layer, tensor), {})
        if writer is None:  # an input of the model is stored in its reader's type
            own[place[layer], :, 0] += [shares.get(PRECISIONS[o].activation, 0.0) for o in options]
        elif place[writer] != place[layer] and tensor not in indices:
            edges.append(Edge(writer=place[writer], reader=place[layer], tensor=tensor, error=shares))
    cast = {t: np.concatenate([[0.0], c]) for t, c in costs.cast.items()}
    return Choices(groups=groups, options=options, own=own, edges=tuple(edges), cast=cast)
