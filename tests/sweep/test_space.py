"""Points, their keys, and rows that are to the byte what single runs give."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npusim import api
from npusim.hardware import load_npu, npu_from_dict, with_values
from npusim.reports.sweep_figures import knee
from npusim.run_directory import dump_json
from npusim.sweep.evaluate import DONE, INFEASIBLE, REFUSED, evaluate, summary_of
from npusim.sweep.objectives import front
from npusim.sweep.space import SWEPT, Space, changed, open_space
from npusim.sweep.spec import Spec


def space_of(folder: Path, **fields: Any) -> Space:
    return open_space(Spec.model_validate({"name": "t", "networks": ["net.onnx"], **fields}), folder)


@pytest.fixture
def folder(tmp_path: Path, net: Callable[..., Any]) -> Path:
    """A folder with a small transformer block."""
    block = net()
    (tmp_path / "net.onnx").write_bytes(
        block.output(block.transformer(block.input("x", 1, 64, 64), 4)).bytes()
    )
    return tmp_path


AXES = {
    "tiles": ["sram", "none"],
    "sram.sram_bytes": [65536, 131072, 262144],
    "tensor_engine.GNPU.count": [1, 2],
}


def test_a_point_is_found_by_its_number_and_every_point_has_another_key(folder: Path) -> None:
    space = space_of(folder, axes=AXES)
    points = list(space)
    assert [p.number for p in points] == list(range(12)) == [space.at(p.number).number for p in points]
    assert [p.key for p in points] == [space.at(i).key for i in range(12)]
    assert len({p.key for p in points}) == 12
    assert points[0].axes == {
        "network": "net",
        "tiles": "sram",
        "sram.sram_bytes": 65536,
        "tensor_engine.GNPU.count": 1,
    }


def test_the_key_is_that_of_the_content_however_it_is_asked_for(folder: Path) -> None:
    own = load_npu("exynos2400").sram.sram_bytes
    (plain,) = space_of(folder)
    (spelled,) = space_of(folder, axes={"tiles": "auto", "sram.sram_bytes": own, "npu": "exynos2400"})
    (other,) = space_of(folder, networks=[{"model": "net.onnx", "name": "other"}])
    assert plain.key == spelled.key
    assert plain.key != other.key


def test_a_row_is_a_single_run_to_the_byte(folder: Path) -> None:
    for point in space_of(folder, axes=AXES):
        row = evaluate(point.network.graph, point.task)
        assert row["status"] == DONE
        npu = npu_from_dict(json.loads(point.task.npu), where="test")
        single = api.profile(folder / "net.onnx", npu=npu, tiles=point.task.tiles)
        assert isinstance(single, api.Profile)
        assert dump_json(summary_of(row, list(single.summary))) == dump_json(dict(single.summary))


def test_a_number_that_is_swept_says_so_and_others_keep_their_source() -> None:
    npu = load_npu("exynos2400")
    moved = changed(npu, {"tensor_engine.GNPU.count": 3, "sram.sram_bytes": npu.sram.sram_bytes})
    assert not isinstance(moved, Exception)
    assert moved.source_of("tensor_engine.count") == SWEPT
    assert moved.source_of("sram.sram_bytes") == npu.source_of("sram.sram_bytes")
    assert with_values(npu, {"tensor_engine.GNPU.count": 3}).tensor_engine[0].count == 3


def test_what_does_not_fit_and_what_contradicts_itself_are_rows_with_the_reason(folder: Path) -> None:
    axes = {
        "sram.sram_bytes": [256, 65536],
        "rows": {
            "keys": ["tensor_engine.GNPU.array_rows", "tensor_engine.GNPU.macs_per_cycle"],
            "values": [[8, 8192], [4, 4096]],
        },
        "tensor_engine.GNPU.array_cols": 16,
    }
    rows = [evaluate(p.network.graph, p.task) for p in space_of(folder, axes=axes)]
    assert [r["status"] for r in rows] == [INFEASIBLE, INFEASIBLE, DONE, DONE]
    assert "bytes of SRAM" in str(rows[0]["reason"])
    point = next(iter(space_of(folder)))
    refused = changed(load_npu("exynos2400"), {"tensor_engine.GNPU.array_rows": 4})
    assert isinstance(refused, Exception)
    from npusim.sweep.space import make_task

    options = {"tiles": "sram", "segments": "all", "precision": "w8a16", "policy": "decoupled"}
    row = evaluate(point.network.graph, make_task(point.network, refused, options))
    assert row["status"] == REFUSED
    assert "macs_per_cycle says 8192" in str(row["reason"])


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=40))
def test_the_front_is_what_brute_force_finds(points: list[tuple[int, int, int]]) -> None:
    def beats(a: Sequence[int], b: Sequence[int]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    assert front(points) == [i for i, p in enumerate(points) if not any(beats(q, p) for q in points)]


def test_the_knee_is_where_the_curve_bends() -> None:
    sizes = [1, 2, 4, 8, 16, 32]
    assert knee(sizes, [100, 60, 20, 18, 17, 16]) == 2
    assert knee(sizes, [100, 80, 60, 40, 20, 0]) is None  # a straight line in doublings
    assert knee(sizes, [5, 5, 5, 5, 5, 5]) is None
    assert knee([1, 2], [2, 1]) is None
