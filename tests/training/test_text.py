"""The text encoder tells words apart, at first and after the first steps of a training run."""

from __future__ import annotations

import numpy as np
import torch

from npusim.training import text
from npusim.training.config import preset
from npusim.training.data.world import world


def test_words_stay_apart_under_steps_that_all_of_them_share() -> None:
    """AdamW moves each weight by its learning rate: with embeddings of 0.02, ten steps made the words one (0.08 here)."""
    settings = preset("toy-small")
    drawn = world("toy-small")
    tokenizer = text.build_tokenizer(drawn.words(), settings.text.tokens)
    torch.manual_seed(0)
    encoder = text.build_text_encoder(settings.text, tokenizer)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=settings.teacher.training.optimiser.lr)
    rng = np.random.default_rng(0)
    rows = text.tokenize(tokenizer, drawn.captions(drawn.draw_labels(rng, 64), rng))
    direction = torch.randn(settings.text.hidden)
    for _ in range(10):
        optimiser.zero_grad()
        (text.encode(encoder, rows) @ direction).mean().backward()
        optimiser.step()
    pair = text.tokenize(tokenizer, [f"small red circle {row} left sand" for row in ("top", "bottom")])
    with torch.no_grad():
        top, bottom = text.encode(encoder, pair)[:, 4]  # where the two captions differ
    assert (top - bottom).norm() / top.norm() > 0.5
