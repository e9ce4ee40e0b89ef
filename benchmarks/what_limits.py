"""What holds a plan back: the same commands simulated with one cost or rule taken away. `python benchmarks/what_limits.py bk-sdm-tiny`.

Not plans: nobody can build an NPU whose hand-over is free. Each line says how much of the gap to the bound that cost is. Below: the bytes
that cross the DRAM bus between layers, by who makes and who reads them.
"""

from __future__ import annotations

import copy
import heapq
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np

from npusim.api import load_graph
from npusim.cost import Work
from npusim.hardware import load_npu
from npusim.layout import box_bytes_and_runs
from npusim.program import DRAM, READ, STORE, Ints, Program
from npusim.scheduler.problem import Infeasible
from npusim.scheduler.search import Found, Request, search_plan
from npusim.simulate import simulate

Lists = list[list[int]]


def dependencies(program: Program) -> Lists:
    """What each command waits for."""
    pointers, indices = program.commands.dep_ptr.tolist(), program.commands.dep_idx.tolist()
    return [indices[a:b] for a, b in pairwise(pointers)]


def with_dependencies(program: Program, wanted: Lists) -> Program:
    """The same commands, waiting for these."""
    pointers = np.cumsum([0, *map(len, wanted)], dtype=np.int64)
    indices = np.asarray([d for deps in wanted for d in deps], dtype=np.int64)
    return replace(program, commands=replace(program.commands, dep_ptr=pointers, dep_idx=indices))


def only_results(program: Program) -> Lists:
    """Dependencies on results that a command reads; none on places that it overwrites."""
    reads: list[set[int]] = [set() for _ in range(len(program))]
    writes: list[set[int]] = [set() for _ in range(len(program))]
    table = program.accesses
    for command, mode, buffer in zip(
        table.command.tolist(), table.mode.tolist(), table.buffer.tolist(), strict=True
    ):
        (reads if mode == READ else writes)[command].add(buffer)
    return [
        [d for d in deps if writes[d] & reads[command]] for command, deps in enumerate(dependencies(program))
    ]


def upward_ranks(time: Sequence[int], after: Lists) -> list[int]:
    """Longest way from the start of each command to the end."""
    rank = [0] * len(time)
    for command in range(len(time) - 1, -1, -1):
        rank[command] = time[command] + max((rank[a] for a in after[command]), default=0)
    return rank


def listed(program: Program, work: Work) -> Sequence[int]:
    """The commands in the order in which list scheduling by upward rank (HEFT) starts them.

    Whenever an engine is free it takes, of the commands that are ready, the one with the longest way to the end. Transfers have the DRAM
    one after the other, their set-up times overlap.
    """
    deps = dependencies(program)
    after: Lists = [[] for _ in deps]
    for command, waits in enumerate(deps):
        for d in waits:
            after[d].append(command)
    time, setup = work.alone_ps.tolist(), np.where(work.moved, work.fixed_ps, 0).tolist()
    rank, lanes, gang = upward_ranks(time, after), program.gang_lanes(), program.commands.gang.tolist()
    missing = [len(d) for d in deps]
    ready: list[list[tuple[int, int]]] = [[] for _ in program.gangs]

    def release(commands: Iterable[int]) -> None:
        for c in commands:
            if not missing[c]:
                heapq.heappush(ready[gang[c]], (-rank[c], c))

    release(range(len(deps)))
    free, bus, now = [0] * len(program.lanes), 0, 0
    running: list[tuple[int, int]] = []
    order: list[int] = []
    while len(order) < len(deps):
        able = [g for g, heap in enumerate(ready) if heap and all(free[x] <= now for x in lanes[g])]
        if not able:
            now = running[0][0]
            while running and running[0][0] <= now:
                ended = after[heapq.heappop(running)[1]]
                for a in ended:
                    missing[a] -= 1
                release(ended)
            continue
        chosen = min(able, key=lambda g: ready[g][0])
        command = heapq.heappop(ready[chosen])[1]
        order.append(command)
        end = now + time[command]
        if setup[command]:
            end = bus = max(bus, now + setup[command]) + time[command] - setup[command]
        for lane in lanes[chosen]:
            free[lane] = end
        heapq.heappush(running, (end, command))
    return order


