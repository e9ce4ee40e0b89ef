"""Networks that cannot be teacher and student are refused with the folder and what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from npusim.errors import BadInputError
from npusim.training import checkpoints, networks, run
from npusim.training.config import Schedule, preset

OURS = {"vae": "a", "text_encoder": "b", "noise schedule": "c"}


def _folder(path: Path, **identity: str) -> Path:
    checkpoints.write_json(path / "stage.json", {"identity": identity})
    return path


@pytest.mark.parametrize("part", sorted(OURS))
def test_a_student_of_another_making_is_refused(tmp_path: Path, part: str) -> None:
    teacher = _folder(tmp_path / "teacher", **OURS)
    student = _folder(tmp_path / "student", **(OURS | {part: "other"}))
    with pytest.raises(BadInputError, match=f"student: was made with another {part} than this run's"):
        run.check_pair(teacher, student, OURS)
    run.check_pair(teacher, teacher, OURS)


def test_a_given_teacher_with_another_noise_schedule_is_refused(tmp_path: Path) -> None:
    networks.noise_schedule(Schedule(beta_end=0.02)).save_pretrained(tmp_path / "scheduler")
    ours = {"noise schedule": networks.alphas_digest(networks.noise_schedule(Schedule()))}
    with pytest.raises(BadInputError, match="was made with another noise schedule"):
        run.check_pair(tmp_path, tmp_path, ours)


def test_a_run_with_another_seed_is_refused(tmp_path: Path) -> None:
    run.open_run(run.Run(preset=preset("toy-small"), out=tmp_path, seed=0))
    with pytest.raises(BadInputError, match=r"run\.json: holds a run with .* or another --out"):
        run.open_run(run.Run(preset=preset("toy-small"), out=tmp_path, seed=1))


def _unet(path: Path) -> Any:
    from diffusers import UNet2DConditionModel

    from npusim.training.config import UNetSize

    size = UNetSize(
        channels=(8, 8, 16, 16), layers_per_block=2, cross_dim=8, heads=2, sample=8, norm_groups=4
    )
    networks.build_unet(networks.unet_config(size)).save_pretrained(path)
    return UNet2DConditionModel


def test_a_truncated_network_is_named(tmp_path: Path) -> None:
    kind = _unet(tmp_path / "unet")
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadInputError, match="unet: its weights cannot be read"):
        checkpoints.load_network(kind, tmp_path / "unet")


@pytest.mark.parametrize("damage", ["one byte", "short", "gone"])
def test_a_published_network_that_was_damaged_since_is_named(tmp_path: Path, damage: str) -> None:
    kinds: list[Any] = []
    checkpoints.publish_folder(tmp_path / "final", lambda folder: kinds.append(_unet(folder / "unet")))
    checkpoints.load_network(kinds[0], tmp_path / "final" / "unet")
    weights = tmp_path / "final" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-8] ^= 1
    weights.write_bytes(content if damage == "one byte" else content[:-100])
    if damage == "gone":
        weights.unlink()
    state = "missing" if damage == "gone" else "corrupt"
    with pytest.raises(BadInputError, match=rf"model\.safetensors: is {state} .* run its stage again"):
        checkpoints.load_network(kinds[0], tmp_path / "final" / "unet")


def test_a_missing_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"unet: holds no config\.json"):
        checkpoints.load_network(object, tmp_path / "unet")


def test_a_picture_folder_without_a_listing_is_named(tmp_path: Path) -> None:
    from npusim.training.data.source import Folder

    with pytest.raises(BadInputError, match=r"metadata\.jsonl: each line must be JSON"):
        Folder(tmp_path, None, None, 512)
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(BadInputError, match="holds no pictures"):
        Folder(tmp_path, None, None, 512)
