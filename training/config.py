"""Presets: every hyperparameter of the pipeline, frozen, with where each comes from.

Three presets share one set of types. `sd-v1` is the paper's pipeline at full size; `toy` and `toy-small` are
its miniatures on procedural worlds. Nothing here imports torch, so the command line can print a preset at
once.

Sources named below:
  BK-SDM: Kim et al. 2023 and the released recipe (src/kd_train_text_to_image.py, MODEL_CARD.md).
  LCM: Luo et al. 2023 and diffusers' examples/consistency_distillation/train_lcm_distill_sd_wds.py.
  SD: Rombach et al. 2022 and the released v1 configurations.
  ours: our assumption, chosen by measurement on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, cast

from npusim.errors import BadInputError

Variant = Literal["base", "small", "tiny"]
Precision = Literal["no", "bf16", "fp16"]
STAGES = ("classifier", "vae", "teacher", "bk-init", "kd", "lcm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The noise schedule and the solver's grid.

    Source: SD v1 scheduler configuration; LCM section 4.3 for the grid.
    """

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    ddim_points: int = 50  # LCM: 50 points, hence a skipping step k = 1000 / 50 = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """AdamW and how its learning rate moves. `cosine` falls to zero at the stage's last step."""

    lr: float
    shape: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)  # BK-SDM
    weight_decay: float = 1e-2  # BK-SDM
    clip: float = 1.0  # BK-SDM: gradient norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How long and how a stage runs."""

    steps: int
    batch: int
    optimiser: Optimiser
    accumulation: int = 1
    precision: Precision = "no"
    ema: float | None = None  # decay; None keeps no average
    checkpoint_every: int = 100
    log_every: int = 1
    gradient_checkpointing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetSize:
    """A U-Net of SD's architecture: CrossAttnDown x (n-1), Down; Up, CrossAttnUp x (n-1).

    Group normalisation forgets the mean of each group. SD's groups hold 10 channels x 4096 positions; 2 channels x 64 positions
    lose 1/128 of the noise's variance, more than a caption explains at t > 800. So the toys have few groups.
    """

    channels: tuple[int, ...]
    layers_per_block: int
    cross_dim: int
    heads: int
    sample: int
    norm_groups: int = 32
    latent_channels: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSize:
    """A CLIP-architecture text encoder and the length of its token rows."""

    hidden: int
    layers: int
    heads: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeSize:
    """An AutoencoderKL over pictures that are first pixel-unshuffled by `patch` (1 leaves it SD's own)."""

    patch: int
    channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_groups: int = 32
    scaling_factor: float | None = (
        None  # None: measured, so that latents have standard deviation 1 (SD's rule)
    )
    gate: float = 0.9  # ours: mean attribute accuracy that the classifier must read from reconstructions


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherStage:
    """Train the large U-Net and its text encoder from nothing."""

    training: Training
    caption_dropout: float = 0.1  # SD: 10 %, without it classifier-free guidance does not exist


