"""A run's folder: where stages leave networks, how they are read back, and which may be paired.

OUT/run.json                          preset, seed, threads
OUT/<stage>/checkpoint.safetensors    while the stage runs
OUT/<stage>/losses.csv, tensorboard/  its record
OUT/<stage>/final/                    its networks (diffusers and transformers folders) and stage.json
OUT/evaluation/, OUT/sheets/          what was measured and drawn
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from npusim.errors import BadInputError
from npusim.training import checkpoints, classifier, networks, text, vae
from npusim.training.config import Preset, as_json, digest, in_precision
from npusim.training.data.source import Folder, Pool, Source, encode_pool, stored_pool
from npusim.training.data.world import World, world


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Settings of one run and its folder.

    `teacher`, `data`: local folders for presets that do not make their own.
    """

    preset: Preset
    out: Path
    seed: int = 0
    teacher: Path | None = None
    data: Path | None = None

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.out / name

    def final(self, name: str) -> Path:
        """Where a finished stage's networks are; `teacher` may be a folder that the user gave."""
        if name in ("teacher", "vae") and self.teacher is not None:
            return self.teacher
        return self.stage(name) / "final"

    def finished(self, name: str) -> bool:
        """Whether the stage's networks are in place."""
        given = name in ("teacher", "vae") and self.teacher is not None
        return given or (self.final(name) / "stage.json").is_file()

    def world(self) -> World:
        """The procedural world of this preset."""
        return world(self.preset.world)


def open_run(run: Run) -> None:
    """Record the run's settings in its folder, or check that they are the recorded ones.

    Raises:
        BadInputError: the folder holds a run with another preset, seed or number of threads.
    """
    path = run.out / "run.json"
    wanted = {
        "preset": run.preset.name,
        "settings": digest(_lasting(run.preset)),
        "seed": run.seed,
        "threads": torch.get_num_threads(),
    }
    if not path.is_file():
        checkpoints.write_json(path, wanted | {"preset_in_full": as_json(run.preset)})
        return
    found = {key: checkpoints.read_json(path).get(key) for key in wanted}
    if found != wanted:
        raise BadInputError(
            f"{path}: holds a run with {found}, asked for {wanted}; use the same settings or another --out"
        )


def _lasting(preset: Preset) -> dict[str, Any]:
    """What a run must keep from call to call: how it is judged, and in which precision it trains, may change."""
    plain: dict[str, Any] = as_json(in_precision(preset, "no"))
    del plain["sampling"]
    return plain


def load_classifier(run: Run) -> Any:
    """The trained attribute classifier, in evaluation mode."""
    path = run.final("classifier") / "classifier.safetensors"
    network = classifier.build_classifier(run.world())
    tensors, _ = checkpoints.read_tensors(path)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise BadInputError(
            f"{path}: does not fit this preset's classifier ({error}); train it again"
        ) from error
    return network.eval()


def load_vae(run: Run) -> Any:
    """The trained autoencoder."""
    from diffusers import AutoencoderKL

    return checkpoints.load_network(AutoencoderKL, run.final("vae") / "vae").eval().requires_grad_(False)


def load_tokenizer(run: Run) -> Any:
    """The world's tokenizer, or the given teacher's."""
    if run.teacher is None:
        return text.build_tokenizer(run.world().words(), run.preset.text.tokens)
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(run.teacher / "tokenizer", local_files_only=True)
    except (OSError, ValueError) as error:
        raise BadInputError(f"{run.teacher / 'tokenizer'}: not a CLIP tokenizer ({error})") from error


def load_text_encoder(run: Run) -> Any:
    """The teacher's text encoder."""
    from transformers import CLIPTextModel

    folder = run.final("teacher") / "text_encoder"
    return checkpoints.load_network(CLIPTextModel, folder).eval().requires_grad_(False)


def load_unet(run: Run, stage: str) -> Any:
    """The U-Net that a stage left: teacher, bk-init, kd or lcm."""
    from diffusers import UNet2DConditionModel

    return (
        checkpoints.load_network(UNet2DConditionModel, run.final(stage) / "unet").eval().requires_grad_(False)
    )


def load_source(run: Run, autoencoder: Any, tokenizer: Any) -> Source:
    """Batches of latents: the world's pool, or the user's pictures."""
    preset = run.preset
    if preset.world == "folder":
        if run.data is None:
            raise BadInputError(
                "--data: this preset trains on your pictures; give an imagefolder with metadata.jsonl"
            )
        from accelerate import PartialState

        return Folder(run.data, autoencoder.to(PartialState().device), tokenizer, preset.resolution)

    def build() -> Pool:
        return encode_pool(run.world(), autoencoder, preset.vae.patch, tokenizer, preset.pool, run.seed)

    key = f"{networks.weights_digest(autoencoder)} {preset.pool} {run.seed} {digest(preset.text)}"
    return stored_pool(run.stage("vae") / "pool.safetensors", key, build)


def identity(run: Run, autoencoder: Any, text_encoder: Any) -> dict[str, str]:
    """What two U-Nets must share to be teacher and student: latents, conditioning and noise schedule."""
    return {
        "vae": networks.weights_digest(autoencoder),
        "text_encoder": networks.weights_digest(text_encoder),
        "noise schedule": networks.alphas_digest(networks.noise_schedule(run.preset.schedule)),
    }


def check_pair(teacher: Path, student: Path, wanted: dict[str, str]) -> None:
    """Refuse a teacher or student that was made with another autoencoder, text encoder or noise schedule.

    Args:
        teacher, student: finished stage folders; one without a stage.json (a downloaded network) is checked
            by its scheduler. wanted: this run's `identity`.

    Raises:
        BadInputError: names the folder and what differs.
    """
    for folder in (teacher, student):
        found = _recorded(folder)
        differing = [key for key, value in wanted.items() if key in found and found[key] != value]
        if differing:
            what = " and ".join(differing)
            raise BadInputError(
                f"{folder}: was made with another {what} than this run's, so {teacher} and {student} "
                "cannot be teacher and student; use networks of one run, or train this one again"
            )


def _recorded(folder: Path) -> dict[str, str]:
    """What a network's folder says about its making."""
    if (folder / "stage.json").is_file():
        return dict(checkpoints.read_json(folder / "stage.json").get("identity", {}))
    settings = folder / "scheduler" / "scheduler_config.json"
    if not settings.is_file():
        return {}
    from diffusers import DDPMScheduler

    return {
        "noise schedule": networks.alphas_digest(DDPMScheduler.from_config(checkpoints.read_json(settings)))
    }


def build_vae(run: Run) -> Any:
    """A fresh autoencoder of the preset's size."""
    return vae.build_vae(run.preset.vae, run.preset.resolution)
