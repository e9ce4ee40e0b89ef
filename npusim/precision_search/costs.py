"""What each option of each layer costs: time, DRAM bytes and energy, each at its own best tiling in a whole simulated network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npusim.cost import command_energy_pj, handover_ps, lane_operations, vector_ps
from npusim.graph import Graph
from npusim.hardware import Npu
from npusim.results import Profile

Floats = npt.NDArray[np.float64]
#: Order of a cost's entries: picoseconds, bytes, picojoules.
COSTS = ("latency_ps", "dram_bytes", "energy_pj")


def total_costs(found: Profile) -> Floats:
    """[3] costs of a simulated network."""
    energy = float(command_energy_pj(found.program, found.plan.npu).sum())
    return np.asarray([found.trace.makespan_ps, found.dram_bytes, energy], dtype=np.float64)


def layer_costs(found: Profile, layers: Sequence[str]) -> Floats:
    """[layers, 3] costs of each layer; they add up to the network's, casts included.

    A layer's time is by how much its commands move the end of all that was issued so far. What it prefetches behind others takes none.
    """
    program, index = found.program, {name: i for i, name in enumerate(layers)}
    owner = np.asarray([index.get(name, len(layers)) for name in program.layers])[program.commands.layer]
    end = np.maximum.accumulate(found.trace.end_ps)
    added = np.diff(end, prepend=0)
    columns = (added, found.work.dram_bytes, command_energy_pj(program, found.plan.npu))
    return np.stack([np.bincount(owner, c, len(layers) + 1)[: len(layers)] for c in columns], axis=1)


def cast_costs(graph: Graph, npu: Npu, tensor: str) -> Floats:
    """[3] costs of casting a tensor that lies in SRAM: vector work and a hand-over; estimated, since it depends on where it lies."""
    elements = graph.tensors[tensor].elements
    rate = lane_operations(npu, "cast")
    time = int(vector_ps(npu, npu.vector_engine.count, elements, rate)) + handover_ps(npu)
    return np.asarray([time, 0.0, elements * rate * npu.energy.vector_operation_pj])


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Costs of layers and casts, and the simulated networks they come from.

    Attributes:
        layers, options: rows and columns of `own`.
        own: [layers, options, 3].
        cast: tensor -> [3].
    """

    layers: tuple[str, ...]
    options: tuple[str, ...]
    own: Floats
    cast: Mapping[str, Floats]


def cost_table(graph: Graph, npu: Npu, uniform: Mapping[str, Profile]) -> CostTable:
    """Costs from one simulated network per option."""
    layers = tuple(x.name for x in graph.layers)
    own = np.stack([layer_costs(found, layers) for found in uniform.values()], axis=1)
    cast = {n: cast_costs(graph, npu, n) for n, t in graph.tensors.items() if t.kind != "weight"}
    return CostTable(layers=layers, options=tuple(uniform), own=own, cast=cast)
