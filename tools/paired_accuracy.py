"""Does quantization cost accuracy? The same captions and noise through the shipped network in FP32 and in its integer deployment.

`python tools/paired_accuracy.py --run RUN --out FOLDER --pictures 4096`

Text encoder, noise and decoder are the same on both sides; the U-Net is torch in FP32 on one, the Program's arithmetic on the
other: whole layers, which the executor's integer kernels compute to the same bits as the Program's tiles (checked on the first
evaluation of every chunk). The classifier of the finished run reads every attribute of every picture. Chunks are kept in FOLDER, so an
interrupted run goes on where it was; `result.json` has the paired difference with its 95 % interval.
Needs the extras `training`, `models` and `run`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from quantized_pictures import CALIBRATION_CAPTIONS, Scene, calibration_inputs, deploy, one_by_one

from npusim.deployment import Deployment
from npusim.errors import BadInputError, CheckFailedError
from npusim.execute.formats import KeptNumbers
from npusim.execute.measure import closeness
from npusim.execute.run import execute
from npusim.execute.untiled import execute_untiled
from npusim.files import write_aside
from npusim.models import checkpoints
from npusim.training.config import preset
from npusim.training.draw import Draw
from npusim.training.evaluate import Judge
from npusim.training.metrics.statistics import paired_bootstrap
from npusim.training.run import Run
from npusim.training.sample import judging_captions
from npusim.training.ship import SHIPPED, Shipped, load_shipped

#: A loss of accuracy that a deployment may not exceed, as a share.
ALLOWED_LOSS = 0.01


@dataclass(frozen=True)
class Setting:
    """What the chunks of a folder have in common; another setting needs another folder."""

    network: str
    precision: str
    npu: str
    pictures: int
    chunk: int
    steps: int
    seed: int
    program_sha256: str


@dataclass
class Integers:
    """The U-Net in integers, called like the network itself; the first evaluation is also run tile by tile."""

    deployment: Deployment
    unet: Any
    numbers: KeptNumbers = field(init=False)
    checked: int = 0

    def __post_init__(self) -> None:
        self.numbers = KeptNumbers(self.deployment.numbers())

    @property
    def config(self) -> Any:
        """The network's."""
        return self.unet.config

    def __call__(self, z: Any, t: Any, condition: Any, timestep_cond: Any) -> Any:
        """Noise [N, C, h, w] at time t."""
        rows = []
        for inputs in one_by_one(z, t, condition, timestep_cond):
            (noise,) = execute_untiled(self.deployment.graph, self.numbers, inputs).values()
            if not rows and not self.checked:
                self._check(inputs, noise)
            rows.append(noise)
        return SimpleNamespace(sample=torch.from_numpy(np.concatenate(rows)).to(z))

    def _check(self, inputs: Any, whole: Any) -> None:
        found = self.deployment
        (tiled,) = execute(found.graph, found.plan, found.program, self.numbers, inputs).values()
        if not np.array_equal(tiled, whole):
            raise CheckFailedError("the Program's tiles do not add up to the whole layers")
        self.checked += 1


@dataclass(frozen=True)
class Pairs:
    """Draws and judges both sides of one chunk after the other."""

    shipped: Shipped
    judge: Any
    labels: Any
    captions: Sequence[str]
    integers: Integers
    setting: Setting

    def chunk(self, index: int) -> dict[str, Any]:
        """[N, attributes] correctness of both sides, and how close latents and pictures are."""
        rows = slice(index * self.setting.chunk, (index + 1) * self.setting.chunk)
        seed = int(Draw(self.setting.seed, "paired accuracy", index).numpy().integers(2**31))
        scene = Scene(self.shipped, self.captions[rows], seed)
        self.integers.checked = 0
        exact, found = (scene.latents(n, self.setting.steps) for n in (self.shipped.unet, self.integers))
        pictures = [scene.pictures(z) for z in (exact, found)]
        right = [self.judge.read(p)[0] == self.labels[rows] for p in pictures]
        error = (pictures[0] - pictures[1]).square().mean(dim=(1, 2, 3)).numpy()
        return {
            "fp32": right[0], "integers": right[1], "picture_mse": error,
            "latents_db": np.asarray(closeness(found.numpy(), exact.numpy()).sqnr_db),
        }  # fmt: skip


