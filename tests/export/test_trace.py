"""`trace`: slices nest, follow each other, and add up to the summary; Perfetto's own classes read the protobuf."""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from npusim.errors import BadInputError, MissingExtraError
from npusim.export.registry import export
from npusim.trace import lane_busy_ps, sram_occupancy

from .conftest import Case, Timed

PS_PER_US = 10**6


@pytest.fixture(scope="module")
def events(timed: Timed, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    path = tmp_path_factory.mktemp("trace") / "t.json.gz"
    export(timed.source, "trace", path)
    found: list[Any] = json.loads(gzip.decompress(path.read_bytes()), parse_float=Decimal, parse_int=Decimal)[
        "traceEvents"
    ]
    return found


def test_slices_of_a_track_are_in_order_and_do_not_overlap(events: list[Any]) -> None:
    tracks: dict[Any, list[Any]] = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            tracks[e["tid"]].append(e)
    assert tracks
    for slices in tracks.values():
        for before, after in pairwise(slices):
            assert before["ts"] + before["dur"] <= after["ts"]


def test_busy_time_of_each_track_is_the_summarys(events: list[Any], timed: Timed) -> None:
    source = timed.source
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    busy: dict[str, Decimal] = defaultdict(Decimal)
    for e in events:
        if e["ph"] == "X":
            busy[names[e["tid"]]] += e["dur"]
    expected = lane_busy_ps(source.program, source.trace)
    assert set(names.values()) == set(expected)
    assert {n: busy[n] * PS_PER_US for n in expected} == expected
    makespan = Decimal(source.trace.makespan_ps)
    assert {n: float(busy[n] * PS_PER_US / makespan) for n in expected} == timed.summary["engine_busy"]


def test_counters_are_the_sram_in_use_and_the_bandwidth(events: list[Any], timed: Timed) -> None:
    source = timed.source
    times, sizes = sram_occupancy(source.program, source.trace)
    found = [(e["ts"] * PS_PER_US, e["args"]["bytes"]) for e in events if e["name"] == "SRAM bytes"]
    assert found == list(zip(times.tolist(), sizes.tolist(), strict=True))
    rates = [(e["ts"] * PS_PER_US, e["args"]["bytes_per_s"]) for e in events if e["name"] == "DRAM bytes/s"]
    assert rates == [tuple(r) for r in source.trace.bandwidth.tolist()]
    assert max(size for _, size in found) == timed.summary["peak_sram_bytes"]


def test_a_run_directory_has_the_same_trace(cases: Callable[..., Case], tmp_path: Path) -> None:
    """One writer: what profile writes is what export writes."""
    from npusim import api
    from npusim.run_directory import write_run

    case = cases("unet")
    found = api.profile(case.source.graph, npu=case.source.plan.npu)
    assert isinstance(found, api.Profile)
    write_run(found, tmp_path / "run")
    export(case.source, "trace", tmp_path / "t.json")
    assert (tmp_path / "t.json").read_bytes() == (tmp_path / "run" / "trace.json").read_bytes()


def test_perfettos_own_classes_read_the_protobuf(timed: Timed, tmp_path: Path) -> None:
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto

    source = timed.source
    export(source, "trace", tmp_path / "t.pftrace")
    trace = proto.Trace()
    trace.ParseFromString((tmp_path / "t.pftrace").read_bytes())
    names = {
        p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")
    }
    opened: dict[int, int] = {}
    last: dict[int, int] = defaultdict(int)
    busy: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    for packet in trace.packet:
        event = packet.track_event
        if event.type == proto.TrackEvent.TYPE_SLICE_BEGIN:
            assert event.track_uuid not in opened
            assert packet.timestamp >= last[event.track_uuid]
            opened[event.track_uuid] = packet.timestamp
            count[names[event.track_uuid].name] += 1
        elif event.type == proto.TrackEvent.TYPE_SLICE_END:
            busy[names[event.track_uuid].name] += packet.timestamp - opened.pop(event.track_uuid)
            last[event.track_uuid] = packet.timestamp
    assert not opened
    engines = [len(g.engines) for g in source.program.gangs]
    assert sum(count.values()) == sum(engines[g] for g in source.program.commands.gang.tolist())
    for lane, expected in lane_busy_ps(source.program, source.trace).items():
        assert abs(busy[lane] * 1000 - expected) <= 1000 * count[lane], lane
    counters = {n.name for n in names.values() if n.HasField("counter")}
    assert counters == {"SRAM", "DRAM"}


def test_another_ending_is_refused_with_those_that_there_are(
    cases: Callable[..., Case], tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=r"names that end in \.json\.gz, \.json, \.pftrace"):
        export(cases("unet").source, "trace", tmp_path / "t.txt")


def test_without_perfetto_its_extra_is_named_and_nothing_written(
    cases: Callable[..., Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "perfetto":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "perfetto", None)
    with pytest.raises(MissingExtraError, match=r"'perfetto'.*pip install 'npusim\[export\]'"):
        export(cases("unet").source, "trace", tmp_path / "t.pftrace")
    assert not list(tmp_path.iterdir())
