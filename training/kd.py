"""Stage 1: knowledge distillation of the compressed U-Net.

Source: Kim et al. 2023 (BK-SDM), equations 1 to 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from npusim.training import text
from npusim.training.compress import feature_pairs
from npusim.training.config import KdStage
from npusim.training.data.source import Source, batch_on
from npusim.training.draw import Draw
from npusim.training.teacher import noised


class Features:
    """Keeps the outputs of named modules of a network's last forward pass."""

    def __init__(self, network: Any, names: tuple[str, ...]) -> None:
        self.names = names
        self.seen: dict[str, Any] = {}
        for name in names:
            network.get_submodule(name).register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            self.seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def take(self) -> list[Any]:
        """The outputs in the order of the names; forgotten afterwards, so that no graph lives on."""
        taken = [self.seen[name] for name in self.names]
        self.seen.clear()
        return taken


def kd_losses(
    noise: Any, student: Any, teacher: Any, student_features: list[Any], teacher_features: list[Any]
) -> dict[str, Any]:
    """The three parts.

    L_task = |eps - s|^2, L_output = |t - s|^2, L_feature = sum over layers of mean |f_t - f_s|^2; in float32.
    """
    pairs = zip(student_features, teacher_features, strict=True)
    return {
        "task": functional.mse_loss(student.float(), noise.float()),
        "output": functional.mse_loss(student.float(), teacher.float()),
        "feature": torch.stack([functional.mse_loss(s.float(), t.float()) for s, t in pairs]).sum(),
    }


class Distillation:
    """Stage `kd` (see `loop.Stage`): the student learns the task, the teacher's output and its features."""

    name = "kd"
    companion = None

    def __init__(
        self, settings: KdStage, student: Any, teacher: Any, text_encoder: Any, scheduler: Any, source: Source
    ) -> None:
        self.training, self.module = settings.training, student
        self._weights = {
            "task": settings.task_weight,
            "output": settings.output_weight,
            "feature": settings.feature_weight,
        }
        self._teacher, self._text, self._scheduler, self._source = teacher, text_encoder, scheduler, source
        self.frozen = (teacher, text_encoder)
        config = teacher.config
        pairs = feature_pairs(settings.variant, len(config.block_out_channels), config.layers_per_block)
        self._teacher_features = Features(teacher, tuple(t for t, _ in pairs))
        self._student_features = Features(
            student, tuple(s for _, s in pairs)
        )  # the bare module: no prefix of a wrapper

    def losses(self, module: Any, draw: Draw) -> Mapping[str, Any]:
        """The weighted sum, and each part."""
        latents, tokens = batch_on(module, self._source, draw, self.training.batch)
        noise, t, noisy = noised(self._scheduler, latents, draw.torch())
        with torch.no_grad():
            condition = text.encode(self._text, tokens)
            teacher = self._teacher(noisy, t, condition).sample
        student = module(noisy, t, condition).sample
        parts = kd_losses(
            noise, student, teacher, self._student_features.take(), self._teacher_features.take()
        )
        return {"loss": sum(self._weights[name] * value for name, value in parts.items()), **parts}

    def after_update(self, module: Any) -> None:
        """Nothing follows this network."""
