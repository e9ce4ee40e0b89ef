"""The full-size preset's path, in miniature: a local pipeline folder as teacher and a folder of pictures as data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from npusim.errors import BadInputError
from npusim.training import networks, text, vae
from npusim.training.cli import app
from npusim.training.config import Schedule, TextSize, UNetSize, VaeSize


def _pipeline(folder: Path, beta_end: float = 0.012) -> Path:
    """A pipeline of SD's layout with networks of a few thousand weights."""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer(("red", "blue", "square"), 77)
    size = UNetSize(
        channels=(8, 8, 16, 16), layers_per_block=2, cross_dim=8, heads=2, sample=64, norm_groups=4
    )
    networks.build_unet(networks.unet_config(size)).save_pretrained(folder / "unet")
    encoder = text.build_text_encoder(TextSize(hidden=8, layers=1, heads=2, tokens=77), tokenizer)
    encoder.save_pretrained(folder / "text_encoder")
    autoencoder = VaeSize(
        patch=1, channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=4, norm_groups=2
    )
    vae.build_vae(autoencoder, 512).save_pretrained(folder / "vae")
    tokenizer.save_pretrained(folder / "tokenizer")
    networks.noise_schedule(Schedule(beta_end=beta_end)).save_pretrained(folder / "scheduler")
    return folder


def _pictures(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    lines = []
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        Image.fromarray(np.full((40, 60, 3), colour, np.uint8)).save(folder / f"{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "text": f"{name} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def _train(verb: str, teacher: Path, out: Path, *extra: str) -> None:
    words = (
        verb,
        "--preset",
        "sd-v1",
        "--out",
        str(out),
        "--teacher",
        str(teacher),
        "--steps",
        "1",
        "--threads",
        "1",
    )
    CliRunner().invoke(app, [*words, *extra], catch_exceptions=False)


@pytest.mark.training
def test_a_given_teacher_is_compressed_and_distilled_twice(tmp_path: Path) -> None:
    teacher, data, out = _pipeline(tmp_path / "teacher"), _pictures(tmp_path / "data"), tmp_path / "run"
    given = ("--data", str(data), "--precision", "no")
    _train("bk-init", teacher, out)
    _train("kd", teacher, out, *given)
    _train("lcm", teacher, out, *given)
    config = json.loads((out / "lcm" / "final" / "unet" / "config.json").read_text())
    assert config["time_cond_proj_dim"] == 256
    assert len(config["down_block_types"]) == 3


@pytest.mark.training
def test_a_given_teacher_with_another_noise_schedule_is_refused(tmp_path: Path) -> None:
    teacher = _pipeline(tmp_path / "teacher", beta_end=0.02)
    with pytest.raises(BadInputError, match="teacher: was made with another noise schedule"):
        _train("bk-init", teacher, tmp_path / "run")


@pytest.mark.parametrize("verb", ["all", "vae", "teacher", "kd"])
def test_full_size_training_without_a_teacher_says_how_to_give_one(tmp_path: Path, verb: str) -> None:
    words = (verb, "--preset", "sd-v1", "--out", str(tmp_path), "--steps", "1", "--threads", "1")
    with pytest.raises(
        BadInputError, match=r"not trained but given; run bk-init, .* --teacher PIPELINE_FOLDER"
    ):
        CliRunner().invoke(app, [*words], catch_exceptions=False)


@pytest.mark.training
def test_full_size_training_without_pictures_says_what_is_missing(tmp_path: Path) -> None:
    teacher = _pipeline(tmp_path / "teacher")
    _train("bk-init", teacher, tmp_path / "run")
    with pytest.raises(BadInputError, match=r"--data: .* give an imagefolder with metadata\.jsonl"):
        _train("kd", teacher, tmp_path / "run", "--precision", "no")
