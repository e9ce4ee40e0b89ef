"""Whole pictures: the sum law, the specification's sentences, the run directory, batch 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npusim import api
from npusim.check import check_limits, load_cost
from npusim.deployment import match_plan
from npusim.errors import BadInputError, NpusimError, OutputError
from npusim.models.pipeline import load_pipeline, parse_pipeline, shipped_names
from npusim.pipeline import PipelineProfile, profile_pipeline, weight_bytes
from npusim.pipeline_directory import write_pipeline_run
from npusim.pipeline_summary import TABLE_STEPS, positions
from npusim.pipeline_time import Part, events, total_ps

TIMES = st.integers(0, 10**13)
PARTS = st.lists(
    st.builds(
        Part, name=st.just("n"), count=st.none() | st.integers(1, 5), evaluation_ps=TIMES, launch_ps=TIMES, load_ps=TIMES,
        loads=st.sampled_from(("never", "once", "always")),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@given(parts=PARTS, steps=st.integers(1, 30))
def test_events_follow_without_gaps_and_add_up_to_the_total(parts: list[Part], steps: int) -> None:
    found = events(parts, steps)
    assert [e.start_ps for e in found] == [0, *(e.end_ps for e in found[:-1])]
    assert found[-1].end_ps == total_ps(parts, steps)
    for index, part in enumerate(parts):
        mine = [e for e in found if e.part == index]
        assert sum(e.end_ps - e.start_ps for e in mine) == part.total_ps(steps)
        evaluated = [e.evaluation for e in mine if e.what == "evaluation"]
        assert evaluated == list(range(steps if part.count is None else part.count))


@given(parts=PARTS, steps=st.integers(1, 30))
def test_each_further_step_costs_the_same(parts: list[Part], steps: int) -> None:
    first, second, third = (total_ps(parts, steps + n) for n in range(3))
    assert second - first == third - second


def test_networks_of_one_step_take_turns() -> None:
    def part(name: str, count: int | None) -> Part:
        return Part(name=name, count=count, evaluation_ps=1, launch_ps=0, load_ps=0, loads="never")

    parts = [part("encoder", 1), part("control", None), part("unet", None), part("decoder", 1)]
    order = [e.part for e in events(parts, 2) if e.what == "evaluation"]
    assert order == [0, 1, 2, 1, 2, 3]


SMALL = """
name = "small"
steps = 3
load_bytes_per_s = 4e9

[[network]]
name = "first"
model = "taesd-decoder"
precision = "fp16"
weights = "loaded"

