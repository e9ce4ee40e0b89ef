"""The network that ships: fp16 safetensors in diffusers' layout, with a card of its making and figures."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from npusim.errors import BadInputError, CheckFailedError
from npusim.training import checkpoints, networks
from npusim.training import run as runs
from npusim.training.bench import planned_steps
from npusim.training.config import as_json
from npusim.training.evaluate import Judge, line
from npusim.training.run import Run
from npusim.training.sample import Contender, Parts, Studio, judging_captions, lcm_scheduler
from npusim.training.session import Session

LIMIT_BYTES = 10_000_000
SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True, slots=True)
class Shipped:
    """A shipped network, in float32, ready to sample."""

    unet: Any
    parts: Parts
    card: dict[str, Any]


def decoder_state(autoencoder: Any) -> dict[str, Any]:
    """The weights that decoding needs: `decoder.*` and `post_quant_conv.*`."""
    wanted = ("decoder.", "post_quant_conv.")
    return {name: value for name, value in autoencoder.state_dict().items() if name.startswith(wanted)}


def write_networks(run: Run, folder: Path) -> None:
    """Write U-Net, text encoder and decoder in fp16 with diffusers' configurations, tokenizer, scheduler."""
    from safetensors.torch import save_file

    runs.load_unet(run, "lcm").half().save_pretrained(folder / "unet")
    runs.load_text_encoder(run).half().save_pretrained(folder / "text_encoder")
    autoencoder = runs.load_vae(run)
    autoencoder.save_config(folder / "decoder")
    halves = {name: value.half().contiguous() for name, value in decoder_state(autoencoder).items()}
    save_file(halves, folder / "decoder" / "diffusion_pytorch_model.safetensors")
    runs.load_tokenizer(run).save_pretrained(folder / "tokenizer")
    lcm_scheduler(run.preset.schedule).save_pretrained(folder / "scheduler")
    for path in folder.glob("*/config.json"):
        _forget_origin(path)


def _forget_origin(path: Path) -> None:
    """Drop what diffusers writes about the folder that a network was loaded from."""
    settings = checkpoints.read_json(path)
    settings.pop("_name_or_path", None)
    checkpoints.write_json(path, settings)


def load_shipped(folder: Path) -> Shipped:
    """Read a shipped network back.

    Raises:
        BadInputError: a file is missing or damaged.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import load_file
    from transformers import CLIPTextModel, CLIPTokenizer

    card = checkpoints.read_json(folder / "card.json")
    unet = checkpoints.load_network(UNet2DConditionModel, folder / "unet").float().eval()
    text_encoder = checkpoints.load_network(CLIPTextModel, folder / "text_encoder").float().eval()
    autoencoder = AutoencoderKL.from_config(checkpoints.read_json(folder / "decoder" / "config.json"))
    weights = folder / "decoder" / "diffusion_pytorch_model.safetensors"
    try:
        loaded = autoencoder.load_state_dict(load_file(weights), strict=False)
    except (
        Exception
    ) as error:  # safetensors and torch raise several kinds; each means that the file is unusable
        raise BadInputError(
            f"{weights}: the decoder cannot be read ({error}); ship the network again"
        ) from error
    if loaded.unexpected_keys or any(key in decoder_state(autoencoder) for key in loaded.missing_keys):
        raise BadInputError(f"{weights}: does not hold this decoder's weights; ship the network again")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return Shipped(unet, Parts(autoencoder.float().eval(), text_encoder, tokenizer), card)


def ship(session: Session, name: str, folder: Path | None = None) -> Path:
    """Publish the run's distilled network under its name, judged as it ships (fp16 weights).

    Returns:
        The folder written.

    Raises:
        BadInputError: the run is not finished and judged.
        CheckFailedError: the files are larger than 10 MB together.
    """
    run = session.run
    for needed in (run.final("lcm") / "stage.json", run.out / "evaluation" / "results.json"):
        if not needed.is_file():
            raise BadInputError(
                f"{needed}: missing, the run is not finished; run: npusim train all, then ship again"
            )
    target = folder or SHIPPED / name

    def fill(aside: Path) -> None:
        write_networks(run, aside)
        checkpoints.write_json(aside / "card.json", card(run, name))
        figures = _judge_shipped(run, aside, session.say)
        checkpoints.write_json(aside / "card.json", card(run, name) | {"figures_as_shipped": figures})
        size_bytes = sum(path.stat().st_size for path in aside.rglob("*.safetensors"))
        if size_bytes > LIMIT_BYTES:
            raise CheckFailedError(f"{target}: {size_bytes:,} bytes of weights, {LIMIT_BYTES:,} are allowed")

    checkpoints.publish_folder(target, fill)
    session.say(f"{name}: shipped")
    return target


def _judge_shipped(run: Run, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The classifier's figures of the shipped files at 4, 2 and 1 steps, on the run's prompts and noise.

    Set of prompts -> network and steps -> figures.
    """
    shipped = load_shipped(folder)
    studio = Studio(run, shipped.parts)
    figures: dict[str, Any] = {}
    for name in run.world().tested:
        judge = Judge(run, name)
        labels, captions = judging_captions(run.preset, run, run.preset.sampling.prompts, name)
        figures[name] = {}
        for steps in run.preset.sampling.student_steps:
            contender = Contender("lcm", steps)
            pictures = studio.pictures(contender, captions, f"evaluate {name}", shipped.unet)
            figures[name][contender.name], _ = judge.judge(pictures, labels)
            say(f"as shipped, {name} {contender.name}: {line(figures[name][contender.name])}")
    return figures


def card(run: Run, name: str) -> dict[str, Any]:
    """How the network was made: command, data, steps, seed, time, versions, and the run's figures."""
    import diffusers
    import transformers

    preset = run.preset
    records = {
        stage: checkpoints.read_json(run.final(stage) / "stage.json") for stage in planned_steps(preset)
    }
    minutes = {stage: round(r["steps"] * r["seconds_per_step"] / 60, 1) for stage, r in records.items()}
    threads = torch.get_num_threads()
    options = f"--preset {preset.name} --out RUN --seed {run.seed} --threads {threads}"
    return {
        "name": name,
        "what": "a latent consistency student in the manner of EdgeFusion, on a procedural world",
        "commands": [f"npusim train {verb} {options}" for verb in ("all", "ship")],
        "data": f"world {preset.world!r}, {preset.pool} pictures of {preset.resolution} px drawn by this package",
        "steps": planned_steps(preset),
        "seed": run.seed,
        "minutes_of_steps": minutes
        | {"note": "steps x median seconds per step; the machine's cores were shared"},
        "pixel_shuffle": preset.vae.patch,
        "guidance_w": preset.sampling.guidance - 1,
        "how_to_decode": "3 p^2 planes, then depth-to-space by p = pixel_shuffle: a picture from -1 to 1",
        "noise_schedule": networks.alphas_digest(networks.noise_schedule(preset.schedule)),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
        "figures": checkpoints.read_json(run.out / "evaluation" / "results.json"),
        "preset": as_json(preset),
    }
