"""The gate and the zoo comparison: limits, baselines, blame, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from npusim.check import check_baseline, check_limits
from npusim.errors import BadInputError
from npusim.reports.zoo import write_zoo_page
from npusim.zoo_compare import compare_zoo, systems_rows

SEGMENTS = [
    {"name": "a", "dram_bytes": 700, "latency_ms": 1.0},
    {"name": "b", "dram_bytes": 100, "latency_ms": 3.0},
]
RUN: dict[str, Any] = {
    "model": "m", "npu": "n", "precision": "w8a16", "dram_read_bytes": 600, "dram_write_bytes": 400,
    "latency_ms": 5.0, "segments": SEGMENTS,
}  # fmt: skip


def test_a_run_at_its_limits_passes() -> None:
    assert check_limits(RUN, max_dram_bytes=1000, max_latency_ms=5.0) == []
    assert check_baseline(RUN, RUN, tolerance_percent=0) == []


def test_a_byte_too_many_names_the_heaviest_segments_first() -> None:
    (found,) = check_limits(RUN, max_dram_bytes=999, max_latency_ms=None)
    assert found.blame == ("a 700 B", "layers outside segments 200 B", "b 100 B")


def test_a_slow_run_names_the_slowest_segment() -> None:
    (found,) = check_limits(RUN, max_dram_bytes=None, max_latency_ms=4.9)
    assert found.sentence() == "latency: 5.000 ms, allowed are 4.900 ms; most of it: b 3.000 ms, a 1.000 ms"


def test_growth_is_blamed_on_the_segment_that_grew() -> None:
    grown = {**RUN, "dram_read_bytes": 660, "segments": [SEGMENTS[0], {**SEGMENTS[1], "dram_bytes": 160}]}
    assert check_baseline(grown, RUN, tolerance_percent=6) == []
    (found,) = check_baseline(grown, RUN, tolerance_percent=5)
    assert found.blame == ("b 60 B",)


def test_a_baseline_of_another_model_is_refused() -> None:
    with pytest.raises(BadInputError, match="another model"):
        check_baseline(RUN, {**RUN, "model": "x"}, tolerance_percent=0)


def test_the_zoo_page_holds_every_network_and_its_systems(tmp_path: Path) -> None:
    rows = compare_zoo(("taesd-decoder", "edgefusion"), npu="exynos2400", jobs=1)
    systems = systems_rows(rows)
    assert {s.network for s in systems} == {"edgefusion"}
    assert all(r.coverage == 1.0 for r in rows)
    assert rows[1].latency_ms[1] < rows[1].latency_ms[0]
    write_zoo_page(rows, systems, "exynos2400", tmp_path / "zoo.html")
    page = (tmp_path / "zoo.html").read_text("utf-8")
    assert "taesd-decoder" in page
    assert "EdgeFusion, 4 steps" in page
    assert "http://" not in page.split("<script>")[0]
