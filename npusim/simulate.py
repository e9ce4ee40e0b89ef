"""Discrete-event simulation of a Program on a described NPU. The only module that imports `simpy`.

One process per in-order engine queue. A command waits for its queue, for its dependencies, and (a gang) for all its engines.
Transfers first spend their set-up, then share the DRAM bandwidth: equally, work-conserving, none faster than one channel. Time is
an integer number of picoseconds; bandwidth shares are kept exact by counting work in units of bytes x 10^12 x lcm(1..channels).
"""

from __future__ import annotations

from array import array
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
        return _serial(costs)
    return _Decoupled(program, npu, costs).run()


def _serial(work: Work) -> Trace:
    """One command after another: nothing overlaps, so nothing shares the DRAM, and each begins when the one before it has ended."""
    end = np.cumsum(work.alone_ps, dtype=np.int64)
    start = end - work.alone_ps
    stall = np.full(len(end), STALL_QUEUE, dtype=np.int64)
    stall[:1] = STALL_NONE
    return Trace(
        policy="serial", start_ps=start, end_ps=end, stall=stall, bandwidth=_serial_bandwidth(start, end, work)
    )  # fmt: skip


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
        #: Work per picosecond of each of n active transfers, in units of byte x 10^-12 / parts.
        self.rates = [0] + [
            min(self.channel * self.parts, self.shared * self.parts // n)
            for n in range(1, npu.dma.channels + 1)
        ]
        self.updated = 0
        self.version = 0
        self.steps: list[tuple[int, int]] = []

    def _advance(self) -> None:
        now = int(self.env.now)
        elapsed = now - self.updated
        self.updated = now
        if elapsed and self.active:
            done = elapsed * self.rates[len(self.active)]
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
        count = len(self.active)
        rate = self.rates[count]
        self.steps.append((int(self.env.now), count * rate // self.parts))
        if count:
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
    """In-order queues joined by dependencies.

    Engines that are only ever used together share a queue.
    """

    def __init__(self, program: Program, npu: Npu, work: Work) -> None:
        self.program, self.work = program, work
        self.env = simpy.Environment()
        self.dram = _Dram(self.env, npu)
        count = len(program)
        self.start, self.end = [0] * count, [0] * count
        self.stall = [STALL_NONE] * count
        self.finished = [False] * count
        self.awaited: dict[int, simpy.Event] = {}
        self.arrived = [0] * count
        self.fixed, self.moved = work.fixed_ps.tolist(), work.moved.tolist()
        self.first = program.commands.dep_ptr.tolist()
        self.deps = array(
            "i", program.commands.dep_idx.astype(np.intc).tobytes()
        )  # a list takes nine times as much memory
        self.gang_of = program.commands.gang.tolist()

    def run(self) -> Trace:
        """Simulate until every queue is empty."""
        queues = self.program.queues()
        self.sizes = [0] * len(self.program.gangs)
        for gangs, _ in queues:
            for gang in gangs:
                self.sizes[gang] += 1
        for _, queue in queues:
            self.env.process(self._engine(queue))
        self.env.run()
        return Trace(
            policy="decoupled",
            start_ps=np.asarray(self.start, dtype=np.int64),
            end_ps=np.asarray(self.end, dtype=np.int64),
            stall=np.asarray(self.stall, dtype=np.int64),
            bandwidth=np.asarray(self.dram.steps, dtype=np.int64).reshape(-1, 2),
        )

    def _done(self, command: int) -> simpy.Event:
        """Fires when a command that is not finished will be."""
        if command not in self.awaited:
            self.awaited[command] = self.env.event()
        return self.awaited[command]

    def _engine(self, queue: list[int]) -> Generator[Any, Any, None]:
        env, finished, moved, fixed = self.env, self.finished, self.moved, self.fixed
        for command in queue:
            self.arrived[command] += 1
            if self.arrived[command] < self.sizes[self.gang_of[command]]:
                yield self._done(command)  # run by the engine of the gang that is ready last
                continue
            stall = STALL_QUEUE if env.now else STALL_NONE
            for dep in self.deps[self.first[command] : self.first[command + 1]]:
                if not finished[dep]:
                    yield self._done(dep)
                    stall = STALL_DMA if moved[dep] else STALL_DEPENDENCY
            self.stall[command] = stall
            self.start[command] = int(env.now)
            if fixed[command]:
                yield env.timeout(fixed[command])
            if moved[command]:
                yield self.dram.transfer(command, moved[command])
            self.end[command] = int(env.now)
            finished[command] = True
            if command in self.awaited:
                self.awaited.pop(command).succeed()
