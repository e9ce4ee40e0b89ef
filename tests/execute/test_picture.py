"""Text to picture with the shipped network: the run of a pipeline against diffusers, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROMPT = "a large green star above a small dotted purple ring on brick"
STEPS = 2


def npusim(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from npusim.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a pipeline that has no checkpoint."""
    folder = tmp_path_factory.mktemp("untrained")
    (folder / "plain.toml").write_text(
        'name = "plain"\nsteps = 1\n[[network]]\nname = "decoder"\nmodel = "taesd-decoder"\ntiles = "none"\nsegments = "none"'
    )
    done = npusim("profile", "plain.toml", "--out", "run", "--quiet", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "run: is a pipeline's run; say what to draw with --prompt"),
        (("run", "--prompt", " "), "say what to draw with --prompt"),
        (("run", "--prompt", "x", "--model", "m.onnx"), "--model is about one network"),
        (("run", "--prompt", "x"), "its networks are decoder; a picture takes text_encoder, unet, decoder"),
        (("run/decoder", "--prompt", "x"), "is the run of one network, and --prompt is for a pipeline's"),
        (("run/decoder",), "Missing option '--model'"),
        (("plain.toml", "--prompt", "x"), "run 'npusim profile plain.toml' first"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(
    arguments: tuple[str, ...], message: str, untrained: Path
) -> None:
    done = npusim("run", *arguments, folder=untrained)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(untrained.glob("*.png"))


@pytest.mark.parametrize("verb", ["quantize", "export"])
def test_verbs_on_one_network_say_where_its_run_is(verb: str, untrained: Path) -> None:
    more = ("--to", "csv") if verb == "export" else ()
    (untrained / "m.onnx").write_bytes(b"")
    model = "taesd-decoder" if verb == "export" else str(_taesd(untrained))
    done = npusim(verb, "run", "--model", model, *more, folder=untrained)
    assert done.returncode == 2
    assert (
        "is a pipeline's run and holds no plan of its own; give the run of one of its networks" in done.stderr
    )


def _taesd(folder: Path) -> Path:
    from npusim.models import zoo

    path = folder / "taesd.onnx"
    path.write_bytes(zoo.graph_bytes("taesd-decoder"))
    return path


def test_comparing_pipelines_points_to_their_networks(untrained: Path) -> None:
    done = npusim("compare", "run", "run", folder=untrained)
    assert done.returncode == 2
    assert "is a pipeline's run; give two of its networks' runs" in done.stderr


def drawn(folder: Path, *options: str) -> tuple[str, Path]:
    """What `npusim run --verify` of the toy pipeline prints, and its picture."""
    for package in ("torch", "diffusers", "transformers", "onnxscript"):
        pytest.importorskip(package)
    made = npusim("profile", "edgefusion-toy.toml", "--steps", str(STEPS), *options, "--out", "run", "--quiet", folder=folder)  # fmt: skip
    assert made.returncode == 0, made.stderr
    done = npusim("run", "run", "--prompt", PROMPT, "--verify", "--out", "picture.png", folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "picture.png"


def error_and_psnr(printed: str) -> tuple[float, float]:
    (line,) = [x for x in printed.splitlines() if "against diffusers in FP32" in x]
    words = line.replace(",", " ").split()
    return float(words[words.index("error") + 1]), float(words[words.index("PSNR") + 1])


@pytest.mark.slow
@pytest.mark.training
def test_a_picture_planned_in_fp32_is_the_one_that_diffusers_own_pipeline_draws(tmp_path: Path) -> None:
    """Also against StableDiffusionPipeline, which samples by code of its own."""
    printed, path = drawn(tmp_path, "--precision", "fp32")
    assert error_and_psnr(printed)[0] <= 1e-3
    import torch
    from PIL import Image

    from npusim.training.ship import SHIPPED

    found = np.asarray(Image.open(path), dtype=np.float32)
    assert found.shape == (64, 64, 3)
    values = pipeline_picture(SHIPPED / "edgefusion-toy")
    wanted = ((values.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).to(torch.float32).numpy()
    assert np.abs(found - wanted).max() <= 1  # of 255: rounding
    assert found.std() > 20


def pipeline_picture(folder: Path) -> object:
    """[3, H, W] by diffusers' StableDiffusionPipeline from the noise of seed 0."""
    import torch
    from diffusers import LCMScheduler, StableDiffusionPipeline

    from npusim.training.draw import Draw
    from npusim.training.ship import load_shipped

    shipped = load_shipped(folder)
    pipeline = StableDiffusionPipeline(
        vae=shipped.parts.autoencoder, text_encoder=shipped.parts.text_encoder, tokenizer=shipped.parts.tokenizer, unet=shipped.unet,
        scheduler=LCMScheduler.from_pretrained(folder / "scheduler"), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    generator = Draw(0, "picture", 0).torch()
    config = shipped.unet.config
    noise = torch.randn((1, config.in_channels, config.sample_size, config.sample_size), generator=generator)
    latents = pipeline(
        PROMPT, num_inference_steps=STEPS, guidance_scale=float(shipped.card["guidance_w"]) + 1, latents=noise, generator=generator,
        output_type="latent",
    ).images  # fmt: skip
    with torch.no_grad():
        planes = shipped.parts.autoencoder.decode(
            latents / shipped.parts.autoencoder.config.scaling_factor
        ).sample
    return torch.nn.functional.pixel_shuffle(planes, shipped.card["pixel_shuffle"])[0]


@pytest.mark.slow
@pytest.mark.training
def test_a_picture_in_its_planned_precisions_stays_close_and_stands_beside_it(tmp_path: Path) -> None:
    printed, path = drawn(tmp_path)
    assert "calibrated on 8 captions of the network's own world" in printed
    error, psnr_db = error_and_psnr(printed)
    assert error > 1e-3
    assert psnr_db > 25
    from PIL import Image

    beside = Image.open(path.with_name("picture-beside.png"))
    assert beside.size == (128, 64)
    assert np.array_equal(np.asarray(beside)[:, 64:], np.asarray(Image.open(path)))
