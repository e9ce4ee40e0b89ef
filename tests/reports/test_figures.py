"""What the report says follows from the trace, and adds up."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import zlib
from base64 import b64decode

import numpy as np
import pytest

import npusim.api as api
from npusim.program import LOAD, STORE, Program
from npusim.reports import hints, tiles
from npusim.reports.critical import critical_path, critical_ps
from npusim.reports.engines import engine_states
from npusim.reports.events import Columns, event_columns, quantum_ps
from npusim.reports.layers import as_csv, layer_figures, layer_rows, union_by
from npusim.reports.memory import live_ranges
from npusim.reports.page import figure, figures
from npusim.reports.theme import block_of, plain
from npusim.reports.timeline import merge
from npusim.trace import lane_busy_ps, union_ps

POLICIES = ("serial", "decoupled")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_critical_path_adds_up_to_the_makespan(tiny: api.Profile, policy: str) -> None:
    trace = tiny.traces[policy]
    assert critical_ps(tiny.program, trace).sum() == trace.makespan_ps


@pytest.mark.parametrize("policy", POLICIES)
def test_each_command_of_the_critical_path_starts_when_the_one_before_it_ends(
    tiny: api.Profile, policy: str
) -> None:
    trace = tiny.traces[policy]
    path = critical_path(tiny.program, trace)
    assert len(path) > 3
    assert trace.start_ps[path[0]] == 0
    assert np.array_equal(trace.start_ps[path[1:]], trace.end_ps[path[:-1]])


@pytest.mark.parametrize("policy", POLICIES)
def test_the_states_of_an_engine_add_up_to_the_makespan(tiny: api.Profile, policy: str) -> None:
    trace = tiny.traces[policy]
    states = engine_states(tiny.program, trace)
    busy = lane_busy_ps(tiny.program, trace)
    for lane, found in states.items():
        assert sum(found.values()) == trace.makespan_ps
        assert found["busy"] == busy[lane]
        assert min(found.values()) >= 0


def test_layer_sums_are_those_of_the_summary(tiny: api.Profile) -> None:
    figures = layer_figures(tiny)
    assert figures.macs.sum() == tiny.summary["macs"]
    assert figures.dram_bytes.sum() == tiny.summary["dram_read_bytes"] + tiny.summary["dram_write_bytes"]
    assert figures.spill_bytes.sum() == tiny.summary["spill_bytes"]
    assert figures.critical_ps.sum() / 10**9 == tiny.summary["latency_ms"]


def test_union_by_agrees_with_the_union_of_each_group() -> None:
    draw = np.random.default_rng(3)
    group, start = draw.integers(0, 5, 400), draw.integers(0, 5000, 400)
    end = start + draw.integers(0, 60, 400)
    found = union_by(group, start, end, 6)
    assert found.tolist() == [union_ps(start[group == g], end[group == g]) for g in range(6)]


def _decoded(columns: Columns) -> dict[str, np.ndarray]:
    raw, offset, found = zlib.decompress(b64decode(columns.text())), 0, {}
    for name, kind, length, differences in columns.index():
        stored = np.frombuffer(raw, dtype=kind, count=length, offset=offset).astype(np.int64)
        found[name] = np.cumsum(stored) if differences else stored
        assert offset % np.dtype(kind).itemsize == 0, (
            "a typed array must start at a multiple of its element size"
        )
        offset += found[name].size * np.dtype(kind).itemsize
    assert offset == len(raw)
    return found


def _touched(program: Program, command: int) -> int:
    """Bytes of the boxes of a command, one by one."""
    table, buffers = program.accesses, program.buffers
    of = np.flatnonzero(table.command == command).tolist()
    elements = (int(np.prod(table.shape[a])) for a in of)
    sizes = (int(program.tensors.element_bytes[buffers.tensor[table.buffer[a]]]) for a in of)
    return sum(n * size for n, size in zip(elements, sizes, strict=True))


def test_columns_that_ascend_come_back() -> None:
    columns, times = Columns(), np.asarray([0, 0, 3, 2**31 - 2])
    columns.add("time", times, ascending=True)
    assert np.array_equal(_decoded(columns)["time"], times)


def test_the_page_gets_every_command_back(tiny: api.Profile) -> None:
    program, trace = tiny.program, tiny.trace
    columns, counts = event_columns(program, trace, tiny.work, 1, np.zeros(len(program), dtype=bool))
    found = _decoded(columns)
    at = 0
    for gang, count in enumerate(counts):
        mine = np.flatnonzero(program.commands.gang == gang)
        mine = mine[np.argsort(trace.start_ps[mine], kind="stable")]
        rows = slice(at, at + count)
        end = np.cumsum(found["gap"][rows] + found["span"][rows])
        assert np.array_equal(end, trace.end_ps[mine])
        assert np.array_equal(end - found["span"][rows], trace.start_ps[mine])
        kind = found["class"][rows]
        assert np.array_equal(found["class_layer"][kind], program.commands.layer[mine])
        moved, size = tiny.work.dram_bytes[mine], found["class_bytes"][kind]
        transfer = np.isin(program.commands.opcode[mine], (LOAD, STORE))
        assert np.array_equal(size[transfer], moved[transfer])
        assert not moved[~transfer].any()
        touched = [_touched(program, i) for i in mine[~transfer].tolist()]
        assert size[~transfer].tolist() == touched
        assert np.array_equal(found["tile"][rows], program.commands.tile[mine])
        at += count
    assert at == len(program)


@pytest.mark.parametrize("makespan", [1, 2**31 - 1, 2**31, 10**12])
def test_the_makespan_fits_31_bits(makespan: int) -> None:
    quantum = quantum_ps(makespan)
    assert makespan // quantum < 2**31
    assert quantum == 1 or makespan // (quantum - 1) > 2**31 - 1


def test_what_the_address_map_shows_lies_inside_the_sram(tiny: api.Profile) -> None:
    buffer, first, last = live_ranges(tiny.program, tiny.trace)
    address = tiny.program.buffers.address[buffer]
    assert (last >= first).all()
    assert (address + tiny.program.buffers.stored_bytes[buffer]).max() <= tiny.plan.npu.sram.sram_bytes


def test_merging_keeps_the_busy_time() -> None:
    draw = np.random.default_rng(5)
    edges = np.cumsum(draw.integers(1, 40, 600))
    start, end = edges[0::2], edges[1::2]
    category = draw.integers(0, 4, len(start))
    left, right, kind, share = merge(start, end, category, 100)
    assert len(left) < len(start)
    assert round(((right - left) * share).sum()) == (end - start).sum()
    assert (left[1:] >= right[:-1]).all()
    assert set(kind.tolist()) <= set(category.tolist())


def test_every_figure_is_a_plotly_figure(tiny: api.Profile) -> None:
    found = figures(tiny)
    assert {"timeline", "sram", "bandwidth", "engines", "roofline"} <= found.keys()
    for description in found.values():
        assert len(figure(description).data) == len(description["data"])


def test_the_tile_curve_marks_the_chosen_point_and_the_papers_rule() -> None:
    points = [
        {"tile_count": 8, "latency_ms": 3.0, "dram_bytes": 7, "chosen": False, "paper_rule": True},
        {"tile_count": 4, "latency_ms": 2.0, "dram_bytes": 9, "chosen": True, "paper_rule": False},
    ]
    marks = {t["name"]: (t["x"], t["y"]) for t in tiles.tile_curve(points)["data"]}
    assert marks["chosen"] == ([4], [2.0])
    assert marks["the paper's rule"] == ([8], [3.0])
    assert marks["latency"] == ([4, 8], [2.0, 3.0])


def test_a_segment_of_one_searched_point_shows_what_why_simulated() -> None:
    why = {
        "alone_ms": 2.0,
        "next_best": [{"tile_count": 9, "latency_ms": 3.0}, {"tile_count": 1, "latency_ms": None}],
    }
    one = {"tile_count": 4, "latency_ms": 1.5, "chosen": True}
    bare = {"name": "a", "tile_count": 4, "latency_ms": 1.5, "tile_curve": [one]}
    explained = bare | {"name": "b", "why": why}
    assert tiles.curve_points(bare) == [one]
    assert [p["tile_count"] for p in tiles.curve_points(explained)] == [4, 9]
    curves = tiles.curves({"segments": [bare, explained]})
    assert [c["name"] for c in curves] == ["b"]
    assert "yaxis2" not in curves[0]["figure"]["layout"]


def test_every_layer_has_a_row_and_csv_keeps_its_name(tiny: api.Profile) -> None:
    rows = layer_rows(tiny, layer_figures(tiny))
    assert [row.name for row in rows] == list(tiny.program.layers)
    read = list(csv.DictReader(io.StringIO(as_csv(rows), newline="")))
    assert [(r["name"], int(r["dram_bytes"])) for r in read] == [(row.name, row.dram_bytes) for row in rows]
    assert read[0]["shape"] == "1x1x256x32"


def test_hints_give_numbers(tiny: api.Profile) -> None:
    found = hints.hints(tiny, layer_figures(tiny))
    assert found
    assert all(any(c.isdigit() for c in hint) for hint in found if not hint.startswith("No intermediate"))


def test_spilled_tensors_add_up_to_the_spill(untiled: api.Profile) -> None:
    spilled = hints.spilled_tensors(untiled)
    assert sum(size for _, size in spilled) == untiled.summary["spill_bytes"]
    assert spilled[0][1] == max(size for _, size in spilled)


@pytest.mark.parametrize(
    ("scope", "block", "part"),
    [
        ("down_blocks.0.attentions.1.proj_in", "down_blocks.0", "down_blocks.0.attentions.1"),
        ("/up_blocks.2/resnets.0/conv1", "up_blocks.2", "up_blocks.2.resnets.0"),
        ("conv_in", "conv_in", "conv_in"),
        ("", "(no module path)", "(no module path)"),
    ],
)
def test_layers_roll_up_by_block(scope: str, block: str, part: str) -> None:
    assert block_of(scope) == block
    assert block_of(scope, 2) == part


def test_plotly_shows_a_hostile_name_literally() -> None:
    assert plain("<b>&amp;") == "&lt;b&gt;&amp;amp;"


def test_importing_the_page_does_not_import_plotly() -> None:
    code = "import sys, npusim.reports.page, npusim.reports.compare; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
