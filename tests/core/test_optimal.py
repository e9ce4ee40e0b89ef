"""The search against every plan there is, on networks so small that all of them can be simulated.

The enumerator knows the decision space (docs/decision-space.md) but nothing of how the search goes through it: every set of chains,
every set of resident tensors (early statistics are such), every cut and tiling is simulated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice, product
from typing import Any

import numpy as np
import pytest

from npusim import api
from npusim.cost import lane_operations, vector_ps
from npusim.graph import Graph
from npusim.hardware import Npu, load_npu, with_values
from npusim.lower import lower
from npusim.scheduler.assemble import Decisions, assemble
from npusim.scheduler.bounds import lower_bounds
from npusim.scheduler.chains import chain_ps, runs
from npusim.scheduler.kinds import KINDS
from npusim.scheduler.pieces import Option, every_option
from npusim.scheduler.planner import addresses, make_problem, resident_bytes
from npusim.scheduler.problem import Infeasible, Policy, Problem
from npusim.scheduler.request import Request
from npusim.scheduler.residency import Unit, spans
from npusim.scheduler.units import attention_segments, chain_segments, make_units
from npusim.simulate import simulate
from npusim.units import PS_PER_S

Net = Any
#: Instances with more plans are left out, so that CI stays short; `NPUSIM_MOST_PLANS=100000` tries them too.
MOST_PLANS = int(os.environ.get("NPUSIM_MOST_PLANS", "1000"))
SEEDS = range(300)
BLOCK = 20


@dataclass(frozen=True, slots=True)
class Instance:
    graph: Graph
    npu: Npu
    policy: Policy


def drawn(net: Callable[..., Net], seed: int) -> Instance:
    """One to three layers on tokens or on an image, or an attention; an NPU that is short of one thing or another."""
    random = np.random.default_rng(seed)
    n = net()
    y = (_tokens, _tokens, _tokens, _image, _attention)[seed % 5](n, random)
    npu = with_values(load_npu("toy"), {
        "sram.sram_bytes": int(random.choice([256, 384, 512, 1024, 4096])),
        "dma.setup_s": float(random.choice([1e-8, 1e-7])),
        "handover.handover_s": float(random.choice([0.0, 2e-8, 1e-7])),
        "dram.dram_shared_bytes_per_s": int(random.choice([1_000_000_000, 4_000_000_000])),
        "vector_engine.lanes": int(random.choice([1, 4, 16])),
    })  # fmt: skip
    return Instance(n.output(y).graph(), npu, "serial" if random.random() < 0.3 else "decoupled")


def _tokens(n: Net, random: np.random.Generator) -> str:
    x = n.input("x", 1, int(random.choice([3, 4, 6, 8])), int(random.choice([4, 8])))
    for _ in range(int(random.integers(1, 4))):
        match int(random.integers(0, 5)):
            case 0:
                x = n.linear(x, int(random.choice([4, 8, 12])))
            case 1:
                x = n.layer_norm(x)
            case 2:
                x = n.gelu(n.linear(x, int(random.choice([4, 8]))))
            case 3:
                x = n.add(x, n.linear(x, n.shapes[x][-1]))
            case _:
                x = n.silu(x)
    return str(x)


def _image(n: Net, random: np.random.Generator) -> str:
    x = n.input("x", 1, 4, int(random.choice([3, 4])), 4)
    for _ in range(int(random.integers(1, 3))):
        match int(random.integers(0, 3)):
            case 0:
                x = n.conv(x, 4, 3)
            case 1:
                x = n.group_norm(x, 2)
            case _:
                x = n.silu(n.conv(x, int(random.choice([4, 8])), 1))
    return str(x)


def _attention(n: Net, random: np.random.Generator) -> str:
    heads, queries, keys = (
        int(v) for v in (random.choice([1, 2]), random.choice([4, 8]), random.choice([4, 6, 16]))
    )
    q, k, v = (n.input(t, 1, heads, length, 4) for t, length in (("q", queries), ("k", keys), ("v", keys)))
    scores = n.node("MatMul", [q, n.transpose(k, 0, 1, 3, 2)], (1, heads, queries, keys))
    shares = n.node("Softmax", [scores], n.shapes[scores], axis=-1)
    out = n.node("MatMul", [shares, v], (1, heads, queries, 4))
    return str(n.silu(out) if random.random() < 0.5 else out)


def subsets(items: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    return chain.from_iterable(combinations(items, r) for r in range(len(items) + 1))


def plans(problem: Problem) -> Iterator[tuple[Problem, Any, frozenset[str], tuple[Any, ...]]]:
    """(problem, units, resident tensors, option of each unit) of every plan, whether it fits or not."""
    request = Request(policy=problem.policy)
    parts = [
        run[i:j] for run in runs(problem.graph) for i in range(len(run)) for j in range(i + 2, len(run) + 1)
    ]
    parts = [p for p in parts if chain_ps(problem, p) is not None]
    for chains in subsets(parts):
        names = [n for c in chains for n in c]
        if len(names) != len(set(names)):
            continue
        chained = replace(problem, chains=tuple(chains))
        attention, _ = attention_segments(chained, request)
        free = [s for s in attention if not set(names) & set(s.layers)]
        for joined in subsets(free):
            units = make_units(chained, [*joined, *chain_segments(chained.graph, chains)], request)
            yield from _residencies(chained, units)


def _residencies(
    problem: Problem, units: Sequence[Unit]
) -> Iterator[tuple[Problem, Any, frozenset[str], tuple[Any, ...]]]:
    for resident in map(frozenset, subsets([s.tensor for s in spans(problem, units)])):
        rooms = [problem.npu.sram.sram_bytes - b for b in resident_bytes(problem, units, resident)]
        ways = [
            options_of(problem, u, resident & u.tensors, room) for u, room in zip(units, rooms, strict=True)
        ]
        yield from ((problem, units, resident, options) for options in product(*ways))


def options_of(problem: Problem, unit: Unit, resident: frozenset[str], room_bytes: int) -> Sequence[Option]:
    """Every way to run a unit, dominated or not, the paper's rule for the room that is left among them."""
    if unit.segment is None:
        return every_option(problem, problem.by_name[unit.name], resident)
    kind = KINDS[unit.segment.kind]
    rule = kind.rule(problem, unit.segment, room_bytes, resident)
    tiles = [*kind.tilings(problem, unit.segment), *([] if rule is None else [rule])]
    return [kind.predict(problem, unit.segment, t, resident) for t in dict.fromkeys(tiles)]


