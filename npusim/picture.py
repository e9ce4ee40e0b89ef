"""Text to picture: a pipeline's run drawn by the very commands that were simulated, every network in its planned precision.

torch, diffusers and the trained networks are imported here; profiling never comes this way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from npusim.deployment import SCALES_FILE, Deployment, calibrate, open_deployment
from npusim.errors import BadInputError
from npusim.execute.order import Order
from npusim.execute.run import execute
from npusim.files import write_aside
from npusim.models import checkpoints
from npusim.run_directory import is_pipeline_run, load_summary
from npusim.training import text
from npusim.training.config import preset
from npusim.training.draw import Draw
from npusim.training.run import Run
from npusim.training.sample import judging_captions, lcm_scheduler, sample_few
from npusim.training.ship import SHIPPED, Shipped, load_shipped

Array = np.ndarray[Any, Any]
Inputs = Mapping[str, Array]
#: A network: arrays by input name in, its one output out.
Network = Callable[[Inputs], Array]
#: The networks that a picture takes, by the names that a pipeline must give them.
PARTS = ("text_encoder", "unet", "decoder")
CALIBRATION_CAPTIONS = 8


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a run drew.

    Attributes:
        values: [3, H, W], -1 to 1.
        reference: the same by diffusers in FP32, from the same noise; None unless verified.
        notes: what was assumed.
    """

    values: Any
    reference: Any | None
    notes: tuple[str, ...]

    @property
    def largest_error(self) -> float:
        """Largest difference from the reference, as a share of the range of values (2)."""
        assert self.reference is not None
        return float((self.values - self.reference).abs().max()) / 2

    @property
    def psnr_db(self) -> float:
        """Peak signal to noise ratio against the reference; infinite if equal."""
        assert self.reference is not None
        return float(10 * torch.log10(4 / (self.values - self.reference).square().mean()))


def draw(
    directory: Path, prompt: str, *, seed: int = 0, verify: bool = False, order: Order = "parallel"
) -> Picture:
    """Draw a picture with a pipeline's run.

    Args:
        directory: as `npusim profile PIPELINE.toml` wrote it.
        seed: of the noise, and of a random order.
        verify: also let diffusers draw it in FP32.

    Raises:
        BadInputError: not a pipeline's run, no checkpoint, or one that does not fit the plans.
        MissingExtraError: torch or diffusers is not installed.
    """
    summary, shipped, folder = _opened(directory)
    steps = int(summary["steps"])
    notes = list(_unknown_words(shipped, prompt))
    with tempfile.TemporaryDirectory() as built:
        found = {name: _deployment(directory / name, folder / name, Path(built)) for name in PARTS}
        if any(d.needs_scales and d.scales is None for d in found.values()):
            found = _calibrated(found, shipped, steps)
            notes.append(
                f"there is no {SCALES_FILE}: calibrated on {CALIBRATION_CAPTIONS} captions of the network's own world"
            )
        networks = {name: _deployed(found[name], order, seed) for name in PARTS}
        values = picture(networks, shipped, prompt, steps, seed)
    reference = picture(float_networks(shipped), shipped, prompt, steps, seed) if verify else None
    return Picture(values=values, reference=reference, notes=tuple(notes))


def _opened(directory: Path) -> tuple[Mapping[str, Any], Shipped, Path]:
    """The run's summary and its checkpoint, read."""
    if not is_pipeline_run(directory):
        raise BadInputError(
            f"{directory}: is not the run of a pipeline; write one with: npusim profile edgefusion-toy.toml"
        )
    summary = load_summary(directory)
    names = [n["name"] for n in summary["networks"]]
    if tuple(names) != PARTS:
        raise BadInputError(
            f"{directory}: its networks are {', '.join(names)}; a picture takes {', '.join(PARTS)}, in this order"
        )
    checkpoint = summary.get("checkpoint", "")
    if not checkpoint:
        raise BadInputError(
            f"{directory}: '{summary['model']}' has no trained weights; add checkpoint = \"FOLDER\" to its specification "
            "(as 'npusim train ship' writes one), or draw with edgefusion-toy.toml"
        )
    folder = Path(checkpoint) if Path(checkpoint).is_absolute() else SHIPPED / checkpoint
    if not (folder / "card.json").is_file():
        known = ", ".join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()))
        raise BadInputError(
            f"{directory}: no checkpoint is called '{checkpoint}'; shipped are {known}, or give a folder as 'npusim train ship' writes it"
        )
    from transformers.utils import logging

    logging.disable_progress_bar()
    return summary, load_shipped(folder), folder


def _unknown_words(shipped: Shipped, prompt: str) -> list[str]:
    """A note on the prompt's words that the network was never shown."""
    known = set(Run(preset=preset(shipped.card["preset"]["name"]), out=Path()).world().words())
    strange = [word for word in dict.fromkeys(prompt.lower().split()) if word not in known]
    if not strange:
        return []
    return [
        f"the network was not trained on: {', '.join(strange)} (its words are {', '.join(sorted(known))})"
    ]


