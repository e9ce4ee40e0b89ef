"""The EdgeFusion paper's Table 5 on this machine's GPU: whole pictures in FP16 by diffusers, with seeded random weights.

Speed does not depend on the values of the weights, so the real architectures are enough. torch and diffusers are imported here only
when a table is measured.

Source: EdgeFusion: On-Device Text-to-Image Generation (2024), Table 5 (one A100, 50 runs).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from npusim.errors import BadInputError, MissingExtraError
from npusim.models import zoo

RUNS, WARM_UP = 50, 3
PROMPT = "a red lighthouse on a cliff above the sea"
GUIDANCE_SCALE = 7.5


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One row: a U-Net of the zoo, its steps, whether each is guided, and the paper's time.

    Attributes:
        guided: classifier-free guidance at batch 2; otherwise the scale is an input of the U-Net (LCM).
        published_ms: per picture, on one A100.
    """

    name: str
    network: str
    steps: int
    guided: bool
    published_ms: float


SYSTEMS = (
    System(name="SD-v1.4", network="sd-v1.5", steps=25, guided=True, published_ms=930),
    System(name="BK-SDM-Tiny", network="bk-sdm-tiny", steps=25, guided=True, published_ms=540),
    System(name="EdgeFusion", network="edgefusion", steps=4, guided=False, published_ms=150),
    System(name="EdgeFusion", network="edgefusion", steps=2, guided=False, published_ms=90),
    System(name="EdgeFusion", network="edgefusion", steps=1, guided=False, published_ms=90),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A measured row: milliseconds per picture, one per run."""

    system: System
    times_ms: tuple[float, ...]

    @property
    def mean_ms(self) -> float:
        """Mean over the runs."""
        return statistics.fmean(self.times_ms)

    @property
    def spread_ms(self) -> float:
        """Standard deviation over the runs."""
        return statistics.stdev(self.times_ms) if len(self.times_ms) > 1 else 0.0


def require_cuda() -> Any:
    """torch, where it can use a CUDA GPU.

    Raises:
        MissingExtraError: torch is not installed.
        BadInputError: there is no GPU that torch can use.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "models") from error
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} finds no CUDA GPU" + (
            "" if torch.version.cuda else " (it is a build without CUDA)"
        )
        raise BadInputError(
            f"--device cuda: {built}, so Table 5 cannot be measured here; run it on a machine with an NVIDIA GPU and a CUDA build "
            "of torch, or leave --device out for the paper's figures"
        )
    return torch


def measure_table5(runs: int = RUNS) -> tuple[str, list[Timed]]:
    """The card's name, and every row measured on it in FP16.

    Raises:
        MissingExtraError, BadInputError: see `require_cuda`.
    """
    torch = require_cuda()
    rows = []
    for system in SYSTEMS:
        pipeline = build_pipeline(system, {name: zoo_network(name) for name in _parts(system)})
        pipeline = pipeline.to("cuda", torch.float16)
        rows.append(time_pictures(pipeline, system, runs=runs, wait=torch.cuda.synchronize))
        del pipeline
        torch.cuda.empty_cache()
    return torch.cuda.get_device_name(), rows


def _parts(system: System) -> tuple[str, str, str]:
    return "clip-text-encoder", system.network, "sd-vae-decoder"


def zoo_network(name: str) -> Any:
    """The torch module of a zoo network with weights from seed 0."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return zoo.architecture(name).build()


def build_pipeline(system: System, networks: Mapping[str, Any]) -> Any:
    """diffusers' StableDiffusionPipeline of text encoder, U-Net and autoencoder, given in this order."""
    try:
        from diffusers import LCMScheduler, PNDMScheduler, StableDiffusionPipeline
    except ImportError as error:
        raise MissingExtraError("diffusers", "models") from error
    from npusim.training.text import build_tokenizer

    text_encoder, unet, autoencoder = networks.values()
    noise: dict[str, Any] = {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    }  # fmt: skip
    scheduler = (
        PNDMScheduler(**noise, skip_prk_steps=True) if system.guided else LCMScheduler(**noise, clip_sample=False)
    )  # fmt: skip
    tokens = text_encoder.config.max_position_embeddings
    pipeline = StableDiffusionPipeline(
        vae=autoencoder, text_encoder=text_encoder, tokenizer=build_tokenizer(tuple(PROMPT.split()), tokens), unet=unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def time_pictures(pipeline: Any, system: System, *, runs: int, wait: Callable[[], None]) -> Timed:
    """Wall-clock time of whole pictures, text to pixels, after `WARM_UP` that do not count.

    Args:
        wait: returns when the device has done all it was given.
    """
    times = []
    for run in range(WARM_UP + runs):
        wait()
        started = time.perf_counter()
        pipeline(
            PROMPT,
            num_inference_steps=system.steps,
            guidance_scale=GUIDANCE_SCALE,
            output_type="pt",
        )
        wait()
        if run >= WARM_UP:
            times.append((time.perf_counter() - started) * 1e3)
    return Timed(system=system, times_ms=tuple(times))


def table5_rows(timed: Sequence[Timed]) -> list[tuple[str, ...]]:
    """Cells: system, steps, guidance, the paper's ms and speed-up over the first row, ours with its spread and speed-up."""
    rows: list[tuple[str, ...]] = []
    for index, system in enumerate(SYSTEMS):
        cells = (system.name, str(system.steps), "batch 2" if system.guided else "none",
                 f"{system.published_ms:.0f}", f"{SYSTEMS[0].published_ms / system.published_ms:.1f} x")  # fmt: skip
        mine = ("-", "-")
        if timed:
            row = timed[index]
            mine = (f"{row.mean_ms:.1f} ± {row.spread_ms:.1f}", f"{timed[0].mean_ms / row.mean_ms:.1f} x")
        rows.append((*cells, *mine))
    return rows
