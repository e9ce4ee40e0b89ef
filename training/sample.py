"""Sampling: many guided steps (DDIM) for teacher and stage-1 student, few (LCM) for the distilled one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from npusim.training import checkpoints, text, vae
from npusim.training import run as runs
from npusim.training.config import Preset, Schedule
from npusim.training.data.world import Combinations
from npusim.training.draw import Draw
from npusim.training.lcm import guidance_embedding
from npusim.training.run import Run

if TYPE_CHECKING:
    from npusim.training.session import Session


def ddim_scheduler(schedule: Schedule) -> Any:
    """diffusers' DDIMScheduler on SD v1's noise schedule."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**_settings(schedule), set_alpha_to_one=False)


def lcm_scheduler(schedule: Schedule) -> Any:
    """diffusers' LCMScheduler on the same schedule: 4 steps are 999, 759, 499, 259; 2 are 999, 499."""
    from diffusers import LCMScheduler

    return LCMScheduler(**_settings(schedule), original_inference_steps=schedule.ddim_points)


def _settings(schedule: Schedule) -> dict[str, Any]:
    return {
        "num_train_timesteps": schedule.train_steps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "steps_offset": 1,
    }


def sample_guided(
    unet: Any, scheduler: Any, noise: Any, conditions: tuple[Any, Any], steps: int, guidance: float
) -> Any:
    """Classifier-free guidance: uncond + g (cond - uncond) at each step.

    Args:
        noise: [N, C, h, w].
        conditions: rows of the captions and of the empty caption, both [N, T, D].

    Returns:
        Latents [N, C, h, w].
    """
    condition, empty = conditions
    scheduler.set_timesteps(steps)
    z = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        z = scheduler.step(_guided(unet, z, t, condition, empty, guidance), t, z).prev_sample
    return z


def _guided(unet: Any, z: Any, t: Any, condition: Any, empty: Any, guidance: float) -> Any:
    """The guided noise of one step; guidance 1 needs no evaluation of the empty caption."""
    if guidance == 1:
        return unet(z, t, condition).sample
    cond, uncond = unet(torch.cat([z, z]), t, torch.cat([condition, empty])).sample.chunk(2)
    return uncond + guidance * (cond - uncond)


def sample_few(
    unet: Any, scheduler: Any, noise: Any, condition: Any, steps: int, w: float, generator: Any
) -> Any:
    """LCM: one evaluation per step, guidance through the embedding of w, fresh noise between steps.

    Args:
        noise: [N, C, h, w]; condition: [N, T, D]; w: LCM's guidance (the pipelines' guidance scale minus 1).

    Returns:
        Latents [N, C, h, w].
    """
    scheduler.set_timesteps(steps)
    rows = guidance_embedding(torch.full((len(noise),), w), unet.config.time_cond_proj_dim).to(noise)
    z = denoised = noise
    for t in scheduler.timesteps:
        eps = unet(z, t, condition, timestep_cond=rows).sample
        z, denoised = scheduler.step(eps, t, z, generator=generator, return_dict=False)
    return denoised


@dataclass(frozen=True, slots=True)
class Contender:
    """A network and how it is sampled: `kd` at 25 steps, `lcm` at 4."""

    stage: str
    steps: int

    @property
    def name(self) -> str:
        """Such as lcm-4."""
        return f"{self.stage}-{self.steps}"


def contenders(run: Run) -> list[Contender]:
    """Every network of the run that is finished, at the step counts it is meant for."""
    sampling = run.preset.sampling
    many = [
        Contender(stage, sampling.teacher_steps)
        for stage in ("teacher", "bk-init", "kd")
        if run.finished(stage)
    ]
    extra = sorted(p.parent.parent.name for p in run.out.glob("lcm-from-*/final/stage.json"))
    few = [stage for stage in ("lcm", *extra) if run.finished(stage)]
    return many + [Contender(stage, steps) for stage in few for steps in sampling.student_steps]


@dataclass(frozen=True, slots=True)
class Parts:
    """What turns captions into conditioning and latents into pictures."""

    autoencoder: Any
    text_encoder: Any
    tokenizer: Any


