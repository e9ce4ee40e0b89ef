"""Captions to conditioning: a CLIPTokenizer built from a grammar, and a CLIP-architecture text encoder."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from npusim.training.config import TextSize

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(words: tuple[str, ...], tokens: int) -> Any:
    """A CLIPTokenizer whose byte pairs spell exactly these words, one token each.

    Letters and their word-final forms come first, then one entry per merge, then the two special tokens, as
    CLIP orders its own vocabulary.

    Args:
        words: lower-case words of the grammar.
        tokens: length of a padded row, begin and end tokens included.
    """
    from transformers import CLIPTokenizer

    letters = sorted({letter for word in words for letter in word})
    merges = _learn_merges(words)
    entries = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)])
    entries |= {BOS: None, EOS: None}
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokens)


def _learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until each word is one piece.

    Source: Sennrich et al. 2016, algorithm 1.
    """
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(pieces) > 1 for pieces in spelled):
        counts = Counter(pair for pieces in spelled for pair in pairwise(pieces))
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        spelled = [_merged(pieces, best) for pieces in spelled]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join each occurrence of the pair, from the left."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def tokenize(tokenizer: Any, captions: list[str]) -> Any:
    """Token rows [N, T] int64, padded with the end token as SD's pipelines do."""
    rows = tokenizer(
        captions,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    return rows.input_ids


def build_text_encoder(size: TextSize, tokenizer: Any) -> Any:
    """A CLIPTextModel of this size with fresh weights; its embeddings have standard deviation 1.

    CLIP's own 0.02 suits its small learning rate. At the 1e-3 of a small world, AdamW's first steps, which most words share,
    are larger than the differences between words, and those for position were never told apart (docs/training.md).
    """
    from torch import nn
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.tokens,
        projection_dim=size.hidden,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    for module in encoder.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    return encoder


def encode(text_encoder: Any, tokens: Any) -> Any:
    """Conditioning rows [N, T, hidden] from token rows [N, T]: the last hidden state, as SD uses it."""
    return text_encoder(input_ids=tokens).last_hidden_state
