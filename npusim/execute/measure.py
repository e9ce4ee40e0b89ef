"""How far one result is from another: signal to quantization noise, cosine, largest error."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log10

import numpy as np

from npusim.execute.blocks import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """A result against its reference.

    Attributes:
        sqnr_db: 10 log10(sum of squares of the reference / sum of squares of the difference); infinite if equal.
        cosine: of the angle between both as vectors.
        max_error: largest absolute difference.
        relative_error: `max_error` over the largest magnitude of the reference.
    """

    sqnr_db: float
    cosine: float
    max_error: float
    relative_error: float


def closeness(found: Array, reference: Array) -> Closeness:
    """Compare arrays of one shape, in FP64."""
    x, y = (np.asarray(v, dtype=np.float64).ravel() for v in (found, reference))
    noise, signal = float(np.square(x - y).sum()), float(np.square(y).sum())
    lengths = float(np.sqrt(np.square(x).sum() * signal))
    error = float(np.abs(x - y).max(initial=0.0))
    largest = float(np.abs(y).max(initial=0.0))
    return Closeness(
        sqnr_db=inf if noise == 0 else (-inf if signal == 0 else 10 * log10(signal / noise)),
        cosine=float(x @ y) / lengths if lengths else float(noise == 0),
        max_error=error,
        relative_error=error / largest if largest else error,
    )