def load_parts(run: Run) -> Parts:
    """The run's own parts."""
    return Parts(runs.load_vae(run), runs.load_text_encoder(run), runs.load_tokenizer(run))


class Studio:
    """A decoder, text encoder and tokenizer, loaded once, and one network at a time."""

    def __init__(self, run: Run, parts: Parts | None = None) -> None:
        self.run, self.preset = run, run.preset
        self._parts = parts or load_parts(run)

    def pictures(self, contender: Contender, captions: list[str], purpose: str, unet: Any = None) -> Any:
        """Pictures [N, 3, H, W] of these captions.

        Noise depends on seed, purpose and position alone: every contender gets
        the same."""
        unet = unet or runs.load_unet(self.run, contender.stage)
        batches = []
        with torch.no_grad():
            for index, rows in enumerate(_chunks(captions, self.preset.sampling.batch)):
                generator = Draw(self.run.seed, purpose, index).torch()
                latents = self._latents(unet, contender, rows, generator)
                batches.append(vae.decode(self._parts.autoencoder, latents, self.preset.vae.patch))
        return torch.cat(batches)

    def _latents(self, unet: Any, contender: Contender, captions: list[str], generator: Any) -> Any:
        size, preset = self.preset.unet, self.preset
        noise = torch.randn(
            (len(captions), size.latent_channels, size.sample, size.sample), generator=generator
        )
        condition = text.encode(self._parts.text_encoder, text.tokenize(self._parts.tokenizer, captions))
        if unet.config.time_cond_proj_dim is not None:  # LCM's guidance input
            scheduler = lcm_scheduler(preset.schedule)
            w = preset.sampling.guidance - 1
            return sample_few(unet, scheduler, noise, condition, contender.steps, w, generator)
        empty = text.encode(self._parts.text_encoder, text.tokenize(self._parts.tokenizer, [""])).expand_as(
            condition
        )
        scheduler = ddim_scheduler(preset.schedule)
        return sample_guided(
            unet, scheduler, noise, (condition, empty), contender.steps, preset.sampling.guidance
        )


def _chunks(rows: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def judging_captions(
    preset: Preset, run: Run, count: int, combinations: Combinations = "seen"
) -> tuple[Any, list[str]]:
    """Labels and captions that judge networks: a function of the seed, drawn apart from training's."""
    purpose = "prompts" if combinations == "seen" else f"{combinations} prompts"
    rng = Draw(run.seed, purpose, 0).numpy()
    labels = run.world().draw_labels(rng, count, combinations)
    return labels, run.world().captions(labels, rng)


SHEET_CAPTIONS = 32


def draw_sheets(session: Session) -> list[Path]:
    """One contact sheet per contender, on the same captions and noise. Returns the files written."""
    run = session.run
    studio, files = Studio(run), []
    _, captions = judging_captions(run.preset, run, SHEET_CAPTIONS)
    for contender in contenders(run):
        path = run.out / "sheets" / f"{run.preset.name}-{contender.name}.png"
        save_sheet(path, studio.pictures(contender, captions, "sheet"))
        session.say(f"{path}")
        files.append(path)
    checkpoints.write_json(run.out / "sheets" / "captions.json", captions)
    return files


def save_sheet(path: Path, pictures: Any, columns: int = 8, enlarge: int | None = None) -> None:
    """Write pictures [N, 3, H, W], -1 to 1, as one PNG, row by row, with a thin light frame around each."""
    from PIL import Image

    values = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    factor = enlarge or max(1, 96 // values.shape[1])
    values = values.repeat(factor, axis=1).repeat(factor, axis=2)
    values = np.pad(values, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
    rows = -(-len(values) // columns)
    blank = np.full((rows * columns - len(values), *values.shape[1:]), 255, np.uint8)
    grid = np.concatenate([values, blank]).reshape(rows, columns, *values.shape[1:])
    sheet = grid.transpose(0, 2, 1, 3, 4).reshape(rows * values.shape[1], columns * values.shape[2], 3)
    with checkpoints.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(path, optimize=True)