@dataclass(frozen=True, slots=True, kw_only=True)
class KdStage:
    """Stage 1 of EdgeFusion: BK-SDM's distillation. Weights of the three losses are BK-SDM's, 1 : 1 : 1."""

    training: Training
    variant: Variant = "tiny"  # EdgeFusion's student
    task_weight: float = 1.0
    output_weight: float = 1.0
    feature_weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LcmStage:
    """Stage 2 of EdgeFusion: latent consistency distillation with the large model's guided step."""

    training: Training
    w_range: tuple[float, float]
    target_ema: float = 0.95  # LCM's example
    huber_c: float = 1e-3  # LCM's example
    sigma_data: float = 0.5  # LCM: boundary condition
    timestep_scaling: float = 10.0  # LCM: boundary condition
    cond_dim: int = 256  # LCM: dimension of the guidance embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How networks are sampled and judged."""

    teacher_steps: int = 25  # BK-SDM's evaluation
    guidance: float = 3.0  # teacher, in the pipelines' convention (w + 1)
    student_steps: tuple[int, ...] = (4, 2, 1)  # the paper
    prompts: int = 512
    renders: int = 2048  # ours: what the classifier is tested on, and whose features FID compares with
    batch: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Everything that one run of the pipeline needs to know, apart from its seed and its folder."""

    name: str
    world: str  # "toy-small", "toy", or "folder" (an imagefolder with metadata.jsonl)
    resolution: int
    schedule: Schedule
    unet: UNetSize
    text: TextSize
    vae: VaeSize
    pool: int  # pictures rendered and encoded once; batches are drawn from them
    classifier: Training
    autoencoder: Training
    teacher: TeacherStage
    kd: KdStage
    lcm: LcmStage
    sampling: Sampling


_VAE_OPTIMISER = Optimiser(lr=1.5e-3, warmup_steps=20, betas=(0.9, 0.99), weight_decay=0.0)
"""Ours. Both toys have more latent channels than SD: with 4, shapes stayed blurred (docs/training.md)."""


def _toy_small() -> Preset:
    """One object, 32 px. Sizes from the project's prototype (docs/training.md); batch 64 throughout."""
    return Preset(
        name="toy-small",
        world="toy-small",
        resolution=32,
        schedule=Schedule(),
        unet=UNetSize(
            channels=(32, 48, 64, 64),
            layers_per_block=2,
            cross_dim=64,
            heads=4,
            sample=8,
            norm_groups=4,
            latent_channels=8,
        ),
        text=TextSize(hidden=64, layers=1, heads=4, tokens=8),
        vae=VaeSize(patch=4, channels=(96,), layers_per_block=1, latent_channels=8, norm_groups=16),
        pool=16384,
        classifier=Training(steps=500, batch=128, optimiser=Optimiser(lr=2e-3)),
        autoencoder=Training(steps=900, batch=64, optimiser=_VAE_OPTIMISER),
        teacher=TeacherStage(
            training=Training(
                steps=2000, batch=64, optimiser=Optimiser(lr=1.5e-3, warmup_steps=50), ema=0.995
            ),
        ),
        kd=KdStage(training=Training(steps=600, batch=64, optimiser=Optimiser(lr=5e-4), ema=0.99)),
        lcm=LcmStage(
            training=Training(steps=900, batch=64, optimiser=Optimiser(lr=3e-4, weight_decay=0.0)),
            w_range=(1.0, 5.0),
        ),
        sampling=Sampling(),
    )


def _toy() -> Preset:
    """Two objects and a relation, 64 px, textures, held-out combinations. All sizes ours."""
    return Preset(
        name="toy",
        world="toy",
        resolution=64,
        schedule=Schedule(),
        unet=UNetSize(
            channels=(48, 80, 96, 96),
            layers_per_block=2,
            cross_dim=96,
            heads=4,
            sample=8,
            norm_groups=8,
            latent_channels=16,
        ),
        text=TextSize(hidden=96, layers=2, heads=4, tokens=20),
        vae=VaeSize(patch=8, channels=(128,), layers_per_block=2, latent_channels=16, norm_groups=4),
        pool=32768,
        classifier=Training(steps=1200, batch=64, optimiser=Optimiser(lr=2e-3, warmup_steps=50)),
        autoencoder=Training(
            steps=4000, batch=16, precision="bf16", optimiser=_VAE_OPTIMISER
        ),  # many small steps
        teacher=TeacherStage(
            training=Training(
                steps=3400, batch=64, optimiser=Optimiser(lr=1.2e-3, warmup_steps=100), ema=0.998
            ),
        ),
        kd=KdStage(
            training=Training(steps=1500, batch=64, optimiser=Optimiser(lr=1e-3, warmup_steps=50), ema=0.99)
        ),
        lcm=LcmStage(
            training=Training(steps=900, batch=64, optimiser=Optimiser(lr=3e-4, weight_decay=0.0)),
            w_range=(1.0, 5.0),
        ),
        sampling=Sampling(),
    )