def simulated(
    problem: Problem, units: Sequence[Unit], resident: frozenset[str], options: Sequence[Option]
) -> int | None:
    """Makespan of a plan; None if its addresses do not fit."""
    placed = addresses(problem, units, resident, options)
    if placed is None:
        return None
    decided = Decisions(resident=resident, options=list(options), addresses=placed)
    plan = assemble(problem, Request(policy=problem.policy), units, decided)
    return simulate(lower(problem.graph, plan, problem.fragments), problem.npu, problem.policy).makespan_ps


def optimum(instance: Instance) -> tuple[int | None, int]:
    """Least makespan of all plans (None if none fits), and how many there are (not counted over MOST_PLANS)."""
    problem = make_problem(
        instance.graph, instance.npu, "w8a16", instance.policy, shared=True, sums_early=True
    )
    every = list(islice(plans(problem), MOST_PLANS + 1))
    if len(every) > MOST_PLANS:
        return None, len(every)
    times = [simulated(*plan) for plan in every]
    return min((t for t in times if t is not None), default=None), len(every)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(SEEDS), BLOCK))
def test_the_search_finds_the_optimum_and_the_bound_lies_below(net: Callable[..., Net], first: int) -> None:
    """Of every block of drawn instances, those with few enough plans; at least half of them must have."""
    tried = 0
    for seed in SEEDS[first : first + BLOCK]:
        instance = drawn(net, seed)
        best, count = optimum(instance)
        if count > MOST_PLANS:
            continue
        tried += 1
        found = api.profile(instance.graph, npu=instance.npu, policy=instance.policy)
        assert (best is None) == isinstance(found, Infeasible), f"seed {seed}"
        if isinstance(found, api.Profile) and best is not None:
            assert found.trace.makespan_ps == best, f"seed {seed}, {count} plans"
            assert found.summary["lower_bound_ms"] <= found.latency_ms
    assert tried >= BLOCK // 2


def test_weights_of_a_phase_cross_the_bus_within_it_but_for_what_the_sram_held(
    net: Callable[..., Net],
) -> None:
    """16 silu, norm, a convolution, norm, a small convolution and 16 silu: the vector engines, then the bus, then the vector engines."""
    n = net()
    x = n.input("x", 1, 16, 4, 4)
    for _ in range(16):
        x = n.silu(x)
    x = n.conv(n.group_norm(n.conv(n.group_norm(x, 2), 16, 3), 2), 16, 1)
    for _ in range(16):
        x = n.silu(x)
    graph = n.output(x).graph()
    npu = with_values(load_npu("toy"), {
        "sram.sram_bytes": 1536, "vector_engine.lanes": 1,
        "dram.dram_shared_bytes_per_s": 500_000_000, "dma.channel_bytes_per_s": 500_000_000,
    })  # fmt: skip
    problem = make_problem(graph, npu, "w8a16", "decoupled", shared=True)
    vector = 16 * int(vector_ps(npu, npu.vector_engine.count, 256, lane_operations(npu, "silu")))
    weights = 16 * 16 * 9 + 16 * 4  # INT8, and a bias in INT32
    bus = (weights - 1536) * PS_PER_S // 500_000_000
    found = lower_bounds(problem)
    assert found.by_resource_ps["critical path"] == 2 * vector + bus
    assert found.makespan_ps >= found.by_resource_ps["critical path"] > found.by_resource_ps["vector"]
    for policy in ("serial", "decoupled"):
        made = api.profile(graph, npu=npu, policy=policy)
        assert isinstance(made, api.Profile)
        assert made.trace.makespan_ps >= found.makespan_ps


@pytest.mark.parametrize("seed", range(60))
def test_the_bound_never_rises_when_hardware_improves(net: Callable[..., Net], seed: int) -> None:
    instance = drawn(net, seed)
    before = lower_bounds(make_problem(instance.graph, instance.npu, "w8a16", instance.policy, shared=True))
    for path, factor in (
        ("sram.sram_bytes", 2), ("dram.dram_shared_bytes_per_s", 2), ("dma.channel_bytes_per_s", 2), ("dma.setup_s", 0.5),
        ("vector_engine.lanes", 2), ("core.clock_hz", 2), ("handover.handover_s", 0.5), ("tensor_rates.int8xint16", 2),
    ):  # fmt: skip
        table, key = path.split(".")
        value = instance.npu.model_dump()[table][key] * factor
        better = with_values(instance.npu, {path: value})
        after = lower_bounds(make_problem(instance.graph, better, "w8a16", instance.policy, shared=True))
        assert after.makespan_ps <= before.makespan_ps
        assert after.dram_bytes <= before.dram_bytes
