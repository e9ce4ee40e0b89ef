"""The first variant, unions, what a listing may hold, and what a kill leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from npusim.errors import BadInputError, OutputError
from npusim.training.chain.log import Log
from npusim.training.chain.make import make_from_folder
from npusim.training.chain.stats import damaged, lineage, statistics
from npusim.training.chain.union import unite
from npusim.training.chain.variant import Variant, inside, open_variant
from npusim.training.cli import app

from .conftest import QUIET, scene, write_folder

Begun = Callable[..., Variant]


def listed(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_a_variant_is_an_imagefolder_that_the_trainer_reads(begun: Begun, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from npusim.training.config import preset
    from npusim.training.data.source import Folder
    from npusim.training.run import Run, load_tokenizer
    from npusim.training.vae import build_vae

    variant = begun(5)
    small = preset("toy-small")
    tokenizer = load_tokenizer(Run(preset=small, out=tmp_path))
    torch.manual_seed(0)
    network = build_vae(small.vae, 32)
    network.register_to_config(scaling_factor=1.0)
    folder = Folder(variant.folder, network, tokenizer, 32)
    pictures = [folder._picture(path, False) for path, _ in folder._rows]
    assert [p.shape for p in pictures] == [(3, 32, 32)] * 5
    assert [row["text"] for row in listed(variant.folder)] == [text for _, text in folder._rows]


HOSTILE = [
    ({"file_name": "../outside.png", "text": "x"}, "outside"),
    ({"file_name": "/etc/passwd", "text": "x"}, "outside"),
    ({"file_name": "..\\outside.png", "text": "x"}, "outside"),
    ({"file_name": "link.png", "text": "x"}, "outside"),
    ({"file_name": "a.png\0.txt", "text": "x"}, "outside"),
    ({"file_name": "good.png"}, "no caption"),
    ({"file_name": "good.png", "text": " \n"}, "no caption"),
    ({"file_name": "good.png", "text": "x" * 10_001}, "malformed line"),
    ({"file_name": "good.png", "text": 3}, "malformed line"),
    ({"file_name": ["good.png"], "text": "x"}, "malformed line"),
    ({"text": "x"}, "malformed line"),
    (17, "malformed line"),
    ({"file_name": "nowhere.png", "text": "x"}, "missing"),
    ({"file_name": "folder", "text": "x"}, "unreadable"),
    ({"file_name": "pipe", "text": "x"}, "unreadable"),
    ({"file_name": "cut.png", "text": "x"}, "unreadable"),
    ({"file_name": "text.png", "text": "x"}, "unreadable"),
    ({"file_name": "huge.png", "text": "x"}, "too many pixels"),
    ({"file_name": "enormous.png", "text": "x"}, "too many pixels"),
]


def test_what_cannot_be_used_is_set_aside_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = {"file_name": "good.png", "text": "a  good\tone"}
    source = write_folder(tmp_path / "in", {"good.png": scene(1)}, [good, *(row for row, _ in HOSTILE), good])
    scene(2).save(tmp_path / "outside.png")
    (source / "link.png").symlink_to(tmp_path / "outside.png")
    (source / "folder").mkdir()
    os.mkfifo(source / "pipe")
    (source / "cut.png").write_bytes((source / "good.png").read_bytes()[:1500])
    (source / "text.png").write_text("no picture")
    Image.new("1", (10_000, 10_000)).save(source / "huge.png")
    Image.new("1", (20_000, 20_000)).save(source / "enormous.png")
    variant = make_from_folder(source, tmp_path / "out", QUIET)
    first, *refused, last = variant.records()
    assert [first.caption, last.caption] == ["a good one"] * 2
    assert first.id != last.id
    assert [record.cause for record in refused] == [cause for _, cause in HOSTILE]
    assert all(record.reason and "\n" not in record.reason for record in refused)
    assert "10000 x 10000" in (refused[-2].reason or "")
    assert len(listed(variant.folder)) == 2
    assert statistics(variant.folder)["set_aside"]["outside"] == 5


def test_a_picture_that_viewers_turn_is_stored_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source = write_folder(tmp_path / "in", {}, [{"file_name": "turned.jpg", "text": "x"}])
    scene(3, 96, 80).save(source / "turned.jpg", exif=exif)
    (record,) = make_from_folder(source, tmp_path / "out", QUIET).records()
    assert (record.width, record.height) == (80, 96)
    with Image.open(tmp_path / "out" / record.file) as stored:
        assert stored.size == (80, 96)
        assert not stored.getexif()


def test_empty_sets_are_refused_in_a_sentence(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", {}, [])
    with pytest.raises(BadInputError, match="holds no lines"):
        make_from_folder(source, tmp_path / "out", QUIET)
    with pytest.raises(BadInputError, match="takes an imagefolder"):
        make_from_folder(tmp_path / "nowhere", tmp_path / "out", QUIET)
    write_folder(source, {}, [{"file_name": "x.png", "text": "x"}])
    with pytest.raises(
        BadInputError, match=r"nothing is left, all 1 records .*missing: x.png does not exist"
    ):
        make_from_folder(source, tmp_path / "out", QUIET)
    with pytest.raises(BadInputError, match=r"is empty, all 1 records"):
        open_variant(tmp_path / "out")


def test_other_files_other_settings_and_unfinished_parents_are_refused(begun: Begun, tmp_path: Path) -> None:
    variant = begun(3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(OutputError, match="holds other files"):
        make_from_folder(tmp_path / "L-orig source", tmp_path / "mine", QUIET)
    other = write_folder(tmp_path / "other", {"a.png": scene(5)})
    with pytest.raises(BadInputError, match=r"begun with another settings \(from: "):
        make_from_folder(other, variant.folder, QUIET)
    with pytest.raises(BadInputError, match=r"holds no variant\.json"):
        open_variant(other)
    card = json.loads((variant.folder / "variant.json").read_text())
    (variant.folder / "variant.json").write_text(json.dumps({**card, "finished": None}))
    with pytest.raises(BadInputError, match="is not finished"):
        open_variant(variant.folder)


@settings(deadline=None)
@given(cut=st.integers(0, 200), junk=st.binary(max_size=20))
def test_a_log_keeps_every_whole_line_wherever_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    lines = [json.dumps({"n": i, "text": "é" * (i % 7)}, ensure_ascii=False) for i in range(6)]
    whole = ("\n".join(lines) + "\n").encode()
    kept = whole[:cut]
    path.write_bytes(kept + junk.replace(b"\n", b""))
    ends = kept.count(b"\n")
    with Log(path) as log:
        assert log.count in (ends, ends - 1) if junk and kept.endswith(b"\n") else log.count == ends
        done = log.count
        for line in lines[done:]:
            log.append(line)
    assert path.read_text().splitlines() == lines


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Log(tmp_path / "log.jsonl"), pytest.raises(BadInputError, match="another process is writing"):
        Log(tmp_path / "log.jsonl")


def test_a_union_keeps_order_lineage_and_each_record_once(begun: Begun, tmp_path: Path) -> None:
    first, second = begun(4, "L-pps"), begun(3, "synt")
    both = unite([first, second], tmp_path / "both", QUIET)
    assert [r.parent for r in both.kept()] == [r.id for v in (first, second) for r in v.kept()]
    assert damaged(both) == []
    again = unite([both, unite([second, first], tmp_path / "turned", QUIET)], tmp_path / "again", QUIET)
    assert (again.finished.kept, again.finished.set_aside) == (7, 7)
    assert [r.caption for r in again.kept()] == [r.caption for r in both.kept()]
    rows = {Path(row["folder"]).name: row for row in lineage(tmp_path / "again")}
    assert set(rows) == {"again", "both", "turned", "L-pps", "synt"}
    assert all(row["found"] for row in rows.values())
    with pytest.raises(BadInputError, match="two or more different variants"):
        unite([first, first], tmp_path / "same", QUIET)
    with pytest.raises(BadInputError, match="one of the variants that are read"):
        unite([first, second], first.folder, QUIET)


def test_verify_names_the_file_that_was_changed_or_lost(begun: Begun) -> None:
    variant = begun(3)
    first, second, _ = variant.kept()
    (variant.folder / first.file).unlink()
    (variant.folder / second.file).write_bytes(b"other")
    missing, changed = damaged(variant)
    assert first.file in missing
    assert "is missing" in missing
    assert second.file in changed
    assert "SHA-256" in changed
    result = CliRunner().invoke(app, ["data", "stats", str(variant.folder), "--verify"])
    assert "2 pictures are not as recorded" in str(result.exception)


@settings(deadline=None)
@given(name=st.text(max_size=12))
def test_no_name_leads_out_of_the_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    found = inside(folder, name)
    assert found is None or found.resolve().is_relative_to(folder.resolve())


def test_links_are_followed_before_it_is_said_where_a_file_lies(tmp_path: Path) -> None:
    for name in ("in/deep", "in-between", "out"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "in" / "way").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "near").symlink_to(tmp_path / "in" / "deep")
    (tmp_path / "in" / "next.png").symlink_to(tmp_path / "in-between" / "x.png")
    (tmp_path / "in" / "own.png").symlink_to("deep/x.png")
    (tmp_path / "door").symlink_to(tmp_path / "in")
    for folder in (tmp_path / "in", tmp_path / "door"):
        for name in ("way/x.png", "next.png", "way"):
            assert inside(folder, name) is None
        for name in ("near/x.png", "own.png", "deep/x.png", "x.png"):
            assert inside(folder, name) == folder / name


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def half(handle: int, data: memoryview) -> int:
        if len(data) < 8:
            raise OSError(28, "No space left on device")
        return write(handle, data[: len(data) // 2])

    with Log(tmp_path / "log.jsonl") as log:
        log.append('{"n": 0}')
        log.flush()
        log.append('{"n": 1}')
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OutputError, match=r"No space left on device\); the lines before are kept"):
            log.flush()
        monkeypatch.setattr(os, "write", write)
        log.append('{"n": 2}')
    assert (tmp_path / "log.jsonl").read_text() == '{"n": 0}\n{"n": 2}\n'