def _sd_v1() -> Preset:
    """The full-size pipeline.

    KD is BK-SDM's released recipe, LCM is diffusers' example; teacher and VAE are given.
    """
    kd = Training(
        steps=50_000,
        batch=64,
        accumulation=4,
        precision="fp16",
        ema=0.9999,
        gradient_checkpointing=True,
        checkpoint_every=500,
        log_every=10,
        optimiser=Optimiser(lr=5e-5, shape="constant"),
    )
    lcm = Training(
        steps=1000,
        batch=12,
        precision="fp16",
        gradient_checkpointing=True,
        optimiser=Optimiser(lr=1e-6, shape="constant", warmup_steps=500, weight_decay=0.0),
    )
    return Preset(
        name="sd-v1",
        world="folder",
        resolution=512,
        schedule=Schedule(),
        unet=UNetSize(channels=(320, 640, 1280, 1280), layers_per_block=2, cross_dim=768, heads=8, sample=64),
        text=TextSize(hidden=768, layers=12, heads=12, tokens=77),
        vae=VaeSize(
            patch=1,
            channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            scaling_factor=0.18215,
        ),
        pool=0,
        classifier=Training(steps=0, batch=1, optimiser=Optimiser(lr=0.0)),
        autoencoder=Training(steps=0, batch=1, optimiser=Optimiser(lr=0.0)),
        teacher=TeacherStage(training=Training(steps=0, batch=1, optimiser=Optimiser(lr=0.0))),
        kd=KdStage(training=kd),
        lcm=LcmStage(training=lcm, w_range=(5.0, 15.0)),
        sampling=Sampling(guidance=7.5, batch=4),
    )


_PRESETS = {"sd-v1": _sd_v1, "toy": _toy, "toy-small": _toy_small}
PRESET_NAMES = tuple(_PRESETS)


def preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        BadInputError: no such preset.
    """
    if name not in _PRESETS:
        raise BadInputError(f"--preset {name}: no such preset; choose one of {', '.join(_PRESETS)}")
    return _PRESETS[name]()


def shortened(full: Preset, steps: int, batch: int = 8) -> Preset:
    """The same preset with at most `steps` steps per stage: every stage runs, nothing is learned."""

    def cut(training: Training) -> Training:
        return dataclasses.replace(
            training,
            steps=min(steps, training.steps),
            batch=min(batch, training.batch),
            accumulation=min(2, training.accumulation),
            checkpoint_every=max(1, steps // 2),
        )

    return dataclasses.replace(
        full,
        pool=min(full.pool, 64),
        vae=dataclasses.replace(full.vae, gate=0.0),
        classifier=cut(full.classifier),
        autoencoder=cut(full.autoencoder),
        teacher=dataclasses.replace(full.teacher, training=cut(full.teacher.training)),
        kd=dataclasses.replace(full.kd, training=cut(full.kd.training)),
        lcm=dataclasses.replace(full.lcm, training=cut(full.lcm.training)),
        sampling=dataclasses.replace(
            full.sampling, prompts=min(16, full.sampling.prompts), renders=64, teacher_steps=3
        ),
    )


def in_precision(full: Preset, precision: str) -> Preset:
    """The same preset with the distillation stages in this precision.

    Raises:
        BadInputError: no such precision.
    """
    if precision not in ("no", "bf16", "fp16"):
        raise BadInputError(f"--precision {precision}: no such precision; choose no, bf16 or fp16")
    chosen = cast(Precision, precision)
    kd, lcm = (dataclasses.replace(stage.training, precision=chosen) for stage in (full.kd, full.lcm))
    return dataclasses.replace(
        full, kd=dataclasses.replace(full.kd, training=kd), lcm=dataclasses.replace(full.lcm, training=lcm)
    )


def as_json(value: Any) -> Any:
    """A frozen configuration as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def digest(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of canonical JSON: of a configuration or of plain values."""
    plain = as_json(value) if dataclasses.is_dataclass(value) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
