"""Discrete-event simulation of a Program on a described NPU. The only module that imports `simpy`.

One process per in-order engine queue. A command waits for its queue, for its dependencies, and (a gang) for all its engines.
Transfers first spend their set-up, then share the DRAM bandwidth: equally, work-conserving, none faster than one channel. Time is
an integer number of picoseconds; bandwidth shares are kept exact by counting work in units of bytes x 10^12 x lcm(1..channels).
"""

from __future__ import annotations

from collections.abc import Generator
from math import lcm
from typing import Any, Literal

import numpy as np
import simpy

from npusim.cost import Work
from npusim.hardware import Npu
from npusim.program import Program
from npusim.trace import STALL_DEPENDENCY, STALL_DMA, STALL_NONE, STALL_QUEUE, Trace
from npusim.units import PS_PER_S

Policy = Literal["serial", "decoupled"]


def simulate(program: Program, npu: Npu, policy: Policy, *, work: Work | None = None) -> Trace:
    """Run a Program.

    Args:
        policy: `serial`: a command starts when the one before it has ended; `decoupled`: one in-order queue per engine.
        work: costs of the commands, if known already.
    """
    costs = work if work is not None else Work(program, npu)
    if policy == "serial":
        return _serial(program, npu, costs)
    return _Decoupled(program, npu, costs).run()


def _serial(program: Program, npu: Npu, work: Work) -> Trace:
    """One process that runs one command after another: nothing overlaps, so nothing shares the DRAM."""
    env = simpy.Environment()
    count = len(program)
    start, end = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    durations = work.alone_ps.tolist()

    def issue() -> Generator[Any, Any, None]:
        for command, duration in enumerate(durations):
            start[command] = env.now
            yield env.timeout(duration)
            end[command] = env.now

    env.process(issue())
    env.run()
    stall = np.full(count, STALL_QUEUE, dtype=np.int64)
    stall[:1] = STALL_NONE
    return Trace(
        policy="serial",
        start_ps=start,
        end_ps=end,
        stall=stall,
        bandwidth=_serial_bandwidth(start, end, work),
    )


def _serial_bandwidth(start: Any, end: Any, work: Work) -> Any:
    moving = np.flatnonzero(work.moved)
    span = np.maximum(1, end[moving] - start[moving] - work.fixed_ps[moving])
    rate = (work.dram_bytes[moving] * (PS_PER_S / span)).astype(np.int64)
    steps = np.empty((2 * len(moving), 2), dtype=np.int64)
    steps[0::2, 0], steps[0::2, 1] = start[moving] + work.fixed_ps[moving], rate
    steps[1::2, 0], steps[1::2, 1] = end[moving], 0
    return steps


class _Dram:
    """Bandwidth shared by the transfers under way."""

    def __init__(self, env: simpy.Environment, npu: Npu) -> None:
        self.env = env
        self.parts = lcm(*range(1, npu.dma.channels + 1))
        self.shared, self.channel = npu.dram.dram_shared_bytes_per_s, npu.dma.channel_bytes_per_s
        self.active: dict[int, list[Any]] = {}
        self.updated = 0
        self.version = 0
        self.steps: list[tuple[int, int]] = []

    def _rate(self) -> int:
        """Work per picosecond of each active transfer, in units of byte x 10^-12 / parts."""
        return min(self.channel * self.parts, self.shared * self.parts // len(self.active))

    def _advance(self) -> None:
        elapsed = self.env.now - self.updated
        self.updated = int(self.env.now)
        if elapsed and self.active:
            done = elapsed * self._rate()
            for transfer in self.active.values():
                transfer[0] -= done

    def transfer(self, command: int, moved: int) -> simpy.Event:
        """Start moving bytes; the event fires when they have arrived."""
        self._advance()
        event = self.env.event()
        self.active[command] = [moved * PS_PER_S * self.parts, event]
        self._reschedule()
        return event

    def _reschedule(self) -> None:
        self.version += 1
        self.steps.append(
            (int(self.env.now), len(self.active) * self._rate() // self.parts if self.active else 0)
        )
        if self.active:
            rate = self._rate()
            wait = max(0, min(-(-t[0] // rate) for t in self.active.values()))
            self.env.timeout(wait, self.version).callbacks.append(self._wake)

    def _wake(self, event: simpy.Event) -> None:
        if event.value != self.version:
            return
        self._advance()
        for command in [c for c, t in self.active.items() if t[0] <= 0]:
            self.active.pop(command)[1].succeed()
        self._reschedule()


class _Decoupled:
    """In-order queues joined by dependencies."""

    def __init__(self, program: Program, npu: Npu, work: Work) -> None:
        self.program, self.work = program, work
        self.env = simpy.Environment()
        self.dram = _Dram(self.env, npu)
        count = len(program)
        self.start, self.end = [0] * count, [0] * count
        self.stall = [STALL_NONE] * count
        self.done = [simpy.Event(self.env) for _ in range(count)]
        self.arrived = [0] * count
        self.fixed, self.moved = work.fixed_ps.tolist(), work.moved.tolist()
        self.is_dma = (work.moved > 0).tolist()
        pointers, indices = program.commands.dep_ptr.tolist(), program.commands.dep_idx.tolist()
        self.deps = [indices[pointers[i] : pointers[i + 1]] for i in range(count)]
        self.gang_of = program.commands.gang.tolist()
        self.sizes = [len(g.engines) for g in program.gangs]

    def run(self) -> Trace:
        """Simulate until every queue is empty."""
        for queue in self._queues():
            self.env.process(self._engine(queue))
        self.env.run()
        return Trace(
            policy="decoupled",
            start_ps=np.asarray(self.start, dtype=np.int64),
            end_ps=np.asarray(self.end, dtype=np.int64),
            stall=np.asarray(self.stall, dtype=np.int64),
            bandwidth=np.asarray(self.dram.steps, dtype=np.int64).reshape(-1, 2),
        )

    def _queues(self) -> list[list[int]]:
        """Commands of each engine, in serial order."""
        queues: dict[tuple[str, int], list[int]] = {}
        for command, gang in enumerate(self.gang_of):
            chosen = self.program.gangs[gang]
            for engine in chosen.engines:
                queues.setdefault((chosen.unit, engine), []).append(command)
        return [queues[key] for key in sorted(queues)]

    def _engine(self, queue: list[int]) -> Generator[Any, Any, None]:
        for command in queue:
            self.arrived[command] += 1
            if self.arrived[command] < self.sizes[self.gang_of[command]]:
                yield self.done[command]
            else:
                yield from self._execute(command)

    def _execute(self, command: int) -> Generator[Any, Any, None]:
        """Run by the engine of the gang that is ready last."""
        self.stall[command] = STALL_QUEUE if self.env.now else STALL_NONE
        for dep in self.deps[command]:
            event = self.done[dep]
            if not event.processed:
                yield event
                self.stall[command] = STALL_DMA if self.is_dma[dep] else STALL_DEPENDENCY
        self.start[command] = int(self.env.now)
        if self.fixed[command]:
            yield self.env.timeout(self.fixed[command])
        if self.moved[command]:
            yield self.dram.transfer(command, self.moved[command])
        self.end[command] = int(self.env.now)
        self.done[command].succeed()
