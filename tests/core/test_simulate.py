"""The simulator against closed forms and independent recurrences; policies and better hardware compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npusim import api
from npusim.cost import Work, ceil_div
from npusim.hardware import Npu, load_npu, npu_from_dict, with_values
from npusim.layout import PLAIN
from npusim.lower.builder import Box, ProgramBuilder
from npusim.program import LOAD, ROLE, VECTOR, Gang, Program
from npusim.simulate import simulate
from npusim.trace import lane_busy_ps, union_ps

Net = Any
stable = settings(derandomize=True, deadline=None, max_examples=60)
TOY = load_npu("toy")


# ---- programs by hand -------------------------------------------------------------------------------------------------


def by_hand(steps: list[tuple[int, int]], gangs: tuple[Gang, ...]) -> Program:
    """Independent commands: (gang, size). On a DMA gang size is bytes to load, on the vector gang elements."""
    lanes = [f"dma{i}" for i in range(4)] + ["vector0", "vector1"]
    builder = ProgramBuilder(gangs, lanes, ["only"], [])
    address = 0
    for gang, size in steps:
        shape = (1, 1, 1, size)
        tensor = builder.tensor(f"t{address}", "weight", shape, 1, PLAIN)
        home = builder.dram_buffer(tensor, size, tracked=False)
        place = builder.sram_buffer(tensor, address, size, (0, 0, 0, 0), shape)
        address += size
        box, source = Box(place, (0, 0, 0, 0), shape), Box(home, (0, 0, 0, 0), shape)
        if gangs[gang].kind == "dma":
            builder.command(LOAD, gang, layer=0, role=ROLE["weight"], reads=[(0, source)], writes=[(0, box)])
        else:
            builder.command(
                VECTOR,
                gang,
                layer=0,
                role=ROLE["other"],
                function="exp",
                writes=[(9, box)],
                extents=(1, size, 1, 1),
            )
    return builder.build()


def dma_gangs(count: int) -> tuple[Gang, ...]:
    return tuple(Gang(name=f"dma{i}", kind="dma", engines=(("dma", i),)) for i in range(count))


ALL_GANGS = (*dma_gangs(4), Gang(name="vector0-1", kind="vector", engines=(("vector", 0), ("vector", 1))))
amounts = st.lists(st.integers(1, 5000), min_size=1, max_size=12)


@stable
@given(amounts, st.sampled_from(("serial", "decoupled")))
def test_law_5_a_chain_on_one_channel_takes_the_sum_of_set_ups_and_bytes(
    sizes: list[int], policy: Any
) -> None:
    """Toy: 0.1 us set-up, 4 GB/s, 16 bytes of overhead for the one run: 250 ps a byte."""
    program = by_hand([(0, s) for s in sizes], dma_gangs(1))
    assert simulate(program, TOY, policy).makespan_ps == sum(100_000 + 250 * (s + 16) for s in sizes)


@stable
@given(amounts, st.sampled_from(("serial", "decoupled")))
def test_law_5_a_chain_on_the_vector_engines_takes_the_sum_of_its_cycles(
    sizes: list[int], policy: Any
) -> None:
    program = by_hand([(4, s) for s in sizes], ALL_GANGS)
    assert simulate(program, TOY, policy).makespan_ps == sum(1000 * -(-s // 16) for s in sizes)


@st.composite
def mixes(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Commands on four channels and the vector engines."""
    return draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5000)), min_size=1, max_size=14))


def shared(npu: Npu, program: Program) -> list[Fraction]:
    """End of each independent command: queues in order, transfers share the DRAM equally, in exact fractions of a second.

    Time goes from one event to the next: a set-up or computation ends, or a transfer's bytes are through.
    """
    work = Work(program, npu)
    queues: dict[int, list[int]] = {}
    for command, gang in enumerate(program.commands.gang.tolist()):
        queues.setdefault(gang, []).append(command)
    now, end = Fraction(0), [Fraction(0)] * len(program)
    fixed = {q[0]: Fraction(int(work.fixed_ps[q[0]])) for q in queues.values()}
    moving: dict[int, Fraction] = {}
    while fixed or moving:
        rate = Fraction(0)
        if moving:
            fair = Fraction(npu.dram.dram_shared_bytes_per_s, len(moving))
            rate = min(Fraction(npu.dma.channel_bytes_per_s), fair) / 10**12
        step = min([*fixed.values(), *(left / rate for left in moving.values())])
        now += step
        fixed = {c: left - step for c, left in fixed.items()}
        moving = {c: left - step * rate for c, left in moving.items()}
        ended = [c for c, left in moving.items() if left == 0]
        for command in [c for c, left in fixed.items() if left == 0]:
            del fixed[command]
            if work.moved[command]:
                moving[command] = Fraction(int(work.moved[command]))
            else:
                ended.append(command)
        for command in ended:
            moving.pop(command, None)
            end[command] = now
            queue = queues[int(program.commands.gang[command])]
            queue.pop(0)
            if queue:
                fixed[queue[0]] = Fraction(int(work.fixed_ps[queue[0]]))
    return end


