"""Every stage of every world runs for a few steps, from an empty folder to contact sheets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from npusim.errors import BadInputError
from npusim.training import checkpoints
from npusim.training.cli import app


def _npusim(*words: str) -> str:
    result = CliRunner().invoke(app, [*words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Runs of two steps per stage, made when first asked for: preset -> its options on the command line."""

    class Lazily(dict[str, tuple[str, ...]]):
        def __missing__(self, preset: str) -> tuple[str, ...]:
            out = tmp_path_factory.mktemp(preset)
            self[preset] = ("--preset", preset, "--out", str(out), "--steps", "2", "--threads", "1")
            _npusim("all", *self[preset])
            return self[preset]

    return Lazily()


@pytest.mark.training
@pytest.mark.parametrize("preset", ["toy-small", "toy"])
def test_every_stage_runs_from_an_empty_folder_to_contact_sheets(
    preset: str, rehearsed: dict[str, tuple[str, ...]]
) -> None:
    words = rehearsed[preset]
    out = Path(words[3])
    results = checkpoints.read_json(out / "evaluation" / "results.json")["sets"]
    assert set(results) == ({"seen"} if preset == "toy-small" else {"seen", "held-out"})
    names = {"teacher-3", "bk-init-3", "kd-3", "lcm-4", "lcm-2", "lcm-1"}
    for figures in results.values():
        assert set(figures) == names | {"ceiling (renders)", "floor (shuffled captions)"}
    assert {p.stem for p in (out / "sheets").glob("*.png")} == {f"{preset}-{name}" for name in names}
    again = _npusim("all", *words)
    assert again.count("already finished") == 6


@pytest.mark.training
def test_a_finished_run_ships_a_network_that_loads_and_draws_the_same(
    tmp_path: Path, rehearsed: dict[str, tuple[str, ...]]
) -> None:
    from npusim.training.config import preset as named
    from npusim.training.config import shortened
    from npusim.training.run import Run
    from npusim.training.sample import Contender, Studio
    from npusim.training.ship import LIMIT_BYTES, load_shipped

    words = rehearsed["toy-small"]
    _npusim("ship", *words, "--to", str(tmp_path / "shipped"))
    shipped = load_shipped(tmp_path / "shipped")
    assert not any(words[3] in p.read_text() for p in (tmp_path / "shipped").rglob("*.json"))
    assert set(shipped.card["figures_as_shipped"]["seen"]) == {"lcm-4", "lcm-2", "lcm-1"}
    assert sum(p.stat().st_size for p in (tmp_path / "shipped").rglob("*.safetensors")) < LIMIT_BYTES
    run = Run(preset=shortened(named("toy-small"), 2), out=Path(words[3]))
    caption, contender = ["small red circle top left sand"], Contender("lcm", 4)
    ours = Studio(run).pictures(contender, caption, "test")
    theirs = Studio(run, shipped.parts).pictures(contender, caption, "test", shipped.unet)
    assert (ours - theirs).abs().max() < 0.05  # fp16 weights
    (tmp_path / "shipped" / "decoder" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    with pytest.raises(BadInputError, match=r"the decoder cannot be read .* ship the network again"):
        load_shipped(tmp_path / "shipped")


@pytest.mark.training
def test_claims_train_both_rivals_and_give_intervals(rehearsed: dict[str, tuple[str, ...]]) -> None:
    words = rehearsed["toy-small"]
    _npusim("claims", *words)
    report = checkpoints.read_json(Path(words[3]) / "evaluation" / "claims.json")
    assert len(report) == 2
    for rows in report.values():
        for row in rows.values():
            assert all(low <= mean <= high for mean, low, high in (row["attributes"], row["all right"]))
            assert sum(row["automatic judge"].values()) == pytest.approx(1, abs=1e-3)


def test_an_unfinished_run_does_not_ship(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"stage\.json: missing, the run is not finished"):
        _npusim("ship", "--out", str(tmp_path), "--to", str(tmp_path / "shipped"))


def test_claims_need_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match="stage kd is not finished; run: npusim train all, then claims again"
    ):
        _npusim("claims", "--out", str(tmp_path))


@pytest.mark.training
def test_a_stage_before_its_time_names_the_one_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match="stage classifier is not finished, kd needs it; run: npusim train"
    ):
        _npusim("kd", "--out", str(tmp_path), "--steps", "2")


def test_the_command_line_is_importable_without_torch() -> None:
    code = (
        "import sys, npusim.training.cli; raise SystemExit(bool({'torch', 'diffusers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_precision_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--precision int3: no such precision; choose no, bf16 or fp16"):
        _npusim("kd", "--out", str(tmp_path), "--precision", "int3")
