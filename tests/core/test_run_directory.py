"""The run directory: all or nothing, ours or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npusim import api, run_directory
from npusim.errors import OutputError
from npusim.run_directory import check_replaceable, default_directory, dump_json, load_summary, write_run

Net = Any
FILES = {"plan.json", "summary.json", "trace.json", "report.html"}

#: `summary.json` is a contract: scripts read these keys, in whatever order.
SUMMARY_KEYS = {
    "schema_version", "model", "npu", "tiles", "segments_kinds", "precision", "policy", "latency_ms", "serial_latency_ms",
    "dram_read_bytes", "dram_write_bytes", "spill_bytes", "dram_bound_bytes", "macs", "peak_sram_bytes", "sram_utilization",
    "handover_ms", "energy_mj", "lower_bound_ms", "coverage", "assumptions", "engine_busy", "segments", "attention",
}  # fmt: skip
SEGMENT_KEYS = {
    "name", "kind", "layers", "tile_count", "latency_ms", "busy_ms", "dram_bytes", "peak_sram_bytes", "precision", "tile_curve",
}  # fmt: skip
ATTENTION_KEYS = {"name", "heads", "queries", "keys", "head_dim", "rows", "other_ms"}


@pytest.fixture(scope="module")
def made(net: Callable[..., Net]) -> api.Profile:
    n = net()
    found = api.profile(n.output(n.attention(n.input("x", 1, 32, 32), 4)).graph(name="tiny"), npu="toy")
    assert isinstance(found, api.Profile)
    return found


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_a_run_is_four_files_and_nothing_is_left_beside_it(made: api.Profile, tmp_path: Path) -> None:
    write_run(made, tmp_path / "runs" / "tiny")
    assert names(tmp_path / "runs" / "tiny") == FILES
    assert names(tmp_path / "runs") == {"tiny"}


def test_the_files_say_what_the_profile_says(made: api.Profile, tmp_path: Path) -> None:
    write_run(made, tmp_path / "run")
    assert (tmp_path / "run" / "plan.json").read_text("utf-8") == made.plan.to_json()
    assert load_summary(tmp_path / "run") == json.loads(dump_json(made.summary))
    trace = json.loads((tmp_path / "run" / "trace.json").read_text("utf-8"))
    slices = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    lanes = {e["tid"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert {e["tid"] for e in slices} <= lanes
    assert {e["args"]["command"] for e in slices} == set(range(len(made.program)))
    assert max(e["ts"] + e["dur"] for e in slices) == pytest.approx(made.summary["latency_ms"] * 1e3)


def test_the_summary_keeps_its_keys(made: api.Profile) -> None:
    assert set(made.summary) >= SUMMARY_KEYS
    assert set(made.summary["coverage"]) >= {"nodes", "macs", "bytes", "unmodelled"}
    assert all(set(s) >= SEGMENT_KEYS for s in made.summary["segments"])
    assert all(set(a) >= ATTENTION_KEYS for a in made.summary["attention"])
    assert json.loads(dump_json(made.summary))["schema_version"] == 1
    assert 0 < made.summary["sram_utilization"] <= 1
    assert all(0 <= share <= 1 for share in made.summary["engine_busy"].values())


def test_an_earlier_run_of_ours_is_replaced_as_a_whole(made: api.Profile, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(made, run)
    (run / "scales.npz").write_bytes(b"of the plan that is gone")
    (run / "summary.json").write_text("old", "utf-8")
    write_run(made, run)
    assert names(run) == FILES
    assert load_summary(run)["model"] == "tiny"


def test_an_empty_folder_is_taken(made: api.Profile, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_run(made, tmp_path / "run")
    assert names(tmp_path / "run") == FILES


@pytest.mark.parametrize("name", ["thesis.tex", ".git", "plan.json.bak"])
def test_a_folder_with_anything_else_is_refused_and_kept(
    made: api.Profile, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine", "utf-8")
    (tmp_path / "plan.json").write_text("{}", "utf-8")
    with pytest.raises(OutputError) as caught:
        write_run(made, tmp_path)
    assert f"holds '{name}', which npusim did not write" in str(caught.value)
    assert names(tmp_path) == {name, "plan.json"}


def test_a_folder_with_only_a_strangers_report_is_refused(made: api.Profile, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<h1>my own report</h1>", "utf-8")
    with pytest.raises(OutputError):
        check_replaceable(tmp_path)


def test_a_file_or_a_link_in_the_way_is_refused(made: api.Profile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", "utf-8")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("file", "link"):
        with pytest.raises(OutputError, match="is in the way and no folder"):
            write_run(made, tmp_path / name)
    assert names(tmp_path) == {"file", "target", "link"}
    assert names(tmp_path / "target") == set()


class Interrupted(BaseException):
    """What no handler in the code names."""


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), Interrupted(), KeyboardInterrupt()]
)
@pytest.mark.parametrize("at", ["chrome_trace", "report"])
def test_an_interrupted_write_leaves_nothing_and_keeps_the_earlier_run(
    made: api.Profile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    earlier: bool,
    failure: BaseException,
    at: str,
) -> None:
    run = tmp_path / "run"
    if earlier:
        write_run(made, run)
    before = {p.name: p.read_bytes() for p in run.iterdir()} if earlier else {}

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    if at == "report":
        monkeypatch.setattr("npusim.reports.page.write_report", fail)
    else:
        monkeypatch.setattr(run_directory, "chrome_trace", fail)
    with pytest.raises(OutputError if isinstance(failure, OSError) else type(failure)):
        write_run(made, run)
    assert names(tmp_path) == ({"run"} if earlier else set())
    assert ({p.name: p.read_bytes() for p in run.iterdir()} if earlier else {}) == before


def test_a_swap_that_fails_half_way_keeps_the_earlier_run(
    made: api.Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    write_run(made, run)
    rename, calls = os.rename, []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OutputError):
        write_run(made, run)
    assert names(tmp_path) == {"run"}
    assert names(run) == FILES


def test_an_earlier_run_that_cannot_be_put_back_is_not_deleted(
    made: api.Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    write_run(made, run)
    before = (run / "plan.json").read_bytes()
    rename, calls = os.rename, []

    def only_the_first(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > 1:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", only_the_first)
    with pytest.raises(OutputError):
        write_run(made, run)
    assert [p.read_bytes() for p in tmp_path.rglob("plan.json")] == [before]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_refused(made: api.Profile, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        write_run(made, tmp_path / "locked" / "run")


def test_a_parent_that_is_a_file_is_refused(made: api.Profile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", "utf-8")
    with pytest.raises(OutputError, match="cannot be written"):
        write_run(made, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("bk-sdm-tiny", "bk-sdm-tiny"),
        ("../../etc", "etc"),
        ("a b/c", "a_b_c"),
        ("...", "model"),
        ("", "model"),
    ],
)
def test_the_default_place_is_a_plain_name_under_npusim_runs(model: str, folder: str) -> None:
    assert default_directory(model) == Path("npusim-runs") / folder


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_summary_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text, "utf-8")
    with pytest.raises(OutputError, match="is no summary of a run"):
        load_summary(tmp_path)
    with pytest.raises(OutputError, match="is no summary of a run"):
        load_summary(tmp_path / "nowhere")