def reordered(program: Program, order: Sequence[int]) -> Program:
    """The same commands in another order that their dependencies allow."""
    chosen, place = np.asarray(order), np.empty(len(order), dtype=np.int64)
    place[chosen] = np.arange(len(order))
    deps = dependencies(program)
    wanted = [sorted(place[deps[c]].tolist()) for c in order]
    columns = {
        f.name: getattr(program.commands, f.name)[chosen]
        for f in fields(program.commands)
        if not f.name.startswith("dep_")
    }
    command = place[program.accesses.command]
    sort = np.argsort(command, kind="stable")
    accesses = {f.name: getattr(program.accesses, f.name)[sort] for f in fields(program.accesses)}
    changed = replace(
        program, commands=replace(program.commands, **columns),
        accesses=replace(program.accesses, **{**accesses, "command": command[sort]}),
    )  # fmt: skip
    return with_dependencies(changed, wanted)


def without(work: Work, **changes: Ints) -> Work:
    """Costs with some of them replaced."""
    found = copy.copy(work)
    for name, values in changes.items():
        setattr(found, name, values)
    return found


def figures(found: Found) -> dict[str, float]:
    """Milliseconds of what if."""
    program, work = found.planned.program, found.work
    npu, policy = found.planned.problem.npu, found.planned.problem.policy

    def run(program: Program, work: Work) -> float:
        return simulate(program, npu, policy, work=work).makespan_ps / 1e9

    other = reordered(program, listed(program, work))
    stores = program.commands.opcode == STORE
    return {
        "as planned": found.trace.makespan_ps / 1e9,
        "lower bound": found.bounds.makespan_ps / 1e9,
        "no hand-over": run(
            program,
            without(
                work, fixed_ps=work.fixed_ps - work.handover_ps, alone_ps=work.alone_ps - work.handover_ps
            ),
        ),
        "transfers of half the bytes": run(program, without(work, moved=work.moved // 2)),
        "stores of no bytes": run(program, without(work, moved=np.where(stores, 0, work.moved))),
        "no waiting for SRAM places": run(with_dependencies(program, only_results(program)), work),
        "reordered by upward rank (HEFT)": run(other, Work(other, npu)),
    }


def spilled(found: Found) -> dict[str, tuple[int, int]]:
    """What crosses the DRAM bus between layers, by who makes and who reads it: (tensors, bytes read and written)."""
    graph, program = found.planned.problem.graph, found.planned.program
    made = {x.output: x.op for x in graph.layers}
    readers: dict[str, set[str]] = {}
    for layer in graph.layers:
        for name in layer.reads():
            readers.setdefault(name, set()).add(layer.op)
    table, buffers, tensors = program.accesses, program.buffers, program.tensors
    chosen = buffers.space[table.buffer] == DRAM
    tensor = buffers.tensor[table.buffer[chosen]]
    size, _ = box_bytes_and_runs(
        tensors.shape[tensor], table.shape[chosen], tensors.layout[tensor], tensors.element_bytes[tensor]
    )
    total = np.bincount(tensor, weights=size, minlength=len(tensors.name))
    groups: dict[str, tuple[int, int]] = {}
    for number, name in enumerate(tensors.name):
        if tensors.kind[number] == "intermediate" and total[number]:
            group = f"{made.get(name, 'internal')} > {', '.join(sorted(readers.get(name, ())))}"
            count, moved = groups.get(group, (0, 0))
            groups[group] = count + 1, moved + int(total[number])
    return dict(sorted(groups.items(), key=lambda g: -g[1][1]))


if __name__ == "__main__":
    model = sys.argv[1] if len(sys.argv) > 1 else "bk-sdm-tiny"
    answer = search_plan(load_graph(model), load_npu("exynos2400"), Request())
    if isinstance(answer, Infeasible):
        raise SystemExit(answer.sentence())
    for label, latency in figures(answer).items():
        print(f"{label:34} {latency:8.2f} ms")
    print(
        f"\nDRAM bytes: {answer.work.dram_bytes.sum() / 1e6:.1f} MB, at least {answer.bounds.dram_bytes / 1e6:.1f}; between layers:"
    )
    for label, (count, moved) in spilled(answer).items():
        print(f"{label:44} {count:4} tensors {moved / 1e6:8.1f} MB")
