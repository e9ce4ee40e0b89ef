"""The stages in order: each reads what earlier ones left, trains, and publishes its networks at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from npusim.errors import BadInputError, CheckFailedError
from npusim.training import checkpoints, classifier, networks, text, vae
from npusim.training import run as runs
from npusim.training.config import Training
from npusim.training.data.source import Pictures, device_of
from npusim.training.data.world import Combinations, World
from npusim.training.distillation import compress_student, train_kd, train_lcm
from npusim.training.draw import Draw
from npusim.training.run import Run
from npusim.training.session import Session, complete, fresh
from npusim.training.teacher import TeacherTraining


class ClassifierTraining:
    """Stage `classifier`: attributes from renders, a little noised so that it reads decoded ones too.

    It sees every combination, withheld ones too: a judge that does not know them cannot say whether others do.
    """

    name = "classifier"
    companion = None
    frozen: tuple[Any, ...] = ()

    def __init__(self, training: Training, module: Any, world: World) -> None:
        self.training, self.module, self._world = training, module, world
        self._source = Pictures(world, "every")

    def losses(self, module: Any, draw: Draw) -> Any:
        """Cross entropy on noised renders."""
        pictures, labels = self._source.batch(draw, self.training.batch)
        generator = draw.torch()
        strength = 0.2 * torch.rand((len(pictures), 1, 1, 1), generator=generator)
        noise = strength * torch.randn(pictures.shape, generator=generator)
        device = device_of(module)
        return classifier.losses(module, (pictures + noise).to(device), labels.to(device), self._world)

    def after_update(self, module: Any) -> None:
        """Nothing follows this network."""


class VaeTraining:
    """Stage `vae`: round trips of fresh renders."""

    name = "vae"
    companion = None
    frozen: tuple[Any, ...] = ()

    def __init__(self, training: Training, module: Any, world: World, patch: int) -> None:
        self.training, self.module, self._patch = training, module, patch
        self._source = Pictures(world)

    def losses(self, module: Any, draw: Draw) -> Any:
        """Mean squared error."""
        pictures, _ = self._source.batch(draw, self.training.batch)
        return vae.reconstruction_losses(module, pictures.to(device_of(module)), self._patch)

    def after_update(self, module: Any) -> None:
        """Nothing follows this network."""


def train_classifier(session: Session) -> bool:
    """Stage `classifier`. Returns whether it is finished."""
    run = session.run
    network = fresh(run, lambda: classifier.build_classifier(run.world()))
    stage = ClassifierTraining(run.preset.classifier, network, run.world())

    def publish(folder: Path) -> dict[str, Any]:
        checkpoints.write_tensors(
            folder / "classifier.safetensors", network.state_dict(), {"world": run.preset.world}
        )
        network.cpu().eval()
        accuracy = {name: _accuracy_on(run, network, name) for name in run.world().tested}
        for name, right in accuracy.items():
            session.say(f"classifier: {right:.2%} of the attributes of fresh renders, {name} combinations")
        return {"accuracy": accuracy}

    return complete(session, stage, publish)


def _accuracy_on(run: Run, network: Any, combinations: Combinations) -> float:
    """Share of attributes that the classifier reads from fresh renders of these combinations."""
    source = Pictures(run.world(), combinations)
    pictures, labels = source.batch(Draw(run.seed, "classifier test", 0), run.preset.sampling.renders)
    seen, _, _ = classifier.read(network, pictures, run.world())
    return float((seen == labels).float().mean())


def train_vae(session: Session) -> bool:
    """Stage `vae`, gated: the classifier must be able to read its reconstructions.

    Raises:
        CheckFailedError: the classifier reads too few attributes; the checkpoint stays.
    """
    run, size = session.run, session.run.preset.vae
    network = fresh(run, lambda: runs.build_vae(run))
    stage = VaeTraining(run.preset.autoencoder, network, run.world(), size.patch)

    def publish(folder: Path) -> dict[str, Any]:
        facts = _gate(run, network.cpu())
        session.say(
            f"vae: the classifier reads {facts['legible']:.1%} of attributes, "
            f"{facts['all']:.1%} of pictures in full"
        )
        network.save_pretrained(folder / "vae")
        return facts | {"patch": size.patch}

    return complete(session, stage, publish)


def _gate(run: Run, network: Any) -> dict[str, float]:
    """Measure the latents' scale, then let the classifier read 1024 reconstructions.

    Raises:
        CheckFailedError: too little is legible.
    """
    size = run.preset.vae
    pictures, labels = Pictures(run.world()).batch(Draw(run.seed, "vae gate", 0), 1024)
    scaling = size.scaling_factor or vae.measure_scaling(network, pictures, size.patch)
    network.register_to_config(scaling_factor=scaling)
    with torch.no_grad():
        round_trip = vae.decode(network, vae.encode(network, pictures, size.patch), size.patch)
    seen, _, _ = classifier.read(runs.load_classifier(run), round_trip, run.world())
    right = (seen == labels).float()
    legible = float(right.mean())
    if legible < size.gate:
        raise CheckFailedError(
            f"vae: the classifier reads {legible:.1%} of the attributes of its reconstructions, "
            f"{size.gate:.0%} are needed; "
            "train it for more steps or give it more latent channels"
        )
    return {"legible": legible, "all": float(right.all(dim=1).float().mean())}


def train_teacher(session: Session) -> bool:
    """Stage `teacher`: the large U-Net and its text encoder."""
    run, preset = session.run, session.run.preset
    autoencoder, tokenizer = runs.load_vae(run), runs.load_tokenizer(run)

    def build() -> Any:
        unet = networks.build_unet(networks.unet_config(preset.unet))
        return networks.Conditioned(unet, text.build_text_encoder(preset.text, tokenizer))

    module, scheduler = fresh(run, build), networks.noise_schedule(preset.schedule)
    source, empty = runs.load_source(run, autoencoder, tokenizer), text.tokenize(tokenizer, [""])
    stage = TeacherTraining(preset.teacher, module, scheduler, source, empty)

    def publish(folder: Path) -> dict[str, Any]:
        module.cpu()
        module.unet.save_pretrained(folder / "unet")
        module.text_encoder.save_pretrained(folder / "text_encoder")
        tokenizer.save_pretrained(folder / "tokenizer")
        scheduler.save_pretrained(folder / "scheduler")
        return {"identity": runs.identity(run, autoencoder, module.text_encoder)}

    return complete(session, stage, publish)


ORDER: dict[str, Callable[[Session], bool]] = {
    "classifier": train_classifier,
    "vae": train_vae,
    "teacher": train_teacher,
    "bk-init": compress_student,
    "kd": train_kd,
    "lcm": train_lcm,
}
"""Every stage in the order in which each can read what it needs."""

GIVEN = ("classifier", "vae", "teacher")
"""Stages that a preset without a procedural world does not train."""


def run_stage(session: Session, name: str) -> bool:
    """Run one stage after checking that those before it are finished.

    Raises:
        BadInputError: an earlier stage is not finished, or the preset has no world to train this one on.
    """
    run = session.run
    given = GIVEN if run.preset.world == "folder" else ()
    if name in given or (given and run.teacher is None):
        raise BadInputError(
            f"--preset {run.preset.name}: {', '.join(GIVEN)} are not trained but given; run bk-init, then kd and lcm, with "
            "--teacher PIPELINE_FOLDER (and --data IMAGEFOLDER)"
        )
    for earlier in list(ORDER)[: list(ORDER).index(name)]:
        if earlier not in given and not run.finished(earlier):
            raise BadInputError(
                f"{run.final(earlier)}: stage {earlier} is not finished, {name} needs it; "
                f"run: npusim train {earlier} --preset {run.preset.name} --out {run.out}"
            )
    return ORDER[name](session)


def run_all(session: Session) -> bool:
    """Every stage in order, until the budget is spent. Returns whether all are finished."""
    return all(run_stage(session, name) for name in ORDER)
