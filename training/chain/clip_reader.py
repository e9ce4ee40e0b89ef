"""A local CLIP as the chain's reader: it embeds pictures, scores crops, and compares captions with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from npusim.training.chain.filter import AgreementFilter, SizeFilter
from npusim.training.chain.readers import tensor_of
from npusim.training.chain.step import Item, Outcome
from npusim.training.chain.writers import loaded

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures. Source: Radford et al. 2021, released code."""


@dataclass(frozen=True, slots=True)
class ClipReader:
    """Cosines of pictures with captions and with one another."""

    model: Any
    tokenizer: Any
    name: str
    side: int
    parallel: bool = False

    @classmethod
    def of(cls, folder: Path) -> ClipReader:
        """From a CLIPModel's local folder: weights, configuration, tokenizer."""
        from transformers import CLIPModel, CLIPTokenizer

        model, tokenizer = loaded(folder, (CLIPModel, CLIPTokenizer), "a CLIP model with its tokenizer")
        side = int(model.config.vision_config.image_size)
        return cls(model.eval(), tokenizer, f"CLIP {folder.name}", side)

    def embed(self, shown: Sequence[Any]) -> NDArray[np.float32]:
        """PIL pictures to unit vectors [N, D]."""
        words = [""] * len(shown)
        return np.asarray(self._read(shown, words).image_embeds.float().numpy())

    def agree(self, shown: Sequence[Any], captions: Sequence[str]) -> NDArray[np.float64]:
        """The cosine of each picture with its caption: [N]."""
        read = self._read(shown, list(captions))
        return np.asarray((read.image_embeds * read.text_embeds).sum(dim=1).double().numpy())

    def score(self, crops: Sequence[Any], captions: Sequence[str]) -> NDArray[np.float64]:
        """The same, of crops."""
        return self.agree(crops, captions)

    def _read(self, shown: Sequence[Any], captions: list[str]) -> Any:
        """CLIP's unit vectors of both. Pictures: [N, 3, H, W], normalised as CLIP was trained."""
        words = self.tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        mean, deviation = (torch.tensor(row)[:, None, None] for row in (MEAN, DEVIATION))
        pixels = ((tensor_of(shown, self.side) + 1) / 2 - mean) / deviation
        with torch.no_grad():
            return self.model(
                input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=pixels
            )


@dataclass(frozen=True, slots=True)
class ClipJudge:
    """An automatic judge, not a person: removes records whose caption and picture agree too little."""

    reader: ClipReader
    least: float
    name: str = "curate"
    reads: Literal["record", "picture"] = "picture"

    def settings(self) -> dict[str, JsonValue]:
        """As variant.json records it."""
        return {"by": f"automatic judge: {self.reader.name}", "least": self.least}

    def apply(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item."""
        return AgreementFilter(SizeFilter(min_side=0), self.reader, self.least).apply(items)
