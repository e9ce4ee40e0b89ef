"""Where a stage's batches come from.

A batch is a function of its address (seed, stage, step, micro-batch, process).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from npusim.errors import BadInputError
from npusim.training import checkpoints, text, vae
from npusim.training.data.world import Combinations, World
from npusim.training.draw import Draw


class Source(Protocol):
    """Latents with their captions' tokens."""

    def batch(self, draw: Draw, size: int) -> tuple[Any, Any]:
        """Latents [N, C, h, w] float32 and token rows [N, T] int64."""


def device_of(module: Any) -> Any:
    """Where a network's weights are, wrapped or not."""
    return next(module.parameters()).device


def batch_on(module: Any, source: Source, draw: Draw, size: int) -> tuple[Any, Any]:
    """A source's batch, where the network is."""
    latents, tokens = source.batch(draw, size)
    return latents.to(device_of(module)), tokens.to(device_of(module))


class Pictures:
    """Fresh renders with their labels: of every combination for the classifier, of seen ones for the autoencoder."""

    def __init__(self, world: World, combinations: Combinations = "seen") -> None:
        self._world, self._combinations = world, combinations

    def batch(self, draw: Draw, size: int) -> tuple[Any, Any]:
        """Pictures [N, 3, H, W] and labels [N, A]."""
        rng = draw.numpy()
        labels = self._world.draw_labels(rng, size, self._combinations)
        pictures = torch.from_numpy(self._world.render(labels, rng))
        return pictures, torch.from_numpy(labels)


class Pool:
    """A fixed set of encoded pictures, drawn from with replacement."""

    def __init__(self, latents: Any, tokens: Any) -> None:
        self.latents, self.tokens = latents, tokens

    def batch(self, draw: Draw, size: int) -> tuple[Any, Any]:
        """Rows drawn uniformly."""
        rows = torch.from_numpy(draw.numpy().integers(0, len(self.latents), size)).to(self.latents.device)
        return self.latents[rows], self.tokens[rows]


def encode_pool(world: World, network: Any, patch: int, tokenizer: Any, count: int, seed: int) -> Pool:
    """Render, caption and encode `count` training pictures."""
    latents, tokens = [], []
    for step in range(-(-count // 256)):
        rng = Draw(seed, "pool", step).numpy()
        labels = world.draw_labels(rng, min(256, count - 256 * step))
        pictures = torch.from_numpy(world.render(labels, rng))
        with torch.no_grad():
            latents.append(vae.encode(network, pictures.to(network.device), patch))
        tokens.append(text.tokenize(tokenizer, world.captions(labels, rng)))
    return Pool(torch.cat(latents), torch.cat(tokens).to(network.device))


def stored_pool(path: Path, key: str, build: Callable[[], Pool]) -> Pool:
    """The pool kept at `path` if it was built from the same ingredients, else a new one, stored."""
    if path.is_file():
        tensors, facts = checkpoints.read_tensors(path)
        if facts.get("key") == key:
            return Pool(tensors["latents"], tensors["tokens"])
    pool = build()
    checkpoints.write_tensors(path, {"latents": pool.latents, "tokens": pool.tokens}, {"key": key})
    return pool


def captioned(folder: Path) -> list[tuple[Path, str]]:
    """Pictures of an imagefolder with their captions, as its metadata.jsonl lists them (file_name, text).

    Raises:
        BadInputError: no metadata.jsonl, a line of it that has not both keys, or none at all.
    """
    listing = folder / "metadata.jsonl"
    try:
        rows = [json.loads(line) for line in listing.read_text().splitlines() if line.strip()]
        found = [(folder / row["file_name"], str(row["text"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{listing}: each line must be JSON with file_name and text ({error}); give an imagefolder"
        ) from error
    if not found:
        raise BadInputError(f"{listing}: holds no pictures; give an imagefolder with at least one line")
    return found


class Folder:
    """An imagefolder with metadata.jsonl (file_name, text): centre crop, flip half, encode as they come.

    Source: BK-SDM's recipe (centre crop, random flip).
    """

    def __init__(self, folder: Path, network: Any, tokenizer: Any, resolution: int) -> None:
        """Raises BadInputError: see `captioned`."""
        self._rows = captioned(folder)
        self._vae, self._tokenizer, self._resolution = network, tokenizer, resolution

    def batch(self, draw: Draw, size: int) -> tuple[Any, Any]:
        """Encode pictures drawn uniformly."""
        rng = draw.numpy()
        chosen = [self._rows[i] for i in rng.integers(0, len(self._rows), size)]
        flips = rng.random(size) < 0.5
        pictures = np.stack(
            [self._picture(path, bool(flip)) for (path, _), flip in zip(chosen, flips, strict=True)]
        )
        tokens = text.tokenize(self._tokenizer, [caption for _, caption in chosen]).to(self._vae.device)
        with torch.no_grad():
            return vae.encode(self._vae, torch.from_numpy(pictures).to(self._vae.device), 1), tokens

    def _picture(self, path: Path, flip: bool) -> Any:
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as file:
                square = ImageOps.fit(file.convert("RGB"), (self._resolution, self._resolution))
        except OSError as error:
            raise BadInputError(
                f"{path}: not a readable picture ({error}); remove its line from metadata.jsonl"
            ) from error
        values = np.asarray(ImageOps.mirror(square) if flip else square, np.float32)
        return values.transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
