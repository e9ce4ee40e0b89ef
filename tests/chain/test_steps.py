"""Filter, crop, recaption and synth without any checkpoint, and the commands."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from npusim.errors import BadInputError, NpusimError
from npusim.training.chain.crop import Crop, GradientEnergy, boxes
from npusim.training.chain.filter import SizeFilter
from npusim.training.chain.make import make_from_folder
from npusim.training.chain.quota import counts_by_share, read_quota
from npusim.training.chain.recaption import LabelCaptioner, Recaption
from npusim.training.chain.stats import damaged, statistics
from npusim.training.chain.step import run_step
from npusim.training.chain.synth import PlainPrompter, QuotaAsked, WorldAsked, WorldRenderer, synthesise
from npusim.training.chain.variant import Variant, open_variant
from npusim.training.cli import app
from npusim.training.data.world import HELD_OUT_PAIRS, world

from .conftest import QUIET, scene, write_folder

Begun = Callable[..., Variant]


def test_size_limits_keep_their_bounds(tmp_path: Path) -> None:
    sizes = {"300": (300, 300), "299": (400, 299), "long": (901, 300), "limit": (900, 300)}
    shown = {f"{name}.png": Image.new("RGB", size) for name, size in sizes.items()}
    parent = make_from_folder(write_folder(tmp_path / "in", shown), tmp_path / "L-orig", QUIET)
    made = run_step(SizeFilter(max_aspect=3.0), parent, tmp_path / "out", QUIET)
    assert [r.cause for r in made.records()] == [None, "too small", "too long", None]
    assert damaged(made) == []


@given(st.integers(1, 400), st.integers(1, 400))
@settings(deadline=None)
def test_crops_are_whole_squares_of_the_shorter_side(width: int, height: int) -> None:
    found = boxes(width, height)
    side = min(width, height)
    assert "centre" in found
    assert len(found) == len(set(found.values())) == min(3, abs(width - height) + 1)
    for left, top, right, bottom in found.values():
        assert right - left == bottom - top == side
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height


@pytest.mark.parametrize(("at", "place"), [(0, "start"), (40, "centre"), (80, "end")])
@pytest.mark.parametrize("upright", [False, True])
def test_the_crop_goes_where_the_detail_is(tmp_path: Path, at: int, place: str, upright: bool) -> None:
    canvas = Image.new("RGB", (160, 80), (90, 120, 60))
    canvas.paste(scene(3, 80, 80), (at, 0))
    if upright:
        canvas = canvas.transpose(Image.Transpose.TRANSPOSE)
    parent = make_from_folder(write_folder(tmp_path / "in", {"x.png": canvas}), tmp_path / "L-orig", QUIET)
    (record,) = run_step(Crop(GradientEnergy(), size=64), parent, tmp_path / "out", QUIET).kept()
    assert record.details["place"] == place
    assert (record.width, record.height) == (64, 64)


def test_ties_go_to_the_centre_and_squares_are_left_as_they_are(tmp_path: Path) -> None:
    shown = {"flat.png": Image.new("RGB", (90, 40), (5, 5, 5)), "square.png": scene(2, 50, 50)}
    parent = make_from_folder(write_folder(tmp_path / "in", shown), tmp_path / "L-orig", QUIET)
    flat, square = run_step(Crop(GradientEnergy()), parent, tmp_path / "out", QUIET).kept()
    assert flat.details["box"] == [25, 0, 65, 40]
    assert square.sha256 == list(parent.kept())[1].sha256
    assert (tmp_path / "out" / square.file).stat().st_nlink == 3  # source, L-orig, out: one file on the disk


@pytest.mark.parametrize("name", ["toy-small", "toy"])
def test_a_synthetic_set_covers_its_quota_and_can_be_recaptioned_by_its_labels(
    tmp_path: Path, name: str
) -> None:
    drawn = world(name)
    asked = WorldAsked.of(drawn, 1, 60)
    made = synthesise(asked, PlainPrompter(), WorldRenderer(drawn, 1), 60, tmp_path / "synt", QUIET)
    there = statistics(made.folder)["coverage"]
    assert there == {a: {v: n for v, n in counts.items() if n} for a, counts in asked.quotas().items()}
    for attribute in drawn.attributes:
        counts = there[attribute.name]
        assert max(counts.values()) - min(counts.values()) <= 1
    if name == "toy":
        rows = [r.attributes for r in made.kept()]
        pairs = {(r[f"{side} colour"], r[f"{side} shape"]) for r in rows for side in ("first", "second")}
        assert not pairs & set(HELD_OUT_PAIRS)
    again = run_step(Recaption(LabelCaptioner(drawn)), made, tmp_path / "again", QUIET)
    assert {r.caption_source for r in again.kept()} == {f"drawn labels of {name} (oracle)"}
    for before, after in zip(made.kept(), again.kept(), strict=True):
        assert after.details["before"] == before.caption
        assert after.details["edited"] == (before.caption != after.caption)
        if name == "toy-small":
            assert after.caption == before.caption


QUOTA = """template = "a {style} of a {subject}"
[attributes.style]
photo = 3
drawing = 1
[attributes.subject]
cat = 1
dog = 1
"""


def test_a_quota_file_is_met_to_the_last_record(tmp_path: Path) -> None:
    (tmp_path / "quota.toml").write_text(QUOTA)
    asked = QuotaAsked.of(read_quota(tmp_path / "quota.toml"), 0, 10)
    said = [asked.sentence(i) for i in range(10)]
    assert Counter(s.split()[1] for s in said) == asked.quotas()["style"] == {"photo": 8, "drawing": 2}
    assert Counter(s.split()[-1] for s in said) == {"cat": 5, "dog": 5}


@given(st.dictionaries(st.text(max_size=3), st.floats(0.1, 9), min_size=1), st.integers(0, 500))
@settings(deadline=None)
def test_shares_add_up_and_miss_by_less_than_one(shares: dict[str, float], count: int) -> None:
    counts = counts_by_share(shares, count)
    assert sum(counts.values()) == count
    for value, share in shares.items():
        assert abs(counts[value] - count * share / sum(shares.values())) < 1 + 1e-6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("template = 3", "not a quota"),
        ("nonsense", "not a quota"),
        (QUOTA.replace("{subject}", "{animal}"), "the template names"),
        (QUOTA.replace("dog = 1", "dog = 0"), "positive shares"),
        (QUOTA.replace("{style}", "{style"), "not a quota"),
    ],
)
def test_a_wrong_quota_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "quota.toml").write_text(text)
    with pytest.raises(BadInputError, match=said):
        read_quota(tmp_path / "quota.toml")


def run(*words: object) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands_make_the_papers_chain(begun: Begun, tmp_path: Path) -> None:
    orig, (dd, f, pp, synt, both) = begun(9), (tmp_path / n for n in ("L-dd", "L-f", "L-pp", "synt", "both"))
    assert "9 kept, 0 set aside" in run("dedup", orig.folder, "--out", dd)
    assert "9 kept" in run("filter", dd, "--out", f, "--min-side", 64)
    assert "9 kept" in run("crop", f, "--out", pp, "--size", 64)
    assert "asked for" in run("synth", "--world", "toy", "--count", 6, "--out", synt)
    assert "15 kept" in run("union", pp, synt, "--out", both)
    found = json.loads(run("stats", both, "--json", "--verify"))[0]
    assert [Path(row["folder"]).name for row in found["lineage"]] == ["both", "L-pp", "synt", "L-f", "L-dd", "L-orig"]  # fmt: skip
    assert "made of" in run("stats", both, synt)
    again = open_variant(pp)
    assert "9 kept" in run("crop", f, "--out", pp, "--size", 64)
    assert open_variant(pp).card == again.card


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["crop", "V", "--out", "O", "--by", "taste"], "--by taste: choose one of gradient, clip, classifier"),
        (["crop", "V", "--out", "O", "--by", "clip"], "needs a local folder; give it with --checkpoint DIR"),
        (["crop", "V", "--out", "O", "--checkpoint", "x"], "did you mean --by clip or classifier"),
        (["crop", "V", "--out", "V"], "is the variant that is read"),
        (["filter", "V", "--out", "O"], "nothing is left, all 4 records .* under 300 px"),
        (["dedup", "nowhere", "--out", "O"], "holds no variant.json"),
        (["recaption", "V", "--out", "O", "--by", "labels"], "needs --world"),
        (["recaption", "V", "--out", "O", "--by", "labels", "--world", "toy"], "nothing is left"),
        (["recaption", "V", "--out", "O", "--by", "labels", "--world", "mars"], "no such procedural world"),
        (["recaption", "V", "--out", "O", "--by", "model", "--checkpoint", "nowhere"], "holds no config.json"),
        (["synth", "--out", "O", "--count", "3"], "either --world or --quota"),
        (["synth", "--out", "O", "--count", "3", "--world", "toy", "--images", "run", "--checkpoint", "nowhere"], "run.json"),
        (["synth", "--out", "O", "--count", "3", "--world", "toy", "--images", "pipeline", "--checkpoint", "V"], "model_index.json"),
        (["union", "V", "--out", "O"], "two or more"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_sentence(
    begun: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    begun(4).folder.rename("V")
    with pytest.raises(NpusimError, match=said):
        run(*words)


def test_a_seed_repeats_every_picture(tmp_path: Path) -> None:
    drawn = world("toy-small")
    sums: list[Any] = []
    for place in ("a", "b"):
        asked = WorldAsked.of(drawn, 5, 8)
        made = synthesise(asked, PlainPrompter(), WorldRenderer(drawn, 5), 8, tmp_path / place, QUIET)
        sums.append([r.sha256 for r in made.kept()])
    assert sums[0] == sums[1]
    assert len(np.unique(sums[0])) == 8


def test_a_toy_crawl_has_faults_that_the_chain_removes(tmp_path: Path) -> None:
    orig, dd, f, pp, pps = (tmp_path / name for name in ("L-orig", "L-dd", "L-f", "L-pp", "L-pps"))
    assert "150 kept" in run("make", "--world", "toy", "--count", 150, "--out", orig, "--seed", 2)
    records = list(open_variant(orig).kept())
    copies = {r.id for r in records if "copy_of" in r.details}
    small = {r.id for r in records if r.height < 64}
    assert copies
    assert small
    run("dedup", orig, "--out", dd, "--cosine", 0.995)
    dropped = {r.parent for r in open_variant(dd).records() if not r.kept}
    assert len(dropped & copies) >= 0.9 * len(copies)
    assert len(dropped - copies) <= len(copies)  # of a group the largest stays, which may be a copy
    run("filter", dd, "--out", f, "--min-side", 64)
    assert all(r.height == 64 for r in open_variant(f).kept())
    run("crop", f, "--out", pp)
    assert {r.details["place"] for r in open_variant(pp).kept()} == {"centre", "start", "end"}
    run("recaption", pp, "--out", pps, "--by", "labels", "--world", "toy")
    figures = statistics(pps)
    assert 0.3 < figures["edit_rate"] < 1
    assert figures["caption_sources"] == {"drawn labels of toy (oracle)": figures["kept"]}
    for words in (["make"], ["make", "--world", "toy"], ["make", "--world", "toy", "--from", orig]):
        with pytest.raises(BadInputError):
            run(*words, "--out", tmp_path / "never")
