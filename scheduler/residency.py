"""Which tensors stay in SRAM between layers: those that pay for the space they take from the layers they live through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from npusim.cost import dma_ps
from npusim.scheduler.pieces import Option
from npusim.scheduler.problem import Problem
from npusim.scheduler.tiles import Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Something that is scheduled as a whole: a layer, or the layers of a segment.

    Attributes:
        tensors: what it reads and writes (not what stays inside it), early statistics included.
        options: undominated ways to run it, given which of its tensors are in SRAM.
        segment: the segment that it is, if it is one.
    """

    name: str
    layers: tuple[str, ...]
    tensors: frozenset[str]
    options: Callable[[frozenset[str]], Sequence[Option]]
    segment: Segment | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A tensor that might stay: units from its producer (or, of an input, its first reader) to its last reader, and its size.

    `entry_ps` is what it costs to bring it there: one transfer of an input, nothing for what is made in SRAM.
    """

    tensor: str
    first: int
    last: int
    size_bytes: int
    entry_ps: int = 0


@dataclass(slots=True)
class _State:
    capacity: int
    slack: int
    resident: set[str] = field(default_factory=set)
    partners: Mapping[str, Sequence[tuple[str, bool]]] = field(default_factory=dict)
    used: list[int] = field(default_factory=list)
    cost: list[int] = field(default_factory=list)

    def budget(self, index: int, more: int) -> int:
        """Bytes left for the slots of a unit; where tensors stay, some slack is kept for the placement of addresses."""
        used = self.used[index] + more
        return self.capacity - used - (self.slack if used else 0)


def spans(problem: Problem, units: Sequence[Unit]) -> list[Span]:
    """Lifetimes of all intermediates that pass between units, of inputs that several units read, and of statistics, if taken early."""
    graph = problem.graph
    position = {layer: i for i, unit in enumerate(units) for layer in unit.layers}
    made = {layer.output: position[layer.name] for layer in graph.layers}
    readers: dict[str, list[int]] = {}
    for layer in graph.layers:
        for name in dict.fromkeys(layer.reads()):
            readers.setdefault(name, []).append(position[layer.name])
    found = []
    for name, tensor in graph.tensors.items():
        size, used = problem.tensor_bytes(name), sorted(readers.get(name, []))
        if name in problem.held:
            found.append(Span(name, 0, len(units) - 1, size))
        elif tensor.kind == "intermediate" and used and used[-1] > made[name]:
            found.append(Span(name, made[name], used[-1], size))
        elif tensor.kind == "input" and used and used[-1] > used[0]:
            found.append(Span(name, used[0], used[-1], size, int(dma_ps(problem.npu, size, 1))))
    for name, norm in problem.sums.items():
        makers = [made[p.tensor] for p in norm.operands[0].parts if p.tensor in made]
        first, last = (0, len(units) - 1) if name in problem.held else (min(makers), position[norm.name])
        found.append(Span(name, first, last, problem.tensor_bytes(name)))
    return found


def choose_resident(
    problem: Problem, units: Sequence[Unit], capacity_bytes: int, *, slack_bytes: int = 0
) -> tuple[frozenset[str], list[Option]] | int:
    """Resident tensors and the chosen option of each unit; or the index of the first unit that cannot run at all.

    Tensors are tried by length of life, shortest first, then largest first; each stays if the predicted time of all units that it
    touches or lives through falls. A skip tensor that would starve ten layers goes through DRAM.
    """
    state = _State(
        capacity=capacity_bytes, slack=slack_bytes, used=[problem.held_bytes] * len(units), partners=_partners(problem),
        resident=set(problem.held),
    )  # fmt: skip
    for index, unit in enumerate(units):
        option = _best(unit, problem.held & unit.tensors, state.budget(index, 0))
        if option is None:
            return index
        state.cost.append(option.cost_ps)
    for span in sorted(
        spans(problem, units), key=lambda s: (s.last - s.first, -s.size_bytes, s.first, s.tensor)
    ):
        if span.tensor not in problem.held:
            _try(state, units, span)
    chosen = []
    for index, unit in enumerate(units):
        option = _best(unit, frozenset(state.resident) & unit.tensors, state.budget(index, 0))
        assert option is not None
        chosen.append(option)
    return frozenset(state.resident), chosen


def _best(unit: Unit, resident: frozenset[str], budget_bytes: int) -> Option | None:
    return next((o for o in unit.options(resident) if o.sram_bytes <= budget_bytes), None)


def _partners(problem: Problem) -> dict[str, list[tuple[str, bool]]]:
    """Tensor -> those it may share a place with; the flag says whether at the start of its life (else at the end)."""
    found: dict[str, list[tuple[str, bool]]] = {}
    for output, operand in problem.in_place.items():
        found.setdefault(output, []).append((operand, True))
        found.setdefault(operand, []).append((output, False))
    return found


def _growth(state: _State, span: Span) -> list[int]:
    """More bytes in use at each unit of the span: none where the tensor takes over or hands on a place."""
    growth = [span.size_bytes] * (span.last - span.first + 1)
    for partner, at_start in state.partners.get(span.tensor, ()):
        if partner in state.resident:
            growth[0 if at_start else -1] = 0
    return growth


def _try(state: _State, units: Sequence[Unit], span: Span) -> None:
    """Keep the tensor in SRAM if that shortens the units of its span."""
    resident = frozenset(state.resident | {span.tensor})
    costs = []
    before, after = 0, span.entry_ps
    growth = _growth(state, span)
    for index, more in zip(range(span.first, span.last + 1), growth, strict=True):
        budget = state.budget(index, more)
        option = _best(units[index], resident & units[index].tensors, budget) if budget >= 0 else None
        if option is None:
            return
        costs.append(option.cost_ps)
        before += state.cost[index]
        after += option.cost_ps
    if after < before:
        state.resident.add(span.tensor)
        state.cost[span.first : span.last + 1] = costs
        for offset, index in enumerate(range(span.first, span.last + 1)):
            state.used[index] += growth[offset]