@stable
@given(mixes(), st.sampled_from((4 * 10**9, 2 * 10**9, 13 * 10**8, 10**9)))
def test_transfers_share_the_dram_as_an_exact_recurrence_says(
    steps: list[tuple[int, int]], channel: int
) -> None:
    """Each event may be rounded up by one picosecond."""
    npu = with_values(TOY, {"dma.channels": 4, "dma.channel_bytes_per_s": channel})
    program = by_hand(steps, ALL_GANGS)
    trace = simulate(program, npu, "decoupled")
    exact = shared(npu, program)
    for command, time in enumerate(trace.end_ps.tolist()):
        assert -len(steps) <= time - exact[command] <= len(steps)


@stable
@given(mixes(), st.sampled_from((4 * 10**9, 13 * 10**8)))
def test_the_bandwidth_curve_adds_up_to_all_bytes_and_never_exceeds_the_shared_rate(
    steps: list[tuple[int, int]], channel: int
) -> None:
    npu = with_values(TOY, {"dma.channels": 4, "dma.channel_bytes_per_s": channel})
    program = by_hand(steps, ALL_GANGS)
    trace = simulate(program, npu, "decoupled")
    times, rates = trace.bandwidth[:, 0], trace.bandwidth[:, 1]
    assert (np.diff(times) >= 0).all()
    assert (rates <= npu.dram.dram_shared_bytes_per_s).all()
    if len(rates):
        assert rates[-1] == 0
        moved = float((rates[:-1] * np.diff(times)).sum()) / 1e12
        assert moved == pytest.approx(int(Work(program, npu).moved.sum()), rel=1e-4, abs=1)


@stable
@given(st.lists(st.integers(100, 5000), min_size=2, max_size=8))
def test_the_shared_dram_is_never_idle_while_bytes_wait(sizes: list[int]) -> None:
    """Without set-up, channels that always have something to move take exactly the bytes over the shared rate."""
    npu = with_values(TOY, {"dma.channels": 4, "dma.setup_s": 0.0})
    program = by_hand([(i % 4, s) for i, s in enumerate(sizes)], dma_gangs(4))
    moved = int(Work(program, npu).moved.sum())
    assert simulate(program, npu, "decoupled").makespan_ps == pytest.approx(moved * 250, abs=len(sizes))


# ---- programs of small networks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def block(net: Callable[..., Net]) -> Callable[..., api.Profile]:
    """A small U-Net with attention, planned on a machine."""
    graph = net().unet().graph()

    @cache
    def make(policy: Any, channels: int = 2, tiles: str = "auto") -> api.Profile:
        npu = with_values(TOY, {"dma.channels": channels, "sram.sram_bytes": 24_576})
        found = api.profile(graph, policy=policy, npu=npu, tiles=tiles)
        assert isinstance(found, api.Profile)
        return found

    return make


def recurrence(program: Program, alone: list[int]) -> list[int]:
    """Ends where no two transfers overlap: a command starts when its engines' queues and its dependencies are done."""
    free: dict[tuple[str, int], int] = {}
    end: list[int] = []
    pointers, indices = program.commands.dep_ptr.tolist(), program.commands.dep_idx.tolist()
    for command, gang in enumerate(program.commands.gang.tolist()):
        engines = program.gangs[gang].engines
        waits = [end[d] for d in indices[pointers[command] : pointers[command + 1]]] + [
            free.get(e, 0) for e in engines
        ]
        end.append(max(waits, default=0) + alone[command])
        free.update(dict.fromkeys(engines, end[-1]))
    return end


@pytest.mark.parametrize("tiles", ["none", "auto"])
def test_with_one_channel_decoupled_times_are_those_of_a_recurrence(
    block: Callable[..., api.Profile], tiles: str
) -> None:
    found = block("decoupled", 1, tiles)
    assert found.trace.end_ps.tolist() == recurrence(found.program, found.work.alone_ps.tolist())


def test_with_bandwidth_for_all_channels_decoupled_times_are_those_of_a_recurrence(
    block: Callable[..., api.Profile],
) -> None:
    found = block("decoupled")
    npu = with_values(
        found.plan.npu, {"dram.dram_shared_bytes_per_s": 2 * found.plan.npu.dma.channel_bytes_per_s}
    )
    work = Work(found.program, npu)
    trace = simulate(found.program, npu, "decoupled", work=work)
    assert trace.end_ps.tolist() == recurrence(found.program, work.alone_ps.tolist())


@pytest.mark.parametrize("policy", ["serial", "decoupled"])
def test_serial_time_is_the_sum_of_all_commands_alone(block: Callable[..., api.Profile], policy: Any) -> None:
    found = block(policy)
    serial = found.traces["serial"]
    assert serial.makespan_ps == sum(found.work.alone_ps.tolist())
    assert (serial.start_ps[1:] == serial.end_ps[:-1]).all()


