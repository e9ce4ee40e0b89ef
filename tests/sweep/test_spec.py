"""What a sweep may ask for, and each refusal: exit 2 and one sentence that says where, what was found, what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from npusim.errors import BadInputError
from npusim.sweep.objectives import check_objectives
from npusim.sweep.space import Space, open_space
from npusim.sweep.spec import Spec, load_spec

HEAD = 'networks = ["taesd-decoder"]\nnpu = "toy"\n'


def opened(text: str, folder: Path) -> Space:
    path = folder / "s.toml"
    path.write_text(text, "utf-8")
    spec = load_spec(path)
    check_objectives(spec)
    return open_space(spec, folder)


def test_a_list_a_range_a_single_value_and_linked_keys_are_axes(tmp_path: Path) -> None:
    space = opened(
        HEAD + '[axes]\ntiles = "sram"\npolicy = ["serial", "decoupled"]\n'
        '"sram.sram_bytes" = { range = { from = 1000, to = 8000, steps = 4, scale = "log" } }\n'
        '[axes.bandwidth]\nkeys = ["dram.dram_shared_bytes_per_s", "dma.channel_bytes_per_s"]\nvalues = [1_000_000_000, [4e9, 2e9]]\n',
        tmp_path,
    )
    values = {d.name: d.values for d in space.dimensions}
    assert values["tiles"] == ("sram",)
    assert values["sram.sram_bytes"] == (1000, 2000, 4000, 8000)
    assert space.dimensions[-1].settings == ((10**9, 10**9), (4 * 10**9, 2 * 10**9))
    assert space.size == 2 * 4 * 2


WRONG = [
    ("", "networks: is missing"),
    ("networks = []", "networks: "),
    (HEAD + "[axis]\ntiles = 'sram'", "axis: is not a key of a sweep; allowed here are name, title, networks, npu, objectives, axes"),
    (HEAD + "[axes.x]\nvalue = [1]", "axes.x.value: is not a key of a sweep; allowed here are keys, values, range"),
    (HEAD + "[axes]\ntiles = []", "axes.tiles: has no values; give at least one, or leave the axis out"),
    (HEAD + '[axes]\n"sram.sram_byte" = [1]', "no key of the hardware description toy (did you mean 'sram.sram_bytes'"),
    (HEAD + "[axes]\nnetwork = ['edgefusion']", "networks stand in 'networks'"),
    (HEAD + '[axes]\n"sram.sram_bytes" = [0]', "axes.sram.sram_bytes: toy: sram.sram_bytes: Input should be greater than 0, found 0"),
    (HEAD + '[axes]\n"sram.sram_bytes" = [1000.5]', "has the value 1000.5; the hardware description has a whole number there"),
    (HEAD + '[axes]\n"sram.sram_bytes" = ["much"]', "'sram.sram_bytes' is 'much'; a number is needed"),
    (HEAD + '[axes]\n"sram.sram_bytes" = [4096, 4096]', "axes.sram.sram_bytes: has the value 4096 twice"),
    (HEAD + '[axes]\n"sram.sram_bytes" = [true]', "has the value True; allowed are numbers and texts"),
    (HEAD + '[axes]\n"sram.sram_bytes" = { range = { from = 9, to = 3, steps = 2 } }', "'from' is 9, 'to' is 3; 'from' must be"),
    (HEAD + '[axes]\n"sram.sram_bytes" = { range = { from = 0, to = 3, steps = 2, scale = "log" } }', "a log scale starts above 0"),
    (HEAD + '[axes]\n"sram.sram_bytes" = { range = { from = 1, to = 3 } }', "range.steps: is missing"),
    (HEAD + '[axes]\n"sram.sram_bytes" = {}', "needs either 'values' or 'range'"),
    (HEAD + "[axes]\ntiles = ['most']", "axes.tiles: tiles is 'most'; allowed are none, sram, auto, a count"),
    (HEAD + "[axes]\nprecision = ['w2a2']", "axes.precision: precision is 'w2a2'; allowed are w8a16"),
    (HEAD + "[axes]\nnpu = ['tpu']", "tpu: no such hardware; give a preset (exynos2200"),
    (HEAD + '[axes.a]\nkeys = ["tiles", "segments"]\nvalues = [["sram"]]', "axes.a: has a value with 1 entries for 2 keys"),
    (HEAD + '[axes]\ntiles = "sram"\n[axes.b]\nkeys = ["tiles"]\nvalues = ["none"]', "axes.b: sets 'tiles', which axes.tiles sets too"),
    (HEAD + "[search]\nmethod = 'anneal'", "search.method: Input should be 'grid', 'random', 'tpe' or 'nsga2', found 'anneal'"),
    (HEAD + "[search]\ntrials = 0", "search.trials: Input should be greater than or equal to 1, found 0"),
    ('objectives = ["latency"]\n' + HEAD, "objectives: 'latency' is no figure of a run and no axis of numbers (did you mean 'latency_ms'"),
    ('name = "a/b"\n' + HEAD, "name: String should match pattern"),
    ('networks = ["taesd-decoder", "taesd-decoder"]', "networks: two are called 'taesd-decoder'; give one of them another 'name'"),
    ('networks = ["no-such-net"]', "no file and no zoo network is called 'no-such-net'"),
    ("networks = [", "is not TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), WRONG, ids=[s[:40] for _, s in WRONG])
def test_a_wrong_spec_is_refused_in_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        opened(text, tmp_path)
    message = str(caught.value)
    assert sentence in message
    assert "\n" not in message


def test_a_missing_spec_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be read"):
        load_spec(tmp_path / "none.toml")


def test_the_file_names_the_sweep_unless_it_has_a_name(tmp_path: Path) -> None:
    assert isinstance(opened(HEAD, tmp_path).spec, Spec)
    assert opened(HEAD, tmp_path).spec.name == "s"
    assert opened('name = "n"\n' + HEAD, tmp_path).spec.name == "n"
