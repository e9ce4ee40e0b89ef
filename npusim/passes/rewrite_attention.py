"""Attention nodes (ai.onnx 23 and com.microsoft) as products, mask, softmax and transposes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt

import numpy as np

from npusim.passes.rewrite import NEVER, Rewriter, Rule

#: Largest causal mask that is made as a constant (elements).
_MASK_ELEMENTS = 2**22


def _split_heads(writer: Rewriter, value: str, heads: int) -> str:
    """[B, L, H x D] -> [B, H, L, D]; four dimensions are taken as they are."""
    shape = writer.shape(value)
    if len(shape) == 4:
        return value
    split = writer.reshape(value, (shape[0], shape[1], heads, shape[2] // heads))
    return writer.transpose(split, (0, 2, 1, 3))


def _repeat_heads(writer: Rewriter, value: str, heads: int) -> str:
    """Grouped-query attention: each key head serves several query heads."""
    batch, have, length, width = writer.shape(value)
    if have == heads:
        return value
    wide = (batch, have, heads // have, length, width)
    apart = writer.reshape(value, (batch, have, 1, length, width))
    repeated = writer.add("Expand", (apart, writer.constant(wide, "int64")), wide)
    return writer.reshape(repeated, (batch, heads, length, width))


def _masked(writer: Rewriter, scores: str, mask: str) -> str:
    """Scores plus a mask of numbers; a mask of truth values (false: do not attend) is made into one."""
    if writer.values[mask].dtype == "bool":
        data = writer.constants.get(mask)
        if data is not None:
            mask = writer.constant(np.where(data, 0.0, -NEVER))
        else:
            known = writer.unary("Cast", mask, to=1)
            shifted = writer.binary("Add", known, writer.constant(-1.0))
            mask = writer.binary("Mul", shifted, writer.constant(NEVER))
    return writer.binary("Add", scores, mask)


def _causal_mask(writer: Rewriter, scores: str) -> str | None:
    queries, keys = writer.shape(scores)[-2:]
    if queries * keys > _MASK_ELEMENTS:
        return None
    return writer.constant(np.triu(np.full((queries, keys), -NEVER), k=1))


def _attend(
    writer: Rewriter, q: str, k: str, v: str, *, scale: float, masks: list[str], causal: bool, softcap: float = 0.0
) -> str | None:  # fmt: skip
    """softmax(scale q k^T + masks) v for [B, H, L, D] values."""
    heads = writer.shape(q)[1]
    if any(writer.shape(value)[1] == 0 or heads % writer.shape(value)[1] for value in (k, v)):
        return None
    k, v = _repeat_heads(writer, k, heads), _repeat_heads(writer, v, heads)
    scores = writer.matmul(q, writer.transpose(k, (0, 1, 3, 2)))
    scores = writer.binary("Mul", scores, writer.constant(scale))
    if softcap:
        capped = writer.unary("Tanh", writer.binary("Div", scores, writer.constant(softcap)))
        scores = writer.binary("Mul", capped, writer.constant(softcap))
    if causal:
        mask = _causal_mask(writer, scores)
        if mask is None:
            return None
        masks = [*masks, mask]
    for mask in masks:
        scores = _masked(writer, scores, mask)
    return writer.matmul(writer.unary("Softmax", scores, axis=-1), v)


def _join_heads(writer: Rewriter, value: str, output: str) -> None:
    """[B, H, L, D] -> [B, L, H x D]."""
    batch, heads, length, width = writer.shape(value)
    writer.reshape(writer.transpose(value, (0, 2, 1, 3)), (batch, length, heads * width), output)


def _attention(writer: Rewriter) -> bool:
    """ai.onnx Attention: three or four dimensions, grouped queries, mask, causal, soft cap; no cache."""
    if any(writer.output(i) for i in (1, 2, 3)) or any(writer.input(i) for i in (4, 5, 6)):
        return False
    q, k, v = writer.input(0), writer.input(1), writer.input(2)
    flat = len(writer.shape(q)) == 3
    heads, key_heads = writer.attribute("q_num_heads", 0), writer.attribute("kv_num_heads", 0)
    if flat and (heads < 1 or key_heads < 1):
        return False
    q, k, v = (
        _split_heads(writer, q, heads),
        _split_heads(writer, k, key_heads),
        _split_heads(writer, v, key_heads),
    )
    scale = writer.attribute("scale", None) or 1.0 / sqrt(writer.shape(q)[3])
    masks = [writer.input(3)] if writer.input(3) else []
    out = _attend(
        writer, q, k, v, scale=float(scale), masks=masks, causal=bool(writer.attribute("is_causal", 0)),
        softcap=float(writer.attribute("softcap", 0.0)),
    )  # fmt: skip
    if out is None:
        return False
    if flat:
        _join_heads(writer, out, writer.output(0))
    else:
        writer.reshape(out, writer.shape(out), writer.output(0))
    return True


def _multi_head(writer: Rewriter) -> bool:
    """com.microsoft.MultiHeadAttention with separate queries, keys and values; no cache, no padding mask."""
    q, k, v = writer.input(0), writer.input(1), writer.input(2)
    if not k or not v or any(writer.input(i) for i in (4, 6, 7)) or any(writer.output(i) for i in (1, 2)):
        return False
    if len(writer.shape(q)) != 3 or len(writer.shape(k)) not in (3, 4):
        return False
    heads = int(writer.attribute("num_heads", 0))
    if heads < 1:
        return False
    if writer.input(3):
        q, k, v = _biased(writer, (q, k, v), writer.input(3))
    q, k, v = (_split_heads(writer, value, heads) for value in (q, k, v))
    scale = writer.attribute("scale", 0.0) or 1.0 / sqrt(writer.shape(q)[3])
    masks = [writer.input(5)] if writer.input(5) else []
    out = _attend(
        writer, q, k, v, scale=float(scale), masks=masks, causal=bool(writer.attribute("unidirectional", 0))
    )
    if out is None:
        return False
    _join_heads(writer, out, writer.output(0))
    return True


def _biased(writer: Rewriter, values: tuple[str, str, str], bias: str) -> tuple[str, str, str]:
    """Queries, keys and values plus their shares of one bias."""
    found, start = [], 0
    for value in values:
        size = writer.shape(value)[-1]
        found.append(
            writer.binary("Add", value, writer.slice(bias, 0, start, start + size))
            if len(writer.shape(value)) == 3
            else value
        )
        start += size
    return found[0], found[1], found[2]


def _packed(writer: Rewriter) -> bool:
    """com.microsoft.Attention: one weight for queries, keys and values; no cache, no padding mask."""
    if any(writer.input(i) for i in (3, 4)) or any(writer.output(i) for i in (1, 2)):
        return False
    x, weight = writer.input(0), writer.input(1)
    heads, columns = int(writer.attribute("num_heads", 0)), writer.shape(weight)[-1]
    sizes = writer.attribute("qkv_hidden_sizes", None) or (columns // 3,) * 3
    if heads < 1 or len(writer.shape(x)) != 3 or sum(sizes) != columns or any(s % heads for s in sizes):
        return False
    joined = writer.matmul(x, weight)
    if writer.input(2):
        joined = writer.binary("Add", joined, writer.input(2))
    starts = (0, sizes[0], sizes[0] + sizes[1])
    q, k, v = (
        _split_heads(writer, writer.slice(joined, 2, start, start + size), heads)
        for start, size in zip(starts, sizes, strict=True)
    )
    scale = writer.attribute("scale", 0.0) or 1.0 / sqrt(sizes[0] // heads)
    masks = [writer.input(5)] if writer.input(5) else []
    causal = bool(writer.attribute("unidirectional", 0))
    out = _attend(writer, q, k, v, scale=float(scale), masks=masks, causal=causal)
    if out is None or not prod(writer.shape(out)):
        return False
    _join_heads(writer, out, writer.output(0))
    return True


ATTENTION: Mapping[str, Rule] = {
    "Attention": _attention,
    "com.microsoft.MultiHeadAttention": _multi_head,
    "com.microsoft.Attention": _packed,
}