def run_chunks(pairs: Pairs, folder: Path, *, stop_after: int | None = None) -> list[Path]:
    """Make the chunks that the folder lacks. Returns all of them; `stop_after` new ones it stops (for tests)."""
    count = -(-pairs.setting.pictures // pairs.setting.chunk)
    files = [folder / f"chunk-{i:04d}.npz" for i in range(count)]
    begun, made = time.monotonic(), 0
    left = sum(not f.is_file() for f in files)
    for index, file in enumerate(files):
        if file.is_file():
            continue
        if made == stop_after:
            break
        found = pairs.chunk(index)
        write_aside(file, lambda path, found=found: _save(path, found))  # type: ignore[misc]
        made += 1
        spent = time.monotonic() - begun
        print(
            f"{index + 1} of {count} chunks; {spent / made * (left - made) / 60:.0f} minutes left", flush=True
        )
    return files


def _save(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def open_folder(folder: Path, setting: Setting) -> None:
    """Make the folder, or check that its chunks have the same setting.

    Raises:
        BadInputError: they have another.
    """
    file = folder / "setting.json"
    wanted = asdict(setting)
    if file.is_file():
        held = json.loads(file.read_text("utf-8"))
        for key, value in wanted.items():
            if held.get(key) != value:
                raise BadInputError(
                    f"{folder}: its chunks have {key} {held.get(key)!r}, asked for is {value!r}; give another --out"
                )
        return
    write_aside(file, lambda path: path.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8"))


def judge_pairs(files: Sequence[Path]) -> dict[str, Any]:
    """Accuracy of both sides, and their paired difference (integers - FP32) with its 95 % interval over pictures."""
    chunks = [dict(np.load(f)) for f in files]
    exact, found = (np.concatenate([c[side] for c in chunks]) for side in ("fp32", "integers"))
    result: dict[str, Any] = {"pictures": len(exact), "attributes": exact.shape[1]}
    for name, a, b in (
        ("mean", found.mean(axis=1), exact.mean(axis=1)),
        ("all", found.all(axis=1).astype(float), exact.all(axis=1).astype(float)),
    ):
        difference, low, high = paired_bootstrap(a, b)
        result[name] = {
            "fp32": float(b.mean()), "integers": float(a.mean()), "difference": difference, "interval_95": [low, high],
            "loss_of_a_point_excluded": low > -ALLOWED_LOSS,
        }  # fmt: skip
    mse = np.concatenate([c["picture_mse"] for c in chunks])
    psnr = 10 * np.log10(4 / np.maximum(mse, 1e-12))
    result["psnr_db"] = {"median": float(np.median(psnr)), "lowest": float(psnr.min())}
    result["latents_db"] = [
        float(min(c["latents_db"] for c in chunks)),
        float(max(c["latents_db"] for c in chunks)),
    ]
    return result


def line(name: str, found: dict[str, Any]) -> str:
    """One row for the screen."""
    low, high = (100 * v for v in found["interval_95"])
    verdict = "excludes" if found["loss_of_a_point_excluded"] else "does not exclude"
    return (
        f"{name}: FP32 {found['fp32']:.3%}, integers {found['integers']:.3%}, difference {100 * found['difference']:+.3f} points, "
        f"95 % {low:+.3f} to {high:+.3f}: {verdict} a loss of more than one point"
    )


def prepare(chosen: argparse.Namespace, folder: Path) -> Pairs:
    """Read the shipped network and the run's classifier, deploy the U-Net on captions that are not judged."""
    shipped = load_shipped(chosen.network)
    made = preset(shipped.card["preset"]["name"])
    run = Run(preset=made, out=chosen.run, seed=int(shipped.card["seed"]))
    labels, captions = judging_captions(made, run, chosen.pictures + CALIBRATION_CAPTIONS)
    inputs = calibration_inputs(shipped, captions[chosen.pictures :], chosen.steps)
    model = checkpoints.build("custom", out=folder, weights=chosen.network / "unet")
    deployment = deploy(model, chosen.npu, chosen.precision, inputs)
    setting = Setting(
        network=deployment.graph.model_sha256, precision=chosen.precision, npu=chosen.npu, pictures=chosen.pictures, chunk=chosen.chunk,
        steps=chosen.steps, seed=run.seed, program_sha256=deployment.plan.program_sha256,
    )  # fmt: skip
    judged = slice(chosen.pictures)
    return Pairs(
        shipped, Judge(run), labels[judged], captions[judged], Integers(deployment, shipped.unet), setting
    )


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", type=Path, default=SHIPPED / "edgefusion-toy")
    parser.add_argument("--run", type=Path, required=True, help="the finished run whose classifier judges")
    parser.add_argument("--out", type=Path, required=True, help="folder of chunks and result.json")
    parser.add_argument("--npu", default="exynos2400")
    parser.add_argument("--precision", default="w8a16")
    parser.add_argument("--pictures", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    return parser.parse_args(arguments)


def main() -> None:
    """Draw, judge, compare."""
    chosen = options()
    with tempfile.TemporaryDirectory() as folder:
        pairs = prepare(chosen, Path(folder))
        open_folder(chosen.out, pairs.setting)
        files = run_chunks(pairs, chosen.out)
    result = {"setting": asdict(pairs.setting), **judge_pairs(files)}
    text = json.dumps(result, indent=1) + "\n"
    write_aside(chosen.out / "result.json", lambda path: path.write_text(text, "utf-8"))
    print(
        f"{result['pictures']} pictures, {chosen.steps} steps, {chosen.precision} against FP32, same captions and noise"
    )
    print(line("attributes", result["mean"]))
    print(line("pictures with every attribute right", result["all"]))
    print(
        f"pictures: PSNR median {result['psnr_db']['median']:.1f} dB, lowest {result['psnr_db']['lowest']:.1f} dB"
    )


if __name__ == "__main__":
    main()
