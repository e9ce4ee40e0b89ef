"""DMA cost of the real U-Net: DRAM bytes per segment, against committed baselines and against closed forms.

`pytest tests/core/test_dma_cost.py --update-baselines` writes what the core says now; the diff is then part of the review.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npusim import api
from npusim.graph import Graph, Layer
from npusim.layout import box_bytes_and_runs
from npusim.program import DRAM, READ, ROLE, Program

BASELINE = Path(__file__).parents[1] / "baselines" / "dram_bytes.bk-sdm-tiny.json"
TILES = ("none", "sram", "auto")
POLICIES = ("serial", "decoupled")
SCORES_BYTES = 8 * 4096 * 4096 * 2  # of one 64x64 self-attention, INT16: 268,435,456
BLOCKS = {"up_blocks.2": 2, "down_blocks.0": 1}  # attentions at 64x64 in BK-SDM-Tiny


def dram_bytes_by_segment(found: api.Profile) -> dict[str, int]:
    """DRAM bytes of each attention (tiled or not), of everything else together, and of the whole network."""
    groups: dict[str, list[int]] = {}
    for index, layer in enumerate(found.graph.layers):
        groups.setdefault(layer.group or "everything else", []).append(index)
    layers = found.program.commands.layer
    result = {name: int(found.work.dram_bytes[np.isin(layers, mine)].sum()) for name, mine in groups.items()}
    return {**dict(sorted(result.items())), "total": sum(result.values())}


def tensor_traffic(program: Program, tensor: str) -> tuple[int, int]:
    """(bytes read, bytes written) of one tensor across the DRAM bus."""
    a, b, t = program.accesses, program.buffers, program.tensors
    index = t.name.index(tensor)
    mine = (b.tensor[a.buffer] == index) & (b.space[a.buffer] == DRAM)
    count = int(mine.sum())
    size, _ = box_bytes_and_runs(
        np.repeat(t.shape[index : index + 1], count, axis=0), a.shape[mine],
        np.repeat(t.layout[index : index + 1], count, axis=0), np.full(count, t.element_bytes[index]),
    )  # fmt: skip
    reads = a.mode[mine] == READ
    return int(size[reads].sum()), int(size[~reads].sum())


def large_attentions(graph: Graph) -> list[tuple[Layer, Layer, Layer]]:
    """(scores, softmax, values) of every self-attention with 4096 queries and keys."""
    groups: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        if layer.group:
            groups.setdefault(layer.group, []).append(layer)
    return [(a, b, c) for a, b, c in groups.values() if graph.tensors[a.output].shape[2:] == (4096, 4096)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("tiles", TILES)
def test_dram_bytes_of_every_segment_are_those_of_the_baseline(
    unet_profile: Callable[[str, str], api.Profile], update_baselines: bool, tiles: str, policy: str
) -> None:
    measured = dram_bytes_by_segment(unet_profile(tiles, policy))
    known: dict[str, Any] = json.loads(BASELINE.read_text("utf-8")) if BASELINE.exists() else {}
    if update_baselines:
        known.setdefault(policy, {})[tiles] = measured
        ordered = {p: {t: known[p][t] for t in TILES if t in known[p]} for p in POLICIES if p in known}
        BASELINE.write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")
    else:
        assert measured == known[policy][tiles]


def test_there_are_three_self_attentions_at_64x64(unet: Graph) -> None:
    assert len(large_attentions(unet)) == sum(BLOCKS.values())


@pytest.mark.parametrize("policy", POLICIES)
def test_without_tiling_the_scores_of_a_64x64_block_cross_the_dram_four_times(
    unet_profile: Callable[[str, str], api.Profile], policy: str
) -> None:
    """Stored and loaded before the softmax, stored and loaded after it: 4 x 268,435,456 bytes."""
    found = unet_profile("none", policy)
    for scores, softmax, values in large_attentions(found.graph):
        crossings = (
            *tensor_traffic(found.program, scores.output),
            *tensor_traffic(found.program, softmax.output),
        )
        assert crossings == (SCORES_BYTES,) * 4
        mine = np.isin(
            found.program.commands.layer, [found.graph.layers.index(x) for x in (scores, softmax, values)]
        )
        for role in ("store_scores", "load_scores", "store_probs"):
            of_role = mine & (found.program.commands.role == ROLE[role])
            assert int(found.work.dram_bytes[of_role].sum()) == SCORES_BYTES


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("tiles", ["sram", "auto"])
def test_with_tiling_no_scores_and_no_probabilities_ever_cross_the_dram(
    unet_profile: Callable[[str, str], api.Profile], tiles: str, policy: str
) -> None:
    found = unet_profile(tiles, policy)
    joined = {name for s in found.plan.segments for name in s.layers}
    attention = [x for x in found.graph.layers if x.group and x.attributes.get("y_rows") != "inputs"]
    inside = {x.output for x in attention if x.name in joined}
    assert len(inside) == 2 * len({x.group for x in found.graph.layers if x.group})
    for tensor in inside:
        assert tensor_traffic(found.program, tensor) == (0, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_with_tiling_a_64x64_block_moves_q_k_v_and_the_output_once(
    unet_profile: Callable[[str, str], api.Profile], policy: str
) -> None:
    """Q and K in rows padded from 40 to 64: 2 x 4 MiB; V and the output: 2 x 2.5 MiB."""
    found = unet_profile("sram", policy)
    q_and_k, v_and_out = 2 * 4096 * 8 * 64 * 2, 2 * 4096 * 8 * 40 * 2
    moved = dram_bytes_by_segment(found)
    for scores, _, _ in large_attentions(found.graph):
        assert moved[scores.group] == q_and_k + v_and_out


@pytest.mark.parametrize("policy", POLICIES)
def test_tiling_removes_at_least_the_scores(
    unet_profile: Callable[[str, str], api.Profile], policy: str
) -> None:
    none, sram = (dram_bytes_by_segment(unet_profile(t, policy)) for t in ("none", "sram"))
    assert none["total"] - sram["total"] >= 4 * SCORES_BYTES * sum(BLOCKS.values())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("tiles", TILES)
def test_weights_cross_the_dram_at_least_once_and_mostly_once(
    unet_profile: Callable[[str, str], api.Profile], tiles: str, policy: str
) -> None:
    """323,384,964 parameters: biases of products have 4 bytes, affine parameters of norms 2, weights 1."""
    found = unet_profile(tiles, policy)
    size = dict(zip(found.program.tensors.name, found.program.tensors.element_bytes.tolist(), strict=True))
    weights = [t for t in found.graph.tensors.values() if t.kind == "weight"]
    once = sum(t.elements * size[t.name] for t in weights)
    read = sum(tensor_traffic(found.program, t.name)[0] for t in weights)
    assert once <= read <= 1.5 * once
    assert (
        once
        <= found.summary["dram_bound_bytes"]
        <= found.summary["dram_read_bytes"] + found.summary["dram_write_bytes"]
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_the_summary_counts_the_same_bytes(
    unet_profile: Callable[[str, str], api.Profile], policy: str
) -> None:
    for tiles in TILES:
        found = unet_profile(tiles, policy)
        moved = dram_bytes_by_segment(found)
        summary = found.summary
        assert summary["dram_read_bytes"] + summary["dram_write_bytes"] == moved["total"]
        attention = [s for s in summary["segments"] if s["kind"] == "attention"]
        assert {s["name"]: s["dram_bytes"] for s in attention}.items() <= moved.items()
