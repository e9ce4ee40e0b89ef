"""Draw the shipped network's pictures in FP32 and, below, as its integer deployments draw them; say how far apart they are.

Run `python tools/quantized_pictures.py --out PICTURES.png [--run RUN]`. The U-Net becomes ONNX, is profiled, calibrated on other
captions than those drawn, and every evaluation of every step is executed as the Program that was simulated; text encoder and
decoder stay in FP32. `--run` names the finished run that the network came from: its classifier then reads every row.
Needs the extras `training`, `models` and `run`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from npusim.api import load_graph, profile
from npusim.deployment import Deployment, calibrate
from npusim.errors import BadInputError
from npusim.execute.measure import closeness
from npusim.execute.run import execute
from npusim.models import checkpoints
from npusim.scheduler.problem import Infeasible
from npusim.training import text, vae
from npusim.training.config import preset
from npusim.training.draw import Draw
from npusim.training.evaluate import Judge
from npusim.training.run import Run
from npusim.training.sample import judging_captions, lcm_scheduler, sample_few, save_sheet
from npusim.training.ship import SHIPPED, Shipped, load_shipped
from npusim.weights import open_weights

CALIBRATION_CAPTIONS = 8
COLUMNS = 8

Inputs = dict[str, Any]


def one_by_one(z: Any, t: Any, condition: Any, timestep_cond: Any) -> Iterator[Inputs]:
    """The ONNX graph's inputs for each picture of a batch."""
    for index in range(len(z)):
        row = slice(index, index + 1)
        yield {
            "sample": z[row].numpy(),
            "timestep": np.asarray([int(t)], np.float32),
            "encoder_hidden_states": condition[row].numpy(),
            "timestep_cond": timestep_cond[row].numpy(),
        }


@dataclass
class Recorder:
    """The network itself, which keeps what it was asked."""

    unet: Any
    seen: list[Inputs] = field(default_factory=list)

    @property
    def config(self) -> Any:
        """The network's."""
        return self.unet.config

    def __call__(self, z: Any, t: Any, condition: Any, timestep_cond: Any) -> Any:
        """Noise [N, C, h, w] in FP32."""
        self.seen += one_by_one(z, t, condition, timestep_cond)
        return self.unet(z, t, condition, timestep_cond=timestep_cond)


@dataclass
class Deployed:
    """The U-Net as its Program computes it: called like the network itself, one picture at a time.

    Attributes:
        sqnr_db: timestep -> of one evaluation against the network in FP32 on the same inputs.
    """

    deployment: Deployment
    unet: Any
    sqnr_db: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = self.deployment.numbers()

    @property
    def config(self) -> Any:
        """The network's."""
        return self.unet.config

    def __call__(self, z: Any, t: Any, condition: Any, timestep_cond: Any) -> Any:
        """Noise [N, C, h, w] at time t."""
        found, rows = self.deployment, []
        for inputs in one_by_one(z, t, condition, timestep_cond):
            (noise,) = execute(found.graph, found.plan, found.program, self._numbers, inputs).values()
            rows.append(noise)
        together = np.concatenate(rows)
        reference = self.unet(z, t, condition, timestep_cond=timestep_cond).sample
        self.sqnr_db[int(t)] = closeness(together, reference.numpy()).sqnr_db
        return SimpleNamespace(sample=torch.from_numpy(together).to(z))


@dataclass(frozen=True)
class Scene:
    """Captions, and the noise that every network starts from."""

    shipped: Shipped
    captions: Sequence[str]
    seed: int

    def latents(self, unet: Any, steps: int) -> Any:
        """Latents [N, C, h, w] after so many steps; equal noise for every network."""
        card, config = self.shipped.card, unet.config
        generator = Draw(self.seed, "quantized pictures", 0).torch()
        shape = (len(self.captions), config.in_channels, config.sample_size, config.sample_size)
        noise = torch.randn(shape, generator=generator)
        scheduler = lcm_scheduler(preset(card["preset"]["name"]).schedule)
        with torch.no_grad():
            tokens = text.tokenize(self.shipped.parts.tokenizer, list(self.captions))
            condition = text.encode(self.shipped.parts.text_encoder, tokens)
            return sample_few(unet, scheduler, noise, condition, steps, float(card["guidance_w"]), generator)

    def pictures(self, latents: Any) -> Any:
        """Pictures [N, 3, H, W], -1 to 1."""
        with torch.no_grad():
            drawn = vae.decode(self.shipped.parts.autoencoder, latents, self.shipped.card["pixel_shuffle"])
        return drawn.clamp(-1, 1)


