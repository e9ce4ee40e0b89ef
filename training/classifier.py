"""The attribute classifier: reads every attribute of a world from a picture.

It is the judge of all later stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from npusim.training.data.world import World

FEATURES = 64
"""Width of the features that FID is computed on. Ours: far fewer than the number of pictures judged."""


def _block(inputs: int, outputs: int) -> Any:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU(),
    )  # fmt: skip


def build_classifier(world: World) -> Any:
    """A convolutional network with one shared feature row and one linear head for all attributes' logits.

    Positions matter here, so the last 4x4 (or 8x8) map is flattened rather than averaged.
    """
    side = world.resolution // 8
    classes = sum(len(a.values) for a in world.attributes)
    trunk = nn.Sequential(
        _block(3, 32), _block(32, 64), _block(64, 96), nn.Conv2d(96, 32, 1), nn.Flatten(),
        nn.Linear(32 * side * side, 2 * FEATURES), nn.SiLU(), nn.Linear(2 * FEATURES, FEATURES), nn.SiLU(),
    )  # fmt: skip
    return nn.Sequential(trunk, nn.Linear(FEATURES, classes))


def split_logits(logits: Any, world: World) -> tuple[Any, ...]:
    """[N, sum of classes] logits as one [N, classes] tensor per attribute."""
    return tuple(logits.split([len(a.values) for a in world.attributes], dim=1))


def losses(classifier: Any, pictures: Any, labels: Any, world: World) -> Mapping[str, Any]:
    """Cross entropy, averaged over attributes. pictures: [N, 3, H, W]; labels: [N, A]."""
    heads = split_logits(classifier(pictures), world)
    parts = [functional.cross_entropy(head, labels[:, index]) for index, head in enumerate(heads)]
    return {"loss": torch.stack(parts).mean()}


def read(classifier: Any, pictures: Any, world: World) -> tuple[Any, Any, Any]:
    """What the classifier sees: labels [N, A], features [N, F], and probabilities [N, sum of classes]."""
    with torch.no_grad():
        features = classifier[0](pictures)
        heads = split_logits(classifier[1](features), world)
    labels = torch.stack([head.argmax(dim=1) for head in heads], dim=1)
    return labels, features, torch.cat([head.softmax(dim=1) for head in heads], dim=1)
