"""Seconds per step before any is spent: a rehearsal of every stage at full batch; a full-size smoke."""

from __future__ import annotations

import dataclasses
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from npusim.errors import BadInputError
from npusim.training import checkpoints, compress, networks, text
from npusim.training.config import STAGES, Preset, Training, shortened
from npusim.training.draw import Draw
from npusim.training.kd import Distillation
from npusim.training.lcm import ConsistencyDistillation, add_guidance_input
from npusim.training.loop import Stage, rehearse
from npusim.training.run import Run
from npusim.training.session import Session
from npusim.training.stages import run_all

BENCH_STEPS = 12


def planned_steps(preset: Preset) -> dict[str, int]:
    """How many steps each stage that trains will take."""
    trained = {
        "classifier": preset.classifier,
        "vae": preset.autoencoder,
        "teacher": preset.teacher.training,
        "kd": preset.kd.training,
        "lcm": preset.lcm.training,
    }
    return {name: trained[name].steps for name in STAGES if name in trained}


def bench(session: Session, steps: int = BENCH_STEPS) -> dict[str, dict[str, float]]:
    """Rehearse each stage of a procedural preset in a temporary folder at its own batch.

    Returns:
        For each stage: seconds_per_step (first steps left out), steps planned, minutes that this makes.

    Raises:
        BadInputError: the preset has no procedural world.
    """
    preset = session.run.preset
    if preset.world == "folder":
        raise BadInputError(
            f"--preset {preset.name}: has no procedural world to rehearse on; use npusim train smoke"
        )
    short = dataclasses.replace(shortened(preset, steps, batch=4096), pool=256)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        rehearsal = Session(run=Run(preset=short, out=Path(folder), seed=session.run.seed))
        run_all(rehearsal)
        for name, planned in planned_steps(preset).items():
            facts = checkpoints.read_json(Path(folder) / name / "final" / "stage.json")
            seconds = float(facts["seconds_per_step"])
            rows[name] = {"seconds_per_step": seconds, "steps": planned, "minutes": seconds * planned / 60}
            session.say(
                f"{name:10} {seconds:7.3f} s per step x {planned:6} = {seconds * planned / 60:6.1f} min"
            )
    session.say(
        f"all {sum(row['minutes'] for row in rows.values()):.1f} min on {torch.get_num_threads()} threads"
    )
    return rows


class RandomLatents:
    """Random latents and tokens of a preset's shapes: for timing, never for training."""

    def __init__(self, preset: Preset, vocabulary: int) -> None:
        self._preset, self._vocabulary = preset, vocabulary

    def batch(self, draw: Draw, size: int) -> tuple[Any, Any]:
        """Standard normal latents, uniform tokens."""
        shape, generator = self._preset.unet, draw.torch()
        latents = torch.randn((size, shape.latent_channels, shape.sample, shape.sample), generator=generator)
        tokens = torch.randint(0, self._vocabulary, (size, self._preset.text.tokens), generator=generator)
        return latents, tokens


class _Vocabulary:
    """Stands in for CLIP's tokenizer where only its size matters."""

    bos_token_id, eos_token_id, pad_token_id = 49406, 49407, 49407

    def __len__(self) -> int:
        return 49408


def _smallest(training: Training) -> Training:
    return dataclasses.replace(training, batch=1, accumulation=1, precision="no", ema=None)


def smoke(preset: Preset, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """KD and LCM steps of the full-size architectures with random weights at batch 1; nothing is learned.

    Returns:
        Parameters, seconds per step and peak resident memory in bytes.
    """
    teacher = networks.build_unet(networks.unet_config(preset.unet)).requires_grad_(False)
    student = compress.compress(teacher, preset.kd.variant)
    student.enable_gradient_checkpointing()
    text_encoder = text.build_text_encoder(preset.text, _Vocabulary()).requires_grad_(False)
    scheduler, source = networks.noise_schedule(preset.schedule), RandomLatents(preset, len(_Vocabulary()))
    counts = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in (("teacher", teacher), ("student", student))
    }
    say(f"random weights: {counts}")
    settings = dataclasses.replace(preset.kd, training=_smallest(preset.kd.training))
    kd = Distillation(settings, student, teacher, text_encoder, scheduler, source)
    report: dict[str, Any] = {"parameters": counts, "kd": _timed(kd, steps, say)}
    pupil = add_guidance_input(student, preset.lcm.cond_dim)
    pupil.enable_gradient_checkpointing()
    del kd, student
    stage = dataclasses.replace(preset.lcm, training=_smallest(preset.lcm.training))
    empty = torch.zeros((1, preset.text.tokens), dtype=torch.long)
    trio = (pupil, teacher, text_encoder)
    lcm = ConsistencyDistillation(stage, preset.schedule, trio, scheduler, source, empty)
    report["lcm"] = _timed(lcm, steps, say)
    return report


def _timed(stage: Stage, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of each step and the process's peak memory so far."""
    times = rehearse(stage, steps)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    say(f"{stage.name}: {[round(t, 1) for t in times]} s per step, peak {peak_bytes / 2**30:.1f} GiB")
    return {"seconds": times, "peak_bytes": peak_bytes}
