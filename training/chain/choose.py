"""Options of the command line to implementations. What needs torch is imported only when it is chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from npusim.errors import BadInputError, MissingExtraError
from npusim.training.chain.crop import GradientEnergy, Scorer
from npusim.training.chain.dedup import Embedder, ThumbnailEmbedder
from npusim.training.chain.filter import Agreement
from npusim.training.chain.quota import read_quota
from npusim.training.chain.recaption import Captioner, LabelCaptioner
from npusim.training.chain.step import Step
from npusim.training.chain.synth import (
    Asked,
    Generator,
    PlainPrompter,
    Prompter,
    QuotaAsked,
    WorldAsked,
    WorldRenderer,
)
from npusim.training.data.world import world

T = TypeVar("T")


def require(*packages: str) -> None:
    """Raise MissingExtraError for the first of these that is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, "training")


def _networks() -> None:
    """Before a local network is read: the packages it needs; nothing is ever fetched."""
    require("torch", "diffusers", "transformers", "safetensors")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (transformers_logging, diffusers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def _one_of(option: str, value: str, allowed: Mapping[str, bool], folder: Path | None, what: str) -> Path:
    """The checkpoint that this value needs (the current folder if it needs none).

    allowed: value -> whether it needs one.

    Raises:
        BadInputError: no such value; a checkpoint is missing or too much.
    """
    if value not in allowed:
        raise BadInputError(f"{option} {value}: choose one of {', '.join(allowed)}")
    if not allowed[value]:
        if folder is not None:
            needing = " or ".join(name for name, needed in allowed.items() if needed)
            raise BadInputError(
                f"{what} {folder}: {option} {value} reads no checkpoint; did you mean {option} {needing}?"
            )
        return Path()
    if folder is None:
        raise BadInputError(f"{option} {value}: needs a local folder; give it with {what} DIR")
    _networks()
    return folder


CHECKPOINT = "--checkpoint"


def embedder(kind: str, folder: Path | None) -> Embedder | None:
    """What confirms near copies: none, thumbnail or clip."""
    place = _one_of("--embed", kind, {"thumbnail": False, "none": False, "clip": True}, folder, CHECKPOINT)
    if kind == "clip":
        from npusim.training.chain.clip_reader import ClipReader

        return ClipReader.of(place)
    return ThumbnailEmbedder() if kind == "thumbnail" else None


def agreement(folder: Path | None) -> Agreement | None:
    """What compares captions with pictures, if a CLIP folder is given."""
    if folder is None:
        return None
    _networks()
    from npusim.training.chain.clip_reader import ClipReader

    return ClipReader.of(folder)


def scorer(kind: str, folder: Path | None) -> Scorer:
    """What chooses among crops: gradient, clip or classifier."""
    allowed = {"gradient": False, "clip": True, "classifier": True}
    place = _one_of("--by", kind, allowed, folder, CHECKPOINT)
    if kind == "gradient":
        return GradientEnergy()
    if kind == "clip":
        from npusim.training.chain.clip_reader import ClipReader

        return ClipReader.of(place)
    from npusim.training.chain.readers import ClassifierReader

    return ClassifierReader.of(place)


def captioner(kind: str, folder: Path | None, world_name: str | None, instruction: str | None) -> Captioner:
    """What writes captions: labels, classifier or model."""
    allowed = {"labels": False, "classifier": True, "model": True}
    place = _one_of("--by", kind, allowed, folder, CHECKPOINT)
    if kind == "labels":
        if world_name is None:
            raise BadInputError(
                "--by labels: needs --world, the procedural world that the pictures were drawn from"
            )
        return LabelCaptioner(world(world_name))
    if kind == "model":
        from npusim.training.chain.writers import VisionLanguageCaptioner

        return VisionLanguageCaptioner.of(place, instruction)
    from npusim.training.chain.readers import ClassifierReader

    return ClassifierReader.of(place)


def asked(world_name: str | None, quota: Path | None, seed: int, count: int) -> Asked:
    """What prompts are to say: a world's attributes or a quota file's.

    Raises:
        BadInputError: neither or both are given.
    """
    if (world_name is None) == (quota is None):
        raise BadInputError("synth: give either --world or --quota FILE.toml: what the pictures are to show")
    if quota is not None:
        return QuotaAsked.of(read_quota(quota), seed, count)
    return WorldAsked.of(world(str(world_name)), seed, count)


def prompter(kind: str, folder: Path | None, seed: int) -> Prompter:
    """What writes prompts: plain or model."""
    place = _one_of("--prompts", kind, {"plain": False, "model": True}, folder, "--prompt-model")
    if kind == "plain":
        return PlainPrompter()
    from npusim.training.chain.writers import LanguageModelPrompter

    return LanguageModelPrompter.of(place, seed)


def generator(
    kind: str, folder: Path | None, what: Asked, *, stage: str, steps: int | None, size: int | None, seed: int
) -> Generator:
    """What draws: render, run or pipeline."""
    allowed = {"render": False, "run": True, "pipeline": True}
    place = _one_of("--images", kind, allowed, folder, CHECKPOINT)
    if kind == "render":
        if not isinstance(what, WorldAsked):
            raise BadInputError(
                "--images render: draws a procedural world; give --world, or --images run or pipeline"
            )
        return WorldRenderer(what.world, seed)
    if kind == "run":
        from npusim.training.chain.generators import RunGenerator

        return RunGenerator.of(place, stage, steps or 25)
    from npusim.training.chain.generators import PipelineGenerator

    return PipelineGenerator.of(place, seed, steps, size)


def judge(kind: str, folder: Path | None, *, least: float, sure: float, correct: bool) -> Step:
    """What curates without a person: classifier or clip."""
    place = _one_of("--by", kind, {"page": False, "classifier": True, "clip": True}, folder, CHECKPOINT)
    if kind == "clip":
        from npusim.training.chain.clip_reader import ClipJudge, ClipReader

        return ClipJudge(ClipReader.of(place), least)
    from npusim.training.chain.readers import AttributeJudge, ClassifierReader

    return AttributeJudge(ClassifierReader.of(place), sure, correct)