[[network]]
name = "second"
model = "taesd-decoder"
repeat = "steps"
tiles = "none"
segments = "none"
weights = "reloaded"
launch_s = 2e-3
"""


@pytest.fixture(scope="module")
def small() -> PipelineProfile:
    return profile_pipeline(parse_pipeline(SMALL, where="small.toml", folder=Path()))


def test_a_picture_is_its_networks_own_runs_with_launches_and_loads(small: PipelineProfile) -> None:
    alone = [
        api.profile("taesd-decoder", precision="fp16"),
        api.profile("taesd-decoder", tiles="none", segments="none"),
    ]
    first, second = (p for p in alone if isinstance(p, api.Profile))
    ms, launch, own_launch = 10**9, 10**9, 2 * 10**9
    bytes_of = [1_222_531 * 2, 1_222_531]  # parameters x bytes, as far as alignment and biases let them be
    assert small.weight_bytes[0] == pytest.approx(bytes_of[0], rel=0.02)
    assert small.weight_bytes[1] == pytest.approx(bytes_of[1], rel=0.05)
    loads = [round(size / 4e9 * 10**12) for size in small.weight_bytes]
    wanted = first.trace.makespan_ps + launch + loads[0]
    wanted += 3 * (second.trace.makespan_ps + own_launch + loads[1])
    assert small.summary["latency_ps"] == wanted
    assert small.summary["latency_ms"] == wanted / ms
    assert small.summary["load_ms"] == (loads[0] + 3 * loads[1]) / ms
    assert small.summary["launch_ms"] == 7.0
    assert small.summary["load_bytes"] == small.weight_bytes[0] + 3 * small.weight_bytes[1]
    assert small.summary["macs"] == first.macs + 3 * second.macs
    moved = small.summary["dram_read_bytes"] + small.summary["dram_write_bytes"]
    assert moved == first.dram_bytes + 3 * second.dram_bytes + small.summary["load_bytes"]


def test_the_table_of_steps_is_what_the_timeline_gives_at_those_steps(small: PipelineProfile) -> None:
    rows = small.summary["steps_table"]
    assert [row["steps"] for row in rows] == sorted({*TABLE_STEPS, 3})
    for row in rows:
        assert row["latency_ps"] == events(small.parts(), row["steps"])[-1].end_ps
    assert next(r for r in rows if r["steps"] == 3)["energy_mj"] == pytest.approx(small.summary["energy_mj"])


def test_what_dominates_is_at_most_the_evaluation_and_named(small: PipelineProfile) -> None:
    for row in small.summary["networks"]:
        assert 0 < sum(d["ms"] for d in row["dominated_by"]) <= row["evaluation_ms"] * (1 + 1e-9)
        assert row["dominated_by"][0]["what"] == "conv over 512 x 512"
    assert positions(77) == "77 rows"
    assert positions(4) == "4 rows"


def test_the_run_directory_holds_a_run_per_network_and_one_timeline(
    small: PipelineProfile, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    write_pipeline_run(small, run)
    names = {"pipeline.toml", "summary.json", "trace.json", "report.html", "first", "second"}
    assert {p.name for p in run.iterdir()} == names
    assert (run / "pipeline.toml").read_text("utf-8") == SMALL
    assert json.loads((run / "summary.json").read_text("utf-8")) == json.loads(json.dumps(small.summary))
    trace = json.loads((run / "trace.json").read_text("utf-8"))
    slices = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert sum(e["args"]["end_ps"] - e["args"]["start_ps"] for e in slices) == small.summary["latency_ps"]
    notes = match_plan(run / "second", small.profiles[1].graph, "the model").notes
    assert notes == ()
    page = (run / "report.html").read_text("utf-8")
    assert f"{small.summary['latency_ps']:,} ps" in page
    assert 'href="second/report.html"' in page


def test_a_pipelines_run_is_replaced_and_nothing_else_is(small: PipelineProfile, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_pipeline_run(small, run)
    (run / "second" / "scales.npz").write_bytes(b"")
    write_pipeline_run(small, run)
    assert not (run / "second" / "scales.npz").exists()
    (run / "second" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'mine\.txt', which npusim did not write"):
        write_pipeline_run(small, run)
    (run / "second" / "mine.txt").rename(run / "mine.txt")
    with pytest.raises(OutputError, match=r"holds 'mine\.txt', which npusim did not write"):
        write_pipeline_run(small, run)
    assert (run / "mine.txt").read_text() == "mine"


def test_the_gate_blames_networks(small: PipelineProfile, tmp_path: Path) -> None:
    write_pipeline_run(small, tmp_path / "run")
    (found,) = check_limits(load_cost(tmp_path / "run"), max_dram_bytes=None, max_latency_ms=0.1)
    assert found.blame[0].startswith("second ")


def changed(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new, 1)


BAD = {
    "no TOML": ("name = ", "is not TOML"),
    "no steps": (changed("steps = 3", ""), "steps: Field required"),
    "no network": ('name = "x"\nsteps = 1', "network: Field required"),
    "unknown key": (
        changed("steps = 3", "steps = 3\nguidance = 7.5"),
        "guidance: is not a key of the format, found 7.5",
    ),
    "unknown key of a network": (
        changed('weights = "loaded"', "cached = true"),
        "network.0.cached: is not a key",
    ),
    "steps of zero": (changed("steps = 3", "steps = 0"), "greater than or equal to 1, found 0"),
    "steps as text": (
        changed("steps = 3", 'steps = "3"'),
        "steps: Input should be a valid integer, found '3'",
    ),
    "a precision that is none": (
        changed("fp16", "int4"),
        "network.0.precision: Input should be 'w8a16', 'w8a8'",
    ),
    "tiles that are none": (changed('tiles = "none"', 'tiles = "few"'), "network.1.tiles"),
    "a name twice": (changed('"second"', '"first"'), "two networks are called 'first'"),
    "a name that leaves the folder": (changed('"second"', '"../second"'), "a name is 1 to 64 letters"),
    "a name like a file of the run": (changed('"second"', '"report.html"'), "a network's name has no dot"),
    "weights without a rate": (changed("load_bytes_per_s = 4e9", ""), "nothing says how fast"),
    "an endless launch": (changed("2e-3", "inf"), "network.1.launch_s"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_specification_is_refused_with_one_sentence(case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(BadInputError) as caught:
        parse_pipeline(text, where="small.toml", folder=Path())
    assert str(caught.value).startswith("small.toml: ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("see docs/pipelines.md for the format")
    assert "\n" not in str(caught.value) or case == "no TOML"


UNUSABLE = {
    "no such network": (changed("taesd-decoder", "taesd"), "network 'first': model: no file and no zoo network"),
    "no such file": (changed("taesd-decoder", "mine.onnx"), "network 'first': .*mine.onnx"),
    "no xz": (changed("taesd-decoder", "small.onnx.xz"), "small.onnx.xz: is no xz file"),
    "guidance without batch 2": (
        changed('precision = "fp16"', 'guidance = "batch2"'), "the zoo has 'taesd-decoder' at batch 1 only",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_network_that_cannot_be_had_is_named(case: str, tmp_path: Path) -> None:
    text, message = UNUSABLE[case]
    (tmp_path / "small.onnx.xz").write_bytes(b"nothing")
    with pytest.raises(NpusimError, match=message):
        profile_pipeline(parse_pipeline(text, where="small.toml", folder=tmp_path))


def test_guidance_on_a_file_needs_a_batch_that_is_not_fixed(tmp_path: Path) -> None:
    from npusim.models import zoo

    (tmp_path / "fixed.onnx").write_bytes(zoo.graph_bytes("taesd-decoder"))
    text = changed("taesd-decoder", "fixed.onnx").replace('"fp16"', '"fp16"\nguidance = "batch2"')
    with pytest.raises(NpusimError, match="guidance is batch2, and the model cannot take 2 samples at once"):
        profile_pipeline(parse_pipeline(text, where="small.toml", folder=tmp_path))


def test_a_missing_pipeline_names_the_shipped_ones() -> None:
    with pytest.raises(
        BadInputError, match=r"nothing.toml: no such pipeline; .*edgefusion.toml, .*sd-v1.5.toml"
    ):
        load_pipeline("nothing.toml")


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_specification_reads_and_names_what_ships(name: str) -> None:
    from npusim.pipeline import network_graph

    given = load_pipeline(name)
    assert f"{given.pipeline.name}.toml" == name
    for network in given.pipeline.network:
        graph = network_graph(given, network)
        assert not graph.coverage.unmodelled
        assert all(w.shape[0] == network.batch for w in graph.inputs if len(w.shape) > 1)


def test_a_file_of_a_shipped_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edgefusion.toml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    assert load_pipeline("edgefusion.toml").pipeline.name == "small"


def npusim(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "import sys; from npusim.cli import main; main(); assert 'torch' not in sys.modules",
    ]
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_the_command_line_profiles_a_pipeline_without_torch(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    done = npusim("profile", "small.toml", "--steps", "2", "--tiles", "sram", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["steps"] == 2
    assert [n["tiles"] for n in summary["networks"]] == ["sram", "sram"]
    assert [n["precision"] for n in summary["networks"]] == ["fp16", "w8a16"]
    assert (tmp_path / "npusim-runs" / "small-pipeline" / "second" / "plan.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("small.toml", "--why"), "--why is about one network, and a pipeline has several"),
        (("small.toml", "--shape", "x=1x2"), "--shape is about one network"),
        (("taesd-decoder", "--steps", "2"), "--steps is for a pipeline's TOML"),
        (("other.toml",), "other.toml: no such pipeline"),
    ],
)
def test_the_command_line_refuses_what_a_pipeline_cannot_do(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    done = npusim("profile", *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "npusim-runs").exists()


@pytest.mark.slow
def test_a_guided_network_at_batch_2_multiplies_twice_as_much_with_the_same_weights() -> None:
    found = profile_pipeline("sd-v1.5.toml", changes={"tiles": "sram"})
    alone = api.profile("sd-v1.5", tiles="sram")
    assert isinstance(alone, api.Profile)
    guided = found.profiles[1]
    assert guided.macs == 2 * alone.macs
    assert found.weight_bytes[1] == weight_bytes(alone.program)
    assert found.summary["latency_ps"] == found.events[-1].end_ps
    assert found.summary["networks"][1]["evaluations"] == 25