def _deployment(run: Path, checkpoint: Path, built: Path) -> Deployment:
    """A network's plan with its weights, as ONNX in the folder `built`."""
    model = checkpoints.build("custom", out=built / f"{run.name}.onnx", weights=checkpoint)
    return open_deployment(run, model)


def _deployed(deployment: Deployment, order: Order, seed: int) -> Network:
    """The network as its Program computes it."""
    numbers = deployment.numbers()

    def run(inputs: Inputs) -> Array:
        (found,) = execute(
            deployment.graph, deployment.plan, deployment.program, numbers, inputs, order=order, seed=seed
        ).values()
        return found

    return run


def float_networks(shipped: Shipped) -> dict[str, Network]:
    """The networks themselves, by diffusers and transformers in FP32."""

    def text_encoder(inputs: Inputs) -> Array:
        return _numpy(text.encode(shipped.parts.text_encoder, torch.from_numpy(inputs["input_ids"])))

    def unet(inputs: Inputs) -> Array:
        z, t, condition, cond = (
            torch.from_numpy(inputs[name])
            for name in ("sample", "timestep", "encoder_hidden_states", "timestep_cond")
        )
        return _numpy(shipped.unet(z, t, condition, timestep_cond=cond).sample)

    def decoder(inputs: Inputs) -> Array:
        return _numpy(shipped.parts.autoencoder.decode(torch.from_numpy(inputs["latent_sample"])).sample)

    return {"text_encoder": text_encoder, "unet": unet, "decoder": decoder}


def _numpy(values: Any) -> Array:
    return np.asarray(values.detach().numpy(), dtype=np.float32)


def picture(
    networks: Mapping[str, Network], shipped: Shipped, prompt: str, steps: int, seed: int
) -> Any:  # fmt: skip
    """One picture [3, H, W], -1 to 1: tokens, conditioning, so many steps of LCM, decoding, depth-to-space.

    Args:
        networks: by the names of `PARTS`.
        seed: of the noise; equal seeds give every set of networks the same.
    """
    config, card = shipped.unet.config, shipped.card
    tokens = text.tokenize(shipped.parts.tokenizer, [prompt]).numpy()
    generator = Draw(seed, "picture", 0).torch()
    noise = torch.randn((1, config.in_channels, config.sample_size, config.sample_size), generator=generator)
    scheduler = lcm_scheduler(preset(card["preset"]["name"]).schedule)
    with torch.no_grad():
        condition = torch.from_numpy(networks["text_encoder"]({"input_ids": tokens}))
        unet = _Unet(networks["unet"], config)
        latents = sample_few(unet, scheduler, noise, condition, steps, float(card["guidance_w"]), generator)
        scaled = latents / shipped.parts.autoencoder.config.scaling_factor
        planes = torch.from_numpy(networks["decoder"]({"latent_sample": scaled.numpy()}))
        return torch.nn.functional.pixel_shuffle(planes, card["pixel_shuffle"])[0].clamp(-1, 1)


@dataclass(frozen=True)
class _Unet:
    """A network in the place of diffusers' U-Net."""

    network: Network
    config: Any

    def __call__(self, z: Any, t: Any, condition: Any, timestep_cond: Any) -> Any:
        found = self.network({
            "sample": z.numpy(), "timestep": np.asarray([int(t)], np.float32), "encoder_hidden_states": condition.numpy(),
            "timestep_cond": timestep_cond.numpy(),
        })  # fmt: skip
        return SimpleNamespace(sample=torch.from_numpy(found))


@dataclass
class _Recorder:
    """A network that keeps what it was asked."""

    network: Network
    seen: list[Inputs] = field(default_factory=list)

    def __call__(self, inputs: Inputs) -> Array:
        self.seen.append(inputs)
        return self.network(inputs)


def _calibrated(deployments: Mapping[str, Deployment], shipped: Shipped, steps: int) -> dict[str, Deployment]:
    """The deployments with scales where they lack them, measured on what the networks are asked while captions are drawn in FP32."""
    recorders = {name: _Recorder(network) for name, network in float_networks(shipped).items()}
    made = preset(shipped.card["preset"]["name"])
    run = Run(preset=made, out=Path(), seed=int(shipped.card["seed"]))
    for index, caption in enumerate(judging_captions(made, run, CALIBRATION_CAPTIONS)[1]):
        picture(recorders, shipped, caption, steps, seed=1_000_000 + index)
    return {
        name: calibrate(d, inputs=recorders[name].seen) if d.needs_scales and d.scales is None else d
        for name, d in deployments.items()
    }


def save_pictures(pictures: Sequence[Any], path: Path) -> None:
    """Write pictures [3, H, W], -1 to 1, side by side as one PNG.

    Raises:
        OutputError: the place cannot be written.
    """
    from PIL import Image

    together = torch.cat(list(pictures), dim=2)
    values = ((together.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    write_aside(path, lambda aside: Image.fromarray(values).save(aside, format="PNG", optimize=True))
