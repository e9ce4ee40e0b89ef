"""Near copies: the hash, the search for neighbours, the groups, and planted copies."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from npusim.errors import BadInputError
from npusim.training.chain.dedup import Likeness, dedup
from npusim.training.chain.hashes import Groups, differing_bits, near_pairs, perceptual_hashes, thumbnail
from npusim.training.chain.make import make_from_folder
from npusim.training.chain.variant import Variant

from .conftest import QUIET, scene, write_folder

WORDS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=20))
def test_differing_bits_are_the_ones_of_the_exclusive_or(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.asarray(column, np.uint64) for column in zip(*pairs, strict=True))
    assert differing_bits(a, b).tolist() == [(x ^ y).bit_count() for x, y in pairs]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 16), st.integers(2, 80))
def test_bands_find_every_near_pair_and_no_other(seed: int, distance: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 2**64, max(1, count // 4), np.uint64)
    bits = (rng.integers(0, 64, rng.integers(0, 10), np.uint64) for _ in range(count))
    flips = np.asarray([np.bitwise_or.reduce(np.uint64(1) << b, initial=0) for b in bits], np.uint64)
    hashes = np.unique(few[rng.integers(0, len(few), count)] ^ flips)
    found = {tuple(sorted(pair)) for pairs in near_pairs(hashes, distance) for pair in pairs.tolist()}
    plain = hashes.tolist()
    wanted = {(i, j) for i, j in combinations(range(len(plain)), 2) if (plain[i] ^ plain[j]).bit_count() <= distance}  # fmt: skip
    assert found == wanted


@settings(deadline=None)
@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_groups_are_the_connected_components(count: int, edges: list[tuple[int, int]]) -> None:
    import networkx as nx

    edges = [(a % count, b % count) for a, b in edges]
    groups, graph = Groups(count), nx.Graph(edges)
    graph.add_nodes_from(range(count))
    for edge in edges:
        groups.join(np.asarray([edge]))
    roots = groups.roots()
    for members in nx.connected_components(graph):
        assert {int(roots[m]) for m in members} == {min(members)}


def test_the_hash_is_the_sign_pattern_of_the_low_dct() -> None:
    small = thumbnail(scene(4))
    low = dctn(small.astype(np.float64), type=2)[:8, :8].ravel()
    wanted = sum(1 << i for i in range(64) if low[i] > np.median(low[1:]))
    assert perceptual_hashes(small[None]).tolist() == [wanted]


def as_jpeg(picture: Any, quality: int) -> Any:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


CHANGES: dict[str, Callable[[Any], Any]] = {
    "re-encoded": lambda p: as_jpeg(p, 40),
    "half the size": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.15),
    "darker": lambda p: ImageEnhance.Brightness(p).enhance(0.8),
    "the same file": lambda p: p,
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """60 scenes, the first 10 in five changed copies each."""
    folder = tmp_path_factory.mktemp("planted")
    shown = {f"{i}.png": scene(i, 160, 128) for i in range(60)}
    for name, change in CHANGES.items():
        shown |= {f"{i} {name}.png": change(shown[f"{i}.png"]) for i in range(10)}
    return make_from_folder(write_folder(folder / "in", shown), folder / "L-orig", QUIET)


@pytest.mark.parametrize("embedder", ["thumbnail", None])
def test_planted_copies_are_found_and_nothing_else(planted: Variant, tmp_path: Path, embedder: Any) -> None:
    likeness = Likeness() if embedder else Likeness(embedder=None)
    made = dedup(planted, tmp_path / "out", likeness, QUIET)
    assert sorted(r.details.get("perceptual_hash") is not None for r in made.records()) == [True] * 110
    names = {r.id: r.details["source"] for r in planted.kept()}
    parents = {r.id: r.parent for r in made.records()}
    kept = [names[r.parent or ""] for r in made.kept()]
    assert len(kept) == 60
    assert sorted(str(name).split()[0].removesuffix(".png") for name in kept) == sorted(map(str, range(60)))
    assert not any("half" in str(name) for name in kept)
    for record in made.records():
        if not record.kept:
            keeper = str(names[str(record.details["duplicate_of"])])
            assert str(names[record.parent or ""]).split()[0].removesuffix(".png") == keeper.split()[0].removesuffix(".png")  # fmt: skip
    assert set(parents.values()) == set(names)


def test_the_embedding_tells_apart_what_luminance_does_not(tmp_path: Path) -> None:
    grey = scene(7).convert("L")
    red, blue = (Image.merge("RGB", [grey.point(lambda v, k=k: v * k // 10) for k in ks]) for ks in ((9, 3, 4), (3, 4, 9)))  # fmt: skip
    source = write_folder(tmp_path / "in", {"red.png": red, "blue.png": blue})
    parent = make_from_folder(source, tmp_path / "L-orig", QUIET)
    assert dedup(parent, tmp_path / "a", Likeness(embedder=None), QUIET).finished.kept == 1
    assert dedup(parent, tmp_path / "b", Likeness(), QUIET).finished.kept == 2


def test_a_picture_that_was_lost_is_set_aside_and_is_nobodys_copy(planted: Variant, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", {f"{i}.png": scene(i) for i in range(4)})
    parent = make_from_folder(source, tmp_path / "L-orig", QUIET)
    first, second, *_ = parent.kept()
    (parent.folder / first.file).unlink()
    (parent.folder / second.file).unlink()
    made = dedup(parent, tmp_path / "out", Likeness(embedder=None), QUIET)
    assert [r.cause for r in made.records()] == ["missing", "missing", None, None]


@pytest.mark.parametrize(
    ("wrong", "said"), [({"distance": 17}, "of 64 bits 0 to 16"), ({"cosine": 1.5}, "between -1 and 1")]
)
def test_senseless_likeness_is_refused(
    planted: Variant, tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInputError, match=said):
        dedup(planted, tmp_path / "out", Likeness(**wrong), QUIET)
    assert not (tmp_path / "out").exists()
