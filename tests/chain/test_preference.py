"""Figures of a preference study against closed forms, and the study's folder."""

from __future__ import annotations

import json
import re
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from npusim.errors import NpusimError
from npusim.training.chain.log import Log
from npusim.training.cli import app
from npusim.training.metrics.preference import (
    Answer,
    binomial_p_value,
    clustered_interval,
    summarise,
    wilson_interval,
)
from npusim.training.pages.prefer import (
    Pair,
    Preference,
    Study,
    open_study,
    pair_up,
    presentation,
    standing,
)
from npusim.training.pages.server import RefusedError

from .conftest import scene, write_folder


def test_wilson_intervals_are_the_published_ones() -> None:
    assert wilson_interval(0.628 * 1500, 1500) == pytest.approx((0.603, 0.652), abs=5e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)  # Newcombe 1998, table I
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(0, 400), st.integers(1, 400))
@settings(deadline=None)
def test_wilson_bounds_solve_their_equation_and_mirror(successes: int, count: int) -> None:
    successes = min(successes, count)
    low, high = wilson_interval(successes, count)
    share = successes / count
    assert low - 1e-12 <= share <= high + 1e-12
    for bound in {low, high} - {0.0, 1.0}:
        assert (share - bound) ** 2 == pytest.approx(
            1.959963984540054**2 * bound * (1 - bound) / count, abs=1e-9
        )
    assert wilson_interval(count - successes, count) == pytest.approx((1 - high, 1 - low))


@given(st.integers(0, 60), st.integers(0, 60))
@settings(deadline=None)
def test_the_exact_test_adds_up_all_outcomes_that_are_no_likelier(wins: int, losses: int) -> None:
    count = wins + losses
    ways = [comb(count, k) for k in range(count + 1)]
    assert binomial_p_value(wins, count) == pytest.approx(sum(w for w in ways if w <= ways[wins]) / 2**count)


def table(people: int, pairs: int, score: Any) -> tuple[Any, Any, Any]:
    participants, prompts = (grid.ravel() for grid in np.indices((people, pairs)))
    return score(participants, prompts).astype(float), participants, prompts


def test_the_bootstrap_is_wide_where_people_or_prompts_agree_with_themselves() -> None:
    rng = np.random.default_rng(0)
    kinds = {
        "nobody": table(20, 40, lambda p, q: rng.random(800) < 0.6),
        "people": table(20, 40, lambda p, q: p < 12),
        "prompts": table(20, 40, lambda p, q: q < 24),
    }
    width = {}
    for name, (scores, participants, prompts) in kinds.items():
        low, high = clustered_interval(scores, participants, prompts, rounds=1500)
        assert low < scores.mean() < high
        width[name] = high - low
    assert width["people"] == pytest.approx(2 * 1.96 * np.sqrt(0.24 / 20), rel=0.15)
    assert width["prompts"] == pytest.approx(2 * 1.96 * np.sqrt(0.24 / 40), rel=0.15)
    assert width["nobody"] < width["prompts"] < width["people"]
    assert width["nobody"] >= 2 * 1.96 * np.sqrt(0.24 / 800) * 0.9


def test_a_summary_counts_ties_half_and_sides_apart() -> None:
    rows = [("a", "a"), ("a", "b"), ("b", "a"), ("b", "a"), ("a", "tie"), ("b", "b")]
    answers = [Answer(f"P{i % 2}", i, left, preferred) for i, (left, preferred) in enumerate(rows)]  # type: ignore[arg-type]
    found = summarise(answers)
    assert (found["a"], found["b"], found["ties"]) == (3, 2, 1)
    assert found["win_rate"] == pytest.approx(3.5 / 6)
    assert found["p_value"] == binomial_p_value(3, 5)
    assert (found["left_preferred"], found["left_rate"]) == (2, 0.4)
    assert (found["a_shown_left"], found["participants"], found["pairs"]) == (3, 2, 6)
    assert summarise([])["comparisons"] == 0


def study(count: int, seed: int = 0) -> Study:
    pairs = tuple(Pair(caption=str(i), a=f"{i}.png", b=f"{i}.png") for i in range(count))
    return Study(a="/a", b="/b", seed=seed, pairs=pairs)


@given(st.integers(1, 60), st.text(min_size=1, max_size=8), st.integers(0, 5))
@settings(deadline=None)
def test_sides_are_balanced_and_every_pair_comes_once(count: int, participant: str, seed: int) -> None:
    order = presentation(study(count, seed), participant)
    assert sorted(pair for pair, _ in order) == list(range(count))
    assert abs(2 * sum(side == "a" for _, side in order) - count) <= 1
    assert order == presentation(study(count, seed), participant)


def test_participants_share_a_log_and_undo_only_their_own(tmp_path: Path) -> None:
    for name, keys in (("P1", ["left", "left", "undo"]), ("P2", ["right", "tie"])):
        with Log(tmp_path / "answers.jsonl") as log:
            page = Preference(study(3), name, log, [])
            for key in keys:
                page.act({"do": key, "position": len(page.answers)})
    with Log(tmp_path / "answers.jsonl") as log:
        page = Preference(study(3), "P1", log, standing(tmp_path)["P1"])
        page.act({"do": "tie", "position": 1})
        with pytest.raises(RefusedError, match="answered already"):
            page.act({"do": "left", "position": 1})
        shown = json.dumps(page.state())
        assert "/a" not in shown
    answers = standing(tmp_path)
    assert [a.preferred == a.left for a in answers["P1"]] == [True, False]
    assert [a.preferred for a in answers["P2"]][1] == "tie"
    assert answers["P2"][0].preferred != answers["P2"][0].left


def test_pairs_have_equal_captions_and_a_study_is_gone_on_with(tmp_path: Path) -> None:
    shown = {f"{i}.png": scene(i) for i in range(4)}
    texts = {"a": ["x", "y", "y", "only a"], "b": ["y", "x", "y", "only b"]}
    sets = [
        write_folder(
            tmp_path / name,
            shown,
            [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(texts[name])],
        )
        for name in ("a", "b")
    ]
    found = pair_up(*sets, None, 0)
    assert sorted((p.caption, p.a, p.b) for p in found.pairs) == [
        ("x", "0.png", "1.png"), ("y", "1.png", "0.png"), ("y", "2.png", "2.png"),
    ]  # fmt: skip
    out = tmp_path / "study"
    assert open_study(out, found) == found == open_study(out)
    words = ["prefer", "--out", str(out), "--json"]
    assert json.loads(CliRunner().invoke(app, words).output)["comparisons"] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metadata.jsonl").write_text('{"file_name": "../a/0.png", "text": "x"}\n')
    a, b = map(str, sets)
    for arguments, said in (
        ([a, b, "--out", str(out), "--pairs", "2"], "is a study of .*leave the two sets out"),
        ([a, b, "--out", str(tmp_path / "mine")], "holds other files"),
        ([a, b, "--out", "x", "--pairs", "9"], "3 captions in common"),
        ([a, str(tmp_path / "c"), "--out", "x"], "no caption in common"),
        ([a, "--out", "x"], "two sets of pictures, 1 were given"),
        (["--out", str(tmp_path / "nowhere")], "holds no study.json"),
        (["--out", str(out)], "--participant: say who answers"),
    ):
        error = CliRunner().invoke(app, ["prefer", *arguments]).exception
        assert isinstance(error, NpusimError)
        assert re.search(said, str(error)), error
