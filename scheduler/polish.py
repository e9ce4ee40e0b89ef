"""Small networks: plans that differ from a given one in a single decision, or in two (two units in a row, or a tensor and a unit)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product

from npusim.scheduler.assemble import Decisions
from npusim.scheduler.kinds import KINDS, paper_rule, predicted
from npusim.scheduler.pieces import Option, every_option
from npusim.scheduler.planner import Planned, addresses, resident_bytes
from npusim.scheduler.problem import Problem
from npusim.scheduler.request import Request
from npusim.scheduler.residency import Unit, spans


def neighbours(planned: Planned, request: Request) -> Iterator[Decisions]:
    """Every plan that runs one unit in another way, and every plan that keeps one tensor more or less in SRAM."""
    problem, units, decided = planned.problem, planned.units, planned.decided
    yield from _one_way_changed(planned, request, decided.resident, decided.options)
    for resident, chosen in _moved(planned, request):
        yield from _placed(problem, units, resident, chosen)


def moves(planned: Planned, request: Request) -> Iterator[Decisions]:
    """Every plan that keeps one tensor more or less in SRAM and runs one unit otherwise than the closed form then prefers."""
    for resident, chosen in _moved(planned, request):
        yield from _one_way_changed(planned, request, resident, chosen)


def _moved(planned: Planned, request: Request) -> Iterator[tuple[frozenset[str], list[Option]]]:
    """One tensor more or less in SRAM, and what the closed form then prefers, where everything fits."""
    for span in spans(planned.problem, planned.units):
        resident = planned.decided.resident ^ {span.tensor}
        chosen = _chosen(planned.problem, planned.units, resident, request)
        if chosen is not None:
            yield resident, chosen


def _one_way_changed(
    planned: Planned, request: Request, resident: frozenset[str], options: Sequence[Option]
) -> Iterator[Decisions]:
    for index, others in enumerate(_ways(planned, request, resident, options)):
        for option in others:
            changed = [*options[:index], option, *options[index + 1 :]]
            yield from _placed(planned.problem, planned.units, resident, changed)


def pairs(planned: Planned, request: Request) -> Iterator[Decisions]:
    """Every plan that runs two units in a row in other ways."""
    decided = planned.decided
    ways = _ways(planned, request, decided.resident, decided.options)
    for index, both in enumerate(pairwise(ways)):
        for first, second in product(*both):
            changed = [*decided.options[:index], first, second, *decided.options[index + 2 :]]
            yield from _placed(planned.problem, planned.units, decided.resident, changed)


def _ways(
    planned: Planned, request: Request, resident: frozenset[str], options: Sequence[Option]
) -> list[list[Option]]:
    """For each unit the other ways to run it that fit beside what stays in SRAM; none where a count of tiles was asked for."""
    problem, units = planned.problem, planned.units
    found = []
    for unit, room, chosen in zip(units, _room(problem, units, resident), options, strict=True):
        counted = unit.segment is not None and request.count(unit.name) is not None
        every = [] if counted else _every(problem, unit, resident & unit.tensors, room)
        found.append([o for o in every if o.sram_bytes <= room and _way(o) != _way(chosen)])
    return found


def _room(problem: Problem, units: Sequence[Unit], resident: frozenset[str]) -> list[int]:
    """Bytes of SRAM that each unit may use."""
    return [problem.npu.sram.sram_bytes - used for used in resident_bytes(problem, units, resident)]


def _every(problem: Problem, unit: Unit, resident: frozenset[str], room_bytes: int) -> list[Option]:
    """All ways to run a unit, by predicted time; the paper's rule is that of the room which is left."""
    if unit.segment is None:
        found = every_option(problem, problem.by_name[unit.name], resident)
    else:
        rule = paper_rule(problem, unit.segment, room_bytes, resident)
        tiles = [*KINDS[unit.segment.kind].tilings(problem, unit.segment), *([] if rule is None else [rule])]
        found = predicted(problem, unit.segment, list(dict.fromkeys(tiles)), resident)
    return sorted(found, key=lambda o: o.cost_ps)


def _way(option: Option) -> object:
    return option.tile if option.tile is not None else option.pieces


def _chosen(
    problem: Problem, units: Sequence[Unit], resident: frozenset[str], request: Request
) -> list[Option] | None:
    """The option of each unit that the closed form prefers in the space that is left; None if one has none."""
    found = []
    for unit, room in zip(units, _room(problem, units, resident), strict=True):
        own = resident & unit.tensors
        free = unit.segment is not None and request.count(unit.name) is None
        every = _every(problem, unit, own, room) if free else unit.options(own)
        fitting = [o for o in every if o.sram_bytes <= room]
        if not fitting:
            return None
        found.append(fitting[0])
    return found


def _placed(
    problem: Problem, units: Sequence[Unit], resident: frozenset[str], options: Sequence[Option]
) -> Iterator[Decisions]:
    placed = addresses(problem, units, resident, options)
    if placed is not None:
        yield Decisions(resident=resident, options=options, addresses=placed)
