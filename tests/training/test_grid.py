"""The grid: what it plans, that it survives, and what its tables say."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npusim.errors import BadInputError
from npusim.training import checkpoints
from npusim.training.grid.plan import BETTER, CELLS, COMPARISONS, VARIANTS, chosen, tables

_SCRIPT = Path(__file__).with_name("gridable.py")


def _gridable() -> Any:
    spec = importlib.util.spec_from_file_location("gridable", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gridable = _gridable()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished grid of four cells and what they need, made by one process."""
    out = tmp_path_factory.mktemp("whole")
    assert _spawn(out) == 0
    return out


def _spawn(folder: Path, *words: str) -> int:
    return subprocess.run([sys.executable, str(_SCRIPT), str(folder), *words], check=False).returncode


def test_each_cell_comes_after_what_it_needs_and_trains_on_data_that_exists() -> None:
    known = {BETTER, "bk-init"}
    for name, cell in CELLS.items():
        assert set(cell.needs) <= known, name
        assert cell.kind == "init" or cell.data in VARIANTS
        known.add(name)


def test_comparisons_and_tables_name_cells_of_the_grid_and_every_cell_is_used() -> None:
    used = {row.cell for table in tables(25, (4, 2, 1)) for row in table.rows}
    for comparison in COMPARISONS:
        assert CELLS[comparison.ours].kind == CELLS[comparison.rival].kind
        used |= {comparison.ours, comparison.rival}
    assert used - set(CELLS) == {BETTER}
    needed = {need for cell in CELLS.values() for need in cell.needs}
    assert set(CELLS) <= used | needed


def test_a_cell_brings_what_it_needs_in_the_order_of_training() -> None:
    names = [cell.name for cell in chosen(["lcm-old-student"])]
    assert names == ["teacher-plain", "bk-init-plain", "kd-plain-L-orig", "lcm-old-student"]
    assert [cell.name for cell in chosen(["*"])] == list(CELLS)


def test_a_pattern_without_a_cell_is_a_sentence() -> None:
    with pytest.raises(
        BadInputError, match=r"--cells kd-x: matches no cell of the grid; there are .*kd-L-pp"
    ):
        chosen(["kd-L-pp", "kd-x"])


@pytest.mark.training
def test_a_grid_killed_in_training_and_in_judging_writes_the_same_tables(whole: Path, tmp_path: Path) -> None:
    assert _spawn(tmp_path, "kd-synt-cur", "train") == -signal.SIGKILL
    assert (tmp_path / "grid" / "cells" / "kd-synt-cur" / "checkpoint.safetensors").is_file()
    assert _spawn(tmp_path, "lcm-edgefusion", "judge") == -signal.SIGKILL
    assert not (tmp_path / "grid" / "judged" / "lcm-edgefusion.json").exists()
    said = gridable.run(tmp_path)
    assert "grid/cells/kd-synt-cur: already finished" in said
    for name in ("tables.json", "tables.md"):
        assert (tmp_path / "grid" / name).read_text() == (whole / "grid" / name).read_text()
    for path in sorted((whole / "grid" / "cells").glob("*/final/unet/*.safetensors")):
        assert path.read_bytes() == (tmp_path / path.relative_to(whole)).read_bytes()


@pytest.mark.training
def test_tables_hold_what_is_judged_and_say_what_is_not(whole: Path) -> None:
    found = checkpoints.read_json(whole / "grid" / "tables.json")["seen"]
    rows = {row["cell"]: row["figures"] for row in found["tables"]["kd"]}
    assert rows["kd-L-pps"] is None
    mean, low, high = (rows["kd-synt-cur"]["attributes"][i] for i in range(3))
    correct = np.load(whole / "grid" / "judged" / "seen-kd-synt-cur-2.npy", allow_pickle=False)
    assert mean == pytest.approx(correct.mean(), abs=1e-4)
    assert low <= mean <= high
    by_claim = {entry["claim"]: entry["by steps"] for entry in found["comparisons"]}
    assert set(by_claim["the large teacher against a student-shaped one"]) == {"2", "1"}
    assert by_claim["cleaned data (KD)"] == {}
    text = (whole / "grid" / "tables.md").read_text()
    assert "| better; L-pps | not computed |" in text
    assert "automatic judge" in text


@pytest.mark.training
def test_every_variant_is_kept_with_its_counts_and_a_sheet(whole: Path) -> None:
    data = whole / "grid" / "data"
    facts = checkpoints.read_json(data / "data.json")
    counts = {name: facts[name]["records"] for name in VARIANTS}
    assert counts["L-orig"] == 48
    assert counts["L-pp"] == counts["L-pps"] < counts["L-orig"]
    assert counts["synt"] == 14
    assert counts["synt-half"] == 7
    assert counts["synt-half"] - counts["synt-cur"] == facts["curation"]["removed"]
    assert counts["L-pps+synt"] == counts["L-pps"] + counts["synt"]
    assert {path.stem for path in data.glob("*.png")} == {name for name in VARIANTS if counts[name]}


