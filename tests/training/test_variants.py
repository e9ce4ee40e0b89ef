"""The data variants of the grid: what each step removes, keeps and writes, where the truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from npusim.training.data.world import Labels, world
from npusim.training.grid import variants
from npusim.training.grid.crawl import Bytes, crawl, to_bytes, to_floats
from npusim.training.grid.variants import Reader, Records

SMALL_WORLD = world("toy-small")


class _KnowsPictures(Reader):
    """Reads what it was told; surest about pictures whose outermost columns are plain."""

    def __init__(self, known: dict[bytes, Labels]) -> None:
        super().__init__(None, SMALL_WORLD)
        object.__setattr__(self, "_known", known)

    def read(self, pictures: Bytes) -> tuple[Labels, Any]:
        blank = np.zeros(6, np.int64)
        labels = np.stack([self._known.get(picture.tobytes(), blank) for picture in pictures])
        edges = to_floats(pictures)[:, :, :, [0, -1]]
        return labels, -edges.var(axis=2).sum(axis=(1, 2))

    _known: dict[bytes, Labels]


@pytest.fixture(scope="module")
def found() -> Any:
    return crawl(SMALL_WORLD, np.random.default_rng(0), 1200)


def test_a_crawl_is_a_function_of_its_generator(found: Any) -> None:
    again = crawl(SMALL_WORLD, np.random.default_rng(0), 1200)
    assert np.array_equal(again.wide, found.wide)
    assert again.captions == found.captions


def test_bytes_and_floats_agree_to_half_a_step() -> None:
    values = np.linspace(-1, 1, 999, dtype=np.float32).reshape(1, 3, 9, 37)
    assert np.abs(to_floats(to_bytes(values)) - values).max() <= 0.5 / 127.5 + 1e-6


def test_copies_are_found_and_what_is_dropped_shows_the_same(found: Any) -> None:
    kept = variants.unique(found.wide)
    repeats = np.flatnonzero(found.parent != np.arange(1200))
    assert len(repeats) > 250
    assert np.isin(repeats, kept).mean() < 0.01  # recall of planted copies: over 99 %
    kept_labels = {tuple(row) for row in found.labels[kept]}
    assert all(tuple(row) in kept_labels for row in found.labels)  # no combination is lost to a false copy


def test_pictures_that_differ_in_one_attribute_are_no_copies() -> None:
    rng = np.random.default_rng(1)
    row = np.array([0, 0, 0, 0, 0, 0])
    others = [row.copy() for _ in range(6)]
    for column, other in enumerate(others):
        other[column] = 1
    pictures = to_bytes(SMALL_WORLD.render(np.stack([row, *others]), rng))
    assert len(variants.unique(pictures)) == 7


def test_cleaning_drops_the_small_and_finds_the_crop_that_was_rendered(found: Any) -> None:
    clean, counts = variants.cleaned(found, _KnowsPictures({}))
    assert len(clean.captions) + counts["small dropped"] + counts["copies dropped"] == 1200
    assert counts["copies dropped"] >= counts["of them copies"] > 0
    whole = to_floats(clean.pictures)[:, :, :, [0, -1]].var(axis=2).sum(axis=(1, 2))
    centred = to_floats(variants.as_found(found).pictures)[:, :, :, [0, -1]].var(axis=2).sum(axis=(1, 2))
    assert 5 * (whole > 0.05).mean() < (centred > 0.05).mean()  # objects cut by the edge


def test_captions_are_what_the_reader_reads() -> None:
    rng = np.random.default_rng(2)
    labels = SMALL_WORLD.draw_labels(rng, 40)
    pictures = to_bytes(SMALL_WORLD.render(labels, rng))
    reader = _KnowsPictures({picture.tobytes(): row for picture, row in zip(pictures, labels, strict=True)})
    told = variants.recaptioned(Records(pictures, ["red"] * 40, labels), reader, rng)
    assert told.captions == SMALL_WORLD.captions(labels, rng)
    assert variants.faults(told, reader, rng) == {"records": 40, "caption as read": 1.0}


@pytest.mark.parametrize("name", ["toy-small", "toy"])
def test_prompts_keep_their_quota(name: str) -> None:
    its = world(name)
    labels = variants.by_quota(its, np.random.default_rng(3), 240)
    assert len(labels) == 240
    for column, attribute in zip(labels.T, its.attributes, strict=True):
        share = np.bincount(column, minlength=len(attribute.values)) * len(attribute.values) / 240
        assert 0.85 <= share.min() <= share.max() <= 1.2, attribute.name


def test_the_rule_of_curation_keeps_exactly_what_is_read_as_asked() -> None:
    rng = np.random.default_rng(4)
    asked = SMALL_WORLD.draw_labels(rng, 50)
    shown = asked.copy()
    shown[::5, 2] = (shown[::5, 2] + 1) % 4
    shown[::10, 1] = (shown[::10, 1] + 1) % 6
    pictures = to_bytes(SMALL_WORLD.render(shown, rng))
    reader = _KnowsPictures({picture.tobytes(): row for picture, row in zip(pictures, shown, strict=True)})
    records = Records(pictures, SMALL_WORLD.captions(asked, rng), asked)
    assert len(variants.curated_by_rule(records, reader).captions) == 40
    assert len(variants.curated_by_rule(records, reader, allowed_wrong=1).captions) == 45


def test_a_union_is_both_in_order() -> None:
    rng = np.random.default_rng(5)
    labels = SMALL_WORLD.draw_labels(rng, 6)
    records = Records(to_bytes(SMALL_WORLD.render(labels, rng)), SMALL_WORLD.captions(labels, rng), labels)
    both = records.take(np.array([0, 1])).plus(records.take(np.array([4])))
    assert both.captions == [records.captions[i] for i in (0, 1, 4)]
    assert np.array_equal(both.labels, labels[[0, 1, 4]])
