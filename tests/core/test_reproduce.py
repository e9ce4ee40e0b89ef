"""The paper's tables: every cell, and how the modelled rows move when a number of the hardware moves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from npusim import api
from npusim.cost import Work, setup_ps
from npusim.hardware import with_values
from npusim.program import LOAD, STORE, TABLE6_ROLES
from npusim.reproduce import (
    DENOISING_STEPS,
    TABLE6,
    TABLE6_LABELS,
    TABLE7_UNET,
    EdgeFusion,
    PictureRow,
    pictures,
)
from npusim.simulate import simulate
from npusim.summary import attention_blocks

DMA_ROWS = ("load_qk", "store_scores", "load_scores", "store_probs", "load_probs_v", "store_out")


@pytest.fixture(scope="module")
def tables(unet_profile: Callable[[str, str], api.Profile]) -> EdgeFusion:
    return EdgeFusion(without=unet_profile("none", "serial"), tiled=unet_profile("sram", "serial"))


def test_the_published_columns_are_those_of_the_paper() -> None:
    without = [cells[0] for cells in TABLE6.values()]
    tiled = [cells[1] for cells in TABLE6.values()]
    assert without == [0.6, 6.9, 19.1, 18.2, 11.0, 18.5, 19.5, 5.4, 0.7]
    assert tiled == [0.6, 7.2, 0, 0, 11.6, 0, 0.8, 5.7, 0.7]
    assert TABLE7_UNET == (454.3, 200.2)
    assert DENOISING_STEPS == 2


@pytest.mark.parametrize("column", [0, 1], ids=["without MLT", "with MLT"])
@pytest.mark.parametrize("row", range(10), ids=[*TABLE6_ROLES, "total"])
def test_every_cell_of_table_6_is_within_its_tolerance(tables: EdgeFusion, column: int, row: int) -> None:
    cell = tables.table6()[column][row]
    assert cell.label == [*TABLE6_LABELS, "total"][row]
    assert abs(cell.deviation) <= (0.3 if cell.published < 1 else 0.6)


@pytest.fixture(scope="module")
def table7(tables: EdgeFusion) -> list[PictureRow]:
    return pictures(tables)


def test_both_u_net_rows_of_table_7_are_within_three_percent(table7: list[PictureRow]) -> None:
    published = [row for row in table7 if row.published_unet_ms is not None]
    assert [row.published_unet_ms for row in published] == [454.3, 200.2]
    for row in published:
        assert abs(row.unet_ms - (row.published_unet_ms or 0)) <= 0.03 * (row.published_unet_ms or 0)


def test_table_7_is_made_of_whole_pictures_and_says_steps_and_guidance(table7: list[PictureRow]) -> None:
    assert [(row.name, row.steps, row.guidance) for row in table7] == [
        ("SD-v1.5 without MLT", 2, "none"),
        ("EdgeFusion without MLT", 2, "none"),
        ("EdgeFusion with MLT", 2, "none"),
        ("SD-v1.5 without MLT", 25, "batch2"),
    ]
    first, without, tiled, used = table7
    assert {row.encoder_ms for row in table7} == {first.encoder_ms}
    assert {row.decoder_ms for row in table7} == {first.decoder_ms}
    assert first.unet_ms > without.unet_ms > tiled.unet_ms
    assert used.unet_ms == pytest.approx(25 * first.unet_ms, rel=0.05)
    assert [row.launch_ms for row in table7] == [4, 4, 4, 27]
    for row in table7:
        assert row.total_ms == row.encoder_ms + row.unet_ms + row.decoder_ms + row.launch_ms


def test_the_decoder_takes_its_time_from_the_same_description(table7: list[PictureRow]) -> None:
    decoder = api.profile("sd-vae-decoder", tiles="none", segments="none", precision="fp16", policy="serial")
    assert isinstance(decoder, api.Profile)
    assert table7[0].decoder_ms == decoder.latency_ms


@pytest.mark.parametrize("tiles", ["none", "sram"])
def test_rows_and_the_rest_add_up_to_the_block(
    unet_profile: Callable[[str, str], api.Profile], tiles: str
) -> None:
    found = unet_profile(tiles, "serial")
    trace, commands = found.traces["serial"], found.program.commands
    for block in found.summary["attention"]:
        mine = [i for i, x in enumerate(found.graph.layers) if x.group == block["name"]]
        chosen = np.isin(commands.layer, mine)
        whole = int((trace.end_ps - trace.start_ps)[chosen].sum()) / 1e9
        assert sum(block["rows"].values()) + block["other_ms"] == pytest.approx(whole, rel=1e-9)
        assert abs(block["other_ms"]) < 0.02 * whole
        assert list(block["rows"]) == list(TABLE6_ROLES)


@pytest.mark.parametrize("tiles", ["none", "sram"])
def test_halving_the_dram_bandwidth_doubles_every_dma_row_but_its_set_up_and_no_other_row(
    unet_profile: Callable[[str, str], api.Profile], tiles: str
) -> None:
    """The same Program on a machine whose only difference is half of the bandwidth."""
    found = unet_profile(tiles, "serial")
    npu = found.plan.npu
    paths = ("dram.dram_shared_bytes_per_s", "dma.channel_bytes_per_s")
    halved = with_values(npu, dict.fromkeys(paths, npu.dram.dram_shared_bytes_per_s / 2))
    trace = simulate(found.program, halved, "serial", work=Work(found.program, halved))
    after = attention_blocks(found.graph, found.program, trace)
    commands = found.program.commands
    for old, new in zip(found.summary["attention"], after, strict=True):
        mine = np.isin(
            commands.layer, [i for i, x in enumerate(found.graph.layers) if x.group == old["name"]]
        )
        for role in TABLE6_ROLES:
            of_role = mine & (commands.role == TABLE6_ROLES.index(role))
            set_up = int(of_role.sum()) * setup_ps(npu) / 1e9 if role in DMA_ROWS else 0.0
            factor = 2 if role in DMA_ROWS else 1
            assert new["rows"][role] - set_up == pytest.approx(
                factor * (old["rows"][role] - set_up), rel=1e-5, abs=1e-9
            )


def test_only_the_rows_called_dma_are_transfers(unet_profile: Callable[[str, str], api.Profile]) -> None:
    commands = unet_profile("none", "serial").program.commands
    moves = (commands.opcode == LOAD) | (commands.opcode == STORE)
    for number, role in enumerate(TABLE6_ROLES):
        of_role = commands.role == number
        assert of_role.any()
        assert (moves[of_role] == (role in DMA_ROWS)).all()


@pytest.mark.parametrize(
    ("path", "rows"),
    [
        ("vector_lane_operations.softmax", {"softmax"}),
        ("tensor_efficiency.activations", {"qk", "pv"}),
        ("dma.run_overhead_bytes", set(DMA_ROWS)),
        ("tensor_efficiency.weights", set()),
    ],
)
def test_a_fitted_number_moves_only_the_rows_it_is_about(
    unet_profile: Callable[[str, str], api.Profile], path: str, rows: set[str]
) -> None:
    found = unet_profile("none", "serial")
    npu = found.plan.npu
    table, key = path.split(".")
    section = getattr(npu, table)
    value = section[key] if isinstance(section, dict) else getattr(section, key)
    moved = with_values(npu, {path: value * 0.9})
    trace = simulate(found.program, moved, "serial", work=Work(found.program, moved))
    after = attention_blocks(found.graph, found.program, trace)
    for old, new in zip(found.summary["attention"], after, strict=True):
        assert {r for r in TABLE6_ROLES if new["rows"][r] != pytest.approx(old["rows"][r], rel=1e-12)} <= rows
    assert simulate(found.program, moved, "serial").makespan_ps != found.traces["serial"].makespan_ps
