"""The worlds: data is a function of its address, captions say what is drawn, withheld pairs stay withheld."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from npusim.errors import BadInputError
from npusim.training import text
from npusim.training.config import preset, shortened
from npusim.training.data.world import (
    COLOURS,
    HELD_OUT_PAIRS,
    Combinations,
    Labels,
    TwoObjects,
    world,
)
from npusim.training.draw import Draw

WORLDS = ("toy-small", "toy")


@pytest.mark.parametrize("name", WORLDS)
def test_equal_addresses_give_equal_pictures_and_others_do_not(name: str) -> None:
    place = world(name)

    def pictures(step: int) -> np.ndarray:
        rng = Draw(7, "vae", step).numpy()
        return place.render(place.draw_labels(rng, 4), rng)

    assert np.array_equal(pictures(3), pictures(3))
    assert not np.array_equal(pictures(3), pictures(4))
    assert pictures(3).dtype == np.float32
    assert np.abs(pictures(3)).max() <= 1


@pytest.mark.parametrize("name", WORLDS)
def test_different_labels_give_visibly_different_pictures(name: str) -> None:
    place = world(name)
    base = np.zeros((1, len(place.attributes)), np.int64)
    first = place.render(base, np.random.default_rng(0))
    for index in range(len(place.attributes)):
        other = base.copy()
        other[0, index] = 1
        assert np.abs(place.render(other, np.random.default_rng(0)) - first).max() > 0.2


def test_a_sentence_and_its_mirror_describe_one_picture() -> None:
    place = world("toy")
    label = np.array([[0, 0, 0, 0, 0, 1, 1, 4, 3, 1]])
    sentences = {place.captions(label, np.random.default_rng(seed))[0] for seed in range(8)}
    assert sentences == {
        "a small red circle left of a large striped blue cross on wood",
        "a large striped blue cross right of a small red circle on wood",
    }


def test_withheld_pairs_are_never_trained_on_and_always_tested() -> None:
    place = world("toy")
    rng = np.random.default_rng(0)
    colours, shapes = tuple(COLOURS), place.attributes[4].values

    def shown(labels: np.ndarray) -> list[bool]:
        pairs = [{(colours[r[3]], shapes[r[4]]), (colours[r[7]], shapes[r[8]])} for r in labels]
        return [bool(p & set(HELD_OUT_PAIRS)) for p in pairs]

    assert not any(shown(place.draw_labels(rng, 500)))
    assert all(shown(place.draw_labels(rng, 500, "held-out")))


def test_the_judge_trains_on_withheld_pairs_and_the_autoencoder_and_the_diffusion_pool_do_not() -> None:
    from npusim.training.classifier import build_classifier
    from npusim.training.data.source import Pictures, encode_pool
    from npusim.training.stages import ClassifierTraining, VaeTraining
    from npusim.training.vae import build_vae

    place, small = world("toy"), shortened(preset("toy"), 1)
    drawn: list[Combinations] = []

    class Watched(TwoObjects):
        def draw_labels(
            self, rng: np.random.Generator, count: int, combinations: Combinations = "seen"
        ) -> Labels:
            drawn.append(combinations)
            return place.draw_labels(rng, count, combinations)

    judge, network = build_classifier(place), build_vae(small.vae, small.resolution)
    ClassifierTraining(small.classifier, judge, Watched()).losses(judge, Draw(0, "classifier", 0))
    VaeTraining(small.autoencoder, network, Watched(), small.vae.patch).losses(network, Draw(0, "vae", 0))
    encode_pool(Watched(), network, small.vae.patch, text.build_tokenizer(place.words(), 20), 4, 0)
    assert drawn == ["every", "seen", "seen"]
    _, labels = Pictures(place, "every").batch(Draw(0, "classifier", 0), 400)
    colours, shapes = tuple(COLOURS), place.attributes[4].values
    shown = {(colours[row[c]], shapes[row[c + 1]]) for row in labels.tolist() for c in (3, 7)}
    assert shown == set(itertools.product(colours, shapes))


@pytest.mark.parametrize("name", WORLDS)
def test_each_word_is_one_token_and_the_tokenizer_survives_saving(name: str, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    place, size = world(name), preset(name).text
    tokenizer = text.build_tokenizer(place.words(), size.tokens)
    rng = np.random.default_rng(0)
    captions = place.captions(place.draw_labels(rng, 64), rng)
    rows = text.tokenize(tokenizer, captions)
    assert rows.shape == (64, size.tokens)
    for caption, row in zip(captions, rows, strict=True):
        words = caption.split()
        assert tokenizer.convert_ids_to_tokens(row[1 : len(words) + 1]) == [f"{word}</w>" for word in words]
        assert row[len(words) + 1] == tokenizer.eos_token_id  # nothing is cut off
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert torch.equal(text.tokenize(again, captions), rows)


def test_an_unknown_world_or_preset_is_a_sentence() -> None:
    with pytest.raises(BadInputError, match="no such procedural world; there are toy-small, toy"):
        world("mars")
    with pytest.raises(
        BadInputError, match="--preset mars: no such preset; choose one of sd-v1, toy, toy-small"
    ):
        preset("mars")