@pytest.mark.parametrize("policy", ["serial", "decoupled"])
def test_law_3_the_same_program_is_never_slower_decoupled(
    block: Callable[..., api.Profile], policy: Any
) -> None:
    found = block(policy)
    assert found.traces["decoupled"].makespan_ps <= found.traces["serial"].makespan_ps


def test_commands_start_after_what_they_wait_for_and_queues_keep_their_order(
    block: Callable[..., api.Profile],
) -> None:
    found = block("decoupled")
    program, trace = found.program, found.trace
    pointers, indices = program.commands.dep_ptr, program.commands.dep_idx
    waiting = np.repeat(np.arange(len(program)), np.diff(pointers))
    assert (trace.start_ps[waiting] >= trace.end_ps[indices]).all()
    for engine in {e for g in program.gangs for e in g.engines}:
        mine = [engine in g.engines for g in program.gangs]
        commands = np.flatnonzero(np.asarray(mine)[program.commands.gang])
        assert (trace.start_ps[commands][1:] >= trace.end_ps[commands][:-1]).all()


def test_busy_time_of_a_lane_is_the_union_of_its_commands(block: Callable[..., api.Profile]) -> None:
    found = block("decoupled")
    program, trace = found.program, found.trace
    for lane, busy in lane_busy_ps(program, trace).items():
        mine = [lane in {f"{unit}{number}" for unit, number in g.engines} for g in program.gangs]
        chosen = np.asarray(mine)[program.commands.gang]
        assert busy == union_ps(trace.start_ps[chosen], trace.end_ps[chosen])


@stable
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=12))
def test_the_union_of_intervals_counts_each_moment_once(pairs: list[tuple[int, int]]) -> None:
    start = np.asarray([a for a, _ in pairs], dtype=np.int64)
    end = start + np.asarray([b for _, b in pairs], dtype=np.int64)
    assert union_ps(start, end) == len({t for a, b in pairs for t in range(a, a + b)})


# ---- law 6: a fixed Program on better hardware ------------------------------------------------------------------------

HIGHER = (
    "core.clock_hz", "tensor_rates.int8xint16", "tensor_rates.int16xint16", "vector_engine.lanes", "dma.channel_bytes_per_s",
    "dram.dram_shared_bytes_per_s",
)  # fmt: skip
LOWER = (
    "dma.setup_s", "dma.run_overhead_bytes", "handover.handover_s", "vector_lane_operations.softmax",
    "vector_lane_operations.default", "core.launch_s",
)  # fmt: skip


def bettered(npu: Npu, factors: Mapping[str, float]) -> Npu:
    """Rates multiplied, costs divided; engine arrays grown."""
    data: dict[str, Any] = npu.model_dump()
    for path, factor in factors.items():
        table, key = path.split(".")
        if table == "tensor_engine":
            engine = data["tensor_engine"][0]
            engine[key] = int(engine[key] * factor)
            engine["macs_per_cycle"] = engine["array_rows"] * engine["array_cols"] * engine["array_depth"]
        elif path in HIGHER:
            data[table][key] = type(data[table][key])(data[table][key] * factor)
        else:
            data[table][key] = data[table][key] / factor
    return npu_from_dict(data, where="better")


ARRAYS = ("tensor_engine.array_rows", "tensor_engine.array_cols", "tensor_engine.array_depth")


@stable
@given(
    st.dictionaries(st.sampled_from((*HIGHER, *LOWER, *ARRAYS)), st.floats(1.0, 4.0), min_size=1, max_size=4)
)
def test_law_6_a_fixed_program_is_never_slower_in_serial_on_better_hardware(
    block: Callable[..., api.Profile], factors: Mapping[str, float]
) -> None:
    found = block("serial")
    better = bettered(found.plan.npu, factors)
    before, after = found.work, Work(found.program, better)
    assert (after.alone_ps <= before.alone_ps).all()
    assert (
        simulate(found.program, better, "serial", work=after).makespan_ps
        <= found.traces["serial"].makespan_ps
    )


@pytest.mark.parametrize("path", [*HIGHER, *LOWER, *ARRAYS])
def test_law_6_each_single_number_helps_or_does_nothing(block: Callable[..., api.Profile], path: str) -> None:
    found = block("serial")
    after = Work(found.program, bettered(found.plan.npu, {path: 2.0}))
    assert (after.alone_ps <= found.work.alone_ps).all()


def test_rounding_up_is_exact_for_transfers_of_any_size() -> None:
    """Bytes x 10^12 exceeds 64 bits over nine megabytes."""
    program = by_hand([(0, 100_000_000)], dma_gangs(1))
    assert Work(program, TOY).alone_ps.tolist() == [100_000 + ceil_div(100_000_016 * 10**12, 4 * 10**9)]