@pytest.mark.training
def test_a_spent_budget_leaves_tables_and_goes_on(whole: Path) -> None:
    from npusim.training.loop import Budget

    before = (whole / "grid" / "tables.json").read_text()
    said = gridable.run(whole, budget=Budget(0.0))
    assert "grid: time is up; run the same command to go on" in said
    assert (whole / "grid" / "tables.json").read_text() == before


@pytest.mark.training
def test_a_grid_of_other_settings_is_refused(whole: Path) -> None:
    import dataclasses

    from npusim.training.grid.settings import open_grid
    from npusim.training.run import Run

    run = Run(preset=gridable.tiny(), out=whole)
    with pytest.raises(
        BadInputError, match=r"grid\.json: this grid was begun with kd_steps 3, asked for 4; use"
    ):
        open_grid(run, dataclasses.replace(gridable.SETTINGS, kd_steps=4))


def test_a_preset_without_a_world_is_refused(tmp_path: Path) -> None:
    from npusim.training.config import preset
    from npusim.training.grid.run import run_grid
    from npusim.training.run import Run
    from npusim.training.session import Session

    session = Session(run=Run(preset=preset("sd-v1"), out=tmp_path))
    with pytest.raises(
        BadInputError, match=r"--preset sd-v1: the grid makes its data .* choose toy or toy-small"
    ):
        run_grid(session, gridable.SETTINGS, chosen(["*"]))


@pytest.mark.training
def test_figures_that_a_users_network_adds_are_judged_again_and_get_their_column(
    whole: Path, tmp_path: Path
) -> None:
    import shutil

    from npusim.training.grid.cells import Bench
    from npusim.training.grid.tables import write_tables
    from npusim.training.metrics.measures import Measures
    from npusim.training.run import Run
    from npusim.training.session import Session

    class Clip:
        def score(self, pictures: Any, captions: list[str]) -> Any:
            return np.full(len(captions), 0.25)

    out = tmp_path / "run"
    shutil.copytree(whole, out)
    run = Run(preset=gridable.tiny(), out=out)
    assert "CLIP score: not computed" in (out / "grid" / "tables.md").read_text()
    Bench(Session(run=run), Measures(clip=Clip())).judge("kd-synt-cur", "kd")
    rows = {row["cell"]: row["figures"] for row in write_tables(run)["seen"]["tables"]["kd"]}
    assert rows["kd-synt-cur"]["clip_score"] == 0.25
    assert rows["kd-plain-L-orig"]["clip_score"] == "not computed"
    text = (out / "grid" / "tables.md").read_text()
    assert "| classifier FID | CLIP score |" in text
    assert "| 0.25 |" in text


def _own(folder: Path, captions: list[str]) -> Path:
    """An imagefolder of grey pictures."""
    import json

    from PIL import Image

    folder.mkdir()
    for index in range(len(captions)):
        Image.new("RGB", (40, 32), (index, 90, 90)).save(folder / f"{index}.png")
    rows = [{"file_name": f"{i}.png", "text": caption} for i, caption in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.training
def test_a_users_variant_takes_the_place_of_the_grids_and_what_follows_is_made_from_it(
    whole: Path, tmp_path: Path
) -> None:
    import shutil

    from npusim.training.grid.data import load_pool, make_data
    from npusim.training.grid.settings import open_grid
    from npusim.training.run import Run
    from npusim.training.session import Session

    out = tmp_path / "run"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("grid"))
    own = {"L-pp": _own(tmp_path / "mine", ["small red circle", "blue cross", "green"])}
    run = Run(preset=gridable.tiny(), out=out)
    open_grid(run, gridable.SETTINGS, own)
    make_data(Session(run=run), gridable.SETTINGS, own)
    facts = checkpoints.read_json(out / "grid" / "data" / "data.json")
    assert [facts[name]["records"] for name in ("L-orig", "L-pp", "L-pps", "L-pps+synt")] == [48, 3, 3, 17]
    pool = load_pool(run, "L-pp")
    assert pool is not None
    assert tuple(pool.latents.shape[:1]) == (3,)
    with pytest.raises(
        BadInputError, match=r"this grid was begun with variants \{'L-pp': .*, asked for None; use"
    ):
        open_grid(run, gridable.SETTINGS)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["x=/tmp"], r"--variant x=/tmp: write NAME=FOLDER with NAME one of L-orig, L-pp"),
        (["L-pp"], "--variant L-pp: write NAME=FOLDER"),
        (["L-orig=a"], "--variant L-orig: give L-pp too; the grid cannot make them from your L-orig"),
        (["synt=a", "synt-cur=b"], "--variant synt: give synt-half too"),
    ],
)
def test_a_variant_that_cannot_be_placed_is_a_sentence(words: list[str], sentence: str) -> None:
    from npusim.training.grid.plan import given_variants

    with pytest.raises(BadInputError, match=sentence):
        given_variants(words)
