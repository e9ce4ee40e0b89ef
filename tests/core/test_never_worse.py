"""`auto` is never slower than what is planned with less: drawn networks, NPUs with one and with two kinds of tensor engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from npusim import api
from npusim.hardware import Npu, load_npu, with_values
from npusim.scheduler.problem import Infeasible
from tests.core.test_optimal import drawn

Net = Any
SEEDS = range(400, 440)
#: Rules that `auto` must not lose to.
RULES: tuple[dict[str, str], ...] = (
    {"tiles": "sram", "segments": "attention"}, {"tiles": "sram"}, {"tiles": "none", "segments": "none"}
)  # fmt: skip


def two_kinds(npu: Npu) -> Npu:
    """The tensor engines of the Exynos 2400 in a small machine."""
    exynos = load_npu("exynos2400")
    return npu.model_copy(update={"tensor_engine": exynos.tensor_engine, "tensor_rates": exynos.tensor_rates})


@pytest.mark.parametrize("seed", SEEDS)
def test_auto_is_never_slower_than_a_rule(net: Callable[..., Net], seed: int) -> None:
    instance = drawn(net, seed)
    npu = two_kinds(instance.npu) if seed % 2 else instance.npu
    found = api.profile(instance.graph, npu=npu, policy=instance.policy)
    for rule in RULES:
        other = api.profile(instance.graph, npu=npu, policy=instance.policy, **rule)  # type: ignore[arg-type]
        if isinstance(found, api.Profile) and isinstance(other, api.Profile):
            assert found.trace.makespan_ps <= other.trace.makespan_ps, rule
        elif isinstance(found, Infeasible):
            assert isinstance(other, Infeasible), rule


@pytest.mark.parametrize("seed", [s for s in SEEDS if s % 5 != 4])
@pytest.mark.parametrize("count", ["2", "3"])
def test_a_count_of_tiles_fits_where_layers_on_their_own_fit(
    net: Callable[..., Net], seed: int, count: str
) -> None:
    """Networks without attention: a chain that does not fit in so many tiles is not joined."""
    instance = drawn(net, seed)
    alone = api.profile(instance.graph, npu=instance.npu, policy=instance.policy, tiles="none")
    found = api.profile(instance.graph, npu=instance.npu, policy=instance.policy, tiles=count)
    assert isinstance(found, Infeasible) == isinstance(alone, Infeasible)


def test_blocks_of_keys_are_never_slower_than_layers_apart(net: Callable[..., Net]) -> None:
    n = net()
    graph = n.output(n.attention(n.input("x", 1, 512, 64), 2)).graph()
    npu = with_values(load_npu("toy"), {"sram.sram_bytes": 40_000})
    found = api.profile(graph, npu=npu)
    apart = api.profile(graph, npu=npu, segments="none")
    assert isinstance(found, api.Profile)
    assert isinstance(apart, api.Profile)
    assert found.trace.makespan_ps <= apart.trace.makespan_ps
