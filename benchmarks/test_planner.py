"""How good the plans are, on every network of the zoo under both policies: run with `make bench`.

Each row: latency over the lower bound, DRAM bytes over their bound, and that `auto` is never worse than the paper's rule with attention
alone joined. `extra_info` keeps the figures; the table goes to stderr.
"""

from __future__ import annotations

import sys
import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from npusim import api
from npusim.models import zoo
from npusim.scheduler.problem import Policy

POLICIES: tuple[Policy, ...] = ("decoupled", "serial")
#: Aims of the planner under `decoupled`: latency and DRAM bytes over their bounds.
AIM = {"latency": 1.10, "dram": 1.15}


def profiled(model: str, policy: Policy, **options: str) -> api.Profile:
    found = api.profile(model, policy=policy, **options)  # type: ignore[arg-type]
    assert isinstance(found, api.Profile)
    return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model", zoo.names())
def test_plan(model: str, policy: Policy, benchmark: BenchmarkFixture) -> None:
    rule = profiled(model, policy, tiles="sram", segments="attention")
    started = time.process_time()
    found = benchmark.pedantic(lambda: profiled(model, policy), rounds=1)
    seconds = time.process_time() - started
    assert found.trace.makespan_ps <= rule.trace.makespan_ps
    over = found.latency_ms / found.lower_bound_ms
    dram = found.dram_bytes / found.summary["dram_bound_bytes"]
    benchmark.extra_info.update(
        latency_ms=found.latency_ms, rule_ms=rule.latency_ms, over_bound=over, dram_over_bound=dram, cpu_seconds=seconds
    )  # fmt: skip
    sys.stderr.write(
        f"\n{model:24} {policy:10} {found.latency_ms:9.2f} ms  rule {rule.latency_ms:9.2f} ms  bound x {over:.2f}  "
        f"DRAM x {dram:.2f}  {seconds:5.1f} s  (aims: {AIM['latency']:.2f}, {AIM['dram']:.2f})\n"
    )