def calibration_inputs(shipped: Shipped, captions: Sequence[str], steps: int) -> list[Inputs]:
    """What the network is asked while it draws these captions, one entry per picture and step."""
    recorder = Recorder(shipped.unet)
    Scene(shipped, captions, seed=1).latents(recorder, steps)
    return recorder.seen


def deploy(model: Path, npu: str, precision: str, inputs: Sequence[Mapping[str, Any]]) -> Deployment:
    """Plan, lower and, where the precision needs scales, calibrate the network for this hardware.

    Raises:
        BadInputError: it does not fit.
    """
    graph = load_graph(model)
    found = profile(graph, npu=npu, precision=precision)
    if isinstance(found, Infeasible):
        raise BadInputError(f"--npu {npu}: the network does not fit at {precision} ({found})")
    planned = Deployment(
        graph=graph, plan=found.plan, program=found.program, weights=open_weights(model, graph), model=model
    )
    return calibrate(planned, inputs=inputs) if planned.needs_scales else planned


def psnr_db(a: Any, b: Any) -> float:
    """Peak signal to noise ratio of pictures whose values span 2."""
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def print_row(name: str, cells: Sequence[str]) -> None:
    """One row of a Markdown table."""
    print(f"| {name} | {' | '.join(cells)} |")


def accuracy(judge: Judge | None, pictures: Any, labels: Any) -> list[str]:
    """What the classifier reads: attributes, and pictures in full."""
    if judge is None:
        return ["-", "-"]
    right = judge.read(pictures)[0] == labels
    return [f"{right.mean():.1%}", f"{right.all(axis=1).mean():.1%}"]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", type=Path, default=SHIPPED / "edgefusion-toy")
    parser.add_argument("--out", type=Path, required=True, help="the PNG: one row per precision")
    parser.add_argument("--run", type=Path, help="the finished run whose classifier judges")
    parser.add_argument("--npu", default="exynos2400")
    parser.add_argument("--precisions", default="w8a16,w8a8")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    return parser.parse_args()


def main() -> None:
    """Draw, compare, save."""
    chosen = options()
    shipped = load_shipped(chosen.network)
    made = preset(shipped.card["preset"]["name"])
    run = Run(preset=made, out=chosen.run or Path(), seed=int(shipped.card["seed"]))
    judge = Judge(run) if chosen.run else None
    labels, captions = judging_captions(made, run, chosen.pictures + CALIBRATION_CAPTIONS)
    scene, labels = Scene(shipped, captions[: chosen.pictures], run.seed), labels[: chosen.pictures]
    calibration = calibration_inputs(shipped, captions[chosen.pictures :], chosen.steps)
    reference = scene.latents(shipped.unet, chosen.steps)
    drawn = scene.pictures(reference)
    rows = [drawn[:COLUMNS]]
    print(f"{chosen.pictures} pictures, {chosen.steps} steps, calibrated on {CALIBRATION_CAPTIONS} others\n")
    head = ["one evaluation, SQNR", f"latents after {chosen.steps} steps, SQNR", "pictures, PSNR"]
    print_row("precision", [*head, "attributes", "all right"])
    print_row("---", ["---"] * 5)
    print_row("fp32", ["-", "-", "-", *accuracy(judge, drawn, labels)])
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoints.build("custom", out=Path(folder), weights=chosen.network / "unet")
        for precision in chosen.precisions.split(","):
            network = Deployed(deploy(model, chosen.npu, precision, calibration), shipped.unet)
            latents = scene.latents(network, chosen.steps)
            pictures = scene.pictures(latents)
            worst, best = min(network.sqnr_db.values()), max(network.sqnr_db.values())
            cells = [f"{worst:.1f} to {best:.1f} dB"]
            cells.append(f"{closeness(latents.numpy(), reference.numpy()).sqnr_db:.1f} dB")
            cells.append(f"{psnr_db(pictures, drawn):.1f} dB")
            print_row(precision, [*cells, *accuracy(judge, pictures, labels)])
            rows.append(pictures[:COLUMNS])
    save_sheet(chosen.out, torch.cat(rows), columns=len(rows[0]), enlarge=2)
    print(f"\nwrote {chosen.out}: fp32, then {chosen.precisions}")


if __name__ == "__main__":
    main()
