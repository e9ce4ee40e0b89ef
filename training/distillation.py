"""Block removal and the two distillation stages: which networks are paired, and where the student is left.

A run's own stages pair the large teacher with its student on the run's pool of pictures. Experiments (`claims.py`, `grid/`) pair
others; they differ from the run's in nothing else, and draw the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npusim.training import checkpoints, compress, networks, text
from npusim.training import run as runs
from npusim.training.config import KdStage, LcmStage, Training
from npusim.training.data.source import Source
from npusim.training.kd import Distillation
from npusim.training.lcm import ConsistencyDistillation, add_guidance_input
from npusim.training.run import Run
from npusim.training.session import Session, complete


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Stages (folders of the run) of teacher and student, what is trained on, and where the result goes.

    source: None for the run's own pool. data: its name in stage.json.
    """

    teacher: str
    student: str
    place: str
    source: Source | None = None
    data: str = "pool"


OWN_KD = Pairing(teacher="teacher", student="bk-init", place="kd")
OWN_LCM = Pairing(teacher="teacher", student="kd", place="lcm")
"""EdgeFusion's own: the large model teaches both stages."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the U-Nets of a run share."""

    autoencoder: Any
    tokenizer: Any
    text_encoder: Any
    identity: dict[str, str]


def surroundings(run: Run) -> Surroundings:
    """Read the run's autoencoder and text encoder."""
    autoencoder, text_encoder = runs.load_vae(run), runs.load_text_encoder(run)
    made = runs.identity(run, autoencoder, text_encoder)
    return Surroundings(autoencoder, runs.load_tokenizer(run), text_encoder, made)


def compress_student(session: Session, *, teacher: str = "teacher", place: str = "bk-init") -> bool:
    """Stage `bk-init`: the student with copied weights, nothing trained."""
    run = session.run
    if run.finished(place) and session.resume:
        session.say(f"{place}: already finished")
        return True
    shared = surroundings(run)
    runs.check_pair(run.final(teacher), run.final(teacher), shared.identity)
    large = runs.load_unet(run, teacher)
    student = compress.compress(large, run.preset.kd.variant, str(run.final(teacher) / "unet"))

    def fill(folder: Path) -> None:
        student.save_pretrained(folder / "unet")
        checkpoints.write_json(
            folder / "stage.json", {"identity": shared.identity, "variant": run.preset.kd.variant}
        )

    checkpoints.publish_folder(run.stage(place) / "final", fill)
    count = sum(p.numel() for p in student.parameters())
    session.say(
        f"{place}: {run.preset.kd.variant} student, {count:,} parameters, every one copied from the teacher"
    )
    return True


def train_kd(session: Session, pairing: Pairing = OWN_KD, settings: KdStage | None = None) -> bool:
    """Stage `kd`: stage 1 of EdgeFusion. `settings`: None for the preset's. Returns whether it is finished."""
    run, settings = session.run, settings or session.run.preset.kd
    shared = surroundings(run)
    runs.check_pair(run.final(pairing.teacher), run.final(pairing.student), shared.identity)
    student = runs.load_unet(run, pairing.student).requires_grad_(True)
    _spare_memory(student, settings.training)
    source = pairing.source or runs.load_source(run, shared.autoencoder, shared.tokenizer)
    scheduler = networks.noise_schedule(run.preset.schedule)
    teacher = runs.load_unet(run, pairing.teacher)
    stage = Distillation(settings, student, teacher, shared.text_encoder, scheduler, source)

    def publish(folder: Path) -> dict[str, Any]:
        student.cpu().save_pretrained(folder / "unet")
        return _facts(shared, pairing)

    return complete(session, stage, publish, pairing.place)


def train_lcm(session: Session, pairing: Pairing = OWN_LCM, settings: LcmStage | None = None) -> bool:
    """Stage `lcm`: stage 2 of EdgeFusion. `settings`: None for the preset's. Returns whether it is finished."""
    run, preset, settings = session.run, session.run.preset, settings or session.run.preset.lcm
    shared = surroundings(run)
    runs.check_pair(run.final(pairing.teacher), run.final(pairing.student), shared.identity)
    pupil = add_guidance_input(runs.load_unet(run, pairing.student), settings.cond_dim).requires_grad_(True)
    _spare_memory(pupil, settings.training)
    source = pairing.source or runs.load_source(run, shared.autoencoder, shared.tokenizer)
    trio = (pupil, runs.load_unet(run, pairing.teacher), shared.text_encoder)
    scheduler, empty = networks.noise_schedule(preset.schedule), text.tokenize(shared.tokenizer, [""])
    stage = ConsistencyDistillation(settings, preset.schedule, trio, scheduler, source, empty)

    def publish(folder: Path) -> dict[str, Any]:
        stage.companion.cpu().save_pretrained(folder / "unet")  # the moving average is what ships
        return _facts(shared, pairing)

    return complete(session, stage, publish, pairing.place)


def _facts(shared: Surroundings, pairing: Pairing) -> dict[str, Any]:
    named = {"teacher": pairing.teacher, "student": pairing.student, "data": pairing.data}
    return {"identity": shared.identity, **named}


def _spare_memory(network: Any, training: Training) -> None:
    if training.gradient_checkpointing:
        network.enable_gradient_checkpointing()
