"""CLIP score from a local checkpoint: the cosine of picture and caption, as the paper reports it (0.26 to 0.30, not times 100).

Source: Hessel et al. 2021 (without their rescaling by 2.5); BK-SDM and EdgeFusion report the plain cosine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from npusim.errors import BadInputError
from npusim.training import checkpoints

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures, used where the folder holds no preprocessor_config.json. Source: Radford et al. 2021, released code."""


class ClipScorer:
    """A CLIPModel folder as `save_pretrained` writes it: config, weights, tokenizer, and preprocessor_config.json if it has one."""

    def __init__(self, folder: Path) -> None:
        """Raises BadInputError: the folder holds no CLIP model or no tokenizer."""
        from transformers import CLIPModel, CLIPTokenizer

        if not folder.is_dir():
            raise BadInputError(f"--clip {folder}: no such folder; give a local folder of a CLIPModel")
        self._model = checkpoints.load_network(CLIPModel, folder).eval().requires_grad_(False)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise BadInputError(
                f"--clip {folder}: holds neither tokenizer.json nor vocab.json; save the whole checkpoint there"
            )
        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise BadInputError(
                f"--clip {folder}: its tokenizer cannot be read ({error}); save the whole checkpoint there"
            ) from error
        settings = folder / "preprocessor_config.json"
        found = checkpoints.read_json(settings) if settings.is_file() else {}
        self._mean, self._deviation = (
            torch.tensor(found.get(key, default))[:, None, None]
            for key, default in (("image_mean", MEAN), ("image_std", DEVIATION))
        )

    @property
    def side(self) -> int:
        """Pixels of the squares that the model reads."""
        return int(self._model.config.vision_config.image_size)

    def score(self, pictures: Any, captions: list[str]) -> NDArray[np.float64]:
        """Cosine of each picture [N, 3, H, W], -1 to 1, with its caption: [N]."""
        cosines = [
            (answer.image_embeds * answer.text_embeds).sum(dim=1)
            for answer in self._answers(pictures, captions)
        ]
        return np.asarray(torch.cat(cosines).double().numpy())

    def embed(self, pictures: Any) -> NDArray[np.float32]:
        """Unit vectors [N, D] of pictures [N, 3, H, W], -1 to 1."""
        rows = [answer.image_embeds for answer in self._answers(pictures, [""] * len(pictures))]
        return np.asarray(torch.cat(rows).float().numpy())

    def _answers(self, pictures: Any, captions: list[str]) -> Iterator[Any]:
        """What the model makes of 32 pictures and captions at a time."""
        for first in range(0, len(captions), 32):
            words = self._tokenizer(
                captions[first : first + 32],
                padding="max_length",
                truncation=True,
                max_length=self._model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            )
            shown = self._prepared(pictures[first : first + 32])
            with torch.no_grad():
                yield self._model(
                    input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=shown
                )

    def _prepared(self, pictures: Any) -> Any:
        """Resized by Pillow (bicubic, shorter side), centre crop, normalised: as CLIP's own preprocessing."""
        from PIL import Image, ImageOps

        side = self.side
        values = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        resized = [
            ImageOps.fit(Image.fromarray(value), (side, side), Image.Resampling.BICUBIC) for value in values
        ]
        planes = torch.from_numpy(np.stack([np.asarray(picture, np.float32) for picture in resized]) / 255)
        return (planes.permute(0, 3, 1, 2) - self._mean) / self._deviation
