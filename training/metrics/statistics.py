"""FID and Inception Score on any features or class probabilities, and a paired bootstrap.

On the attribute classifier they are reported as `classifier_fid` and `classifier_is`: the numbers cannot be
compared with ones computed on Inception's features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
"""[N, D]: one row per picture."""


def frechet_distance(a: Rows, b: Rows) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of the Gaussians fitted to two sets of features.

    The trace of the root is a sum of singular values, which are never negative: of A^(1/2) B^(1/2), or, where there are fewer
    pictures than features, of X Y' (X, Y: centred rows over the root of their number less one, so that A = X' X and B = Y' Y), which
    has the same ones and is smaller. Source: Heusel et al. 2017, section 4.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    x, y = ((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (a, b))
    few = min(len(a), len(b)) < a.shape[1]
    product = x @ y.T if few else _root(x.T @ x) @ _root(y.T @ y)
    root = np.linalg.svd(product, compute_uv=False).sum()
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(max(0.0, shift @ shift + (x * x).sum() + (y * y).sum() - 2 * root))


def _root(covariance: Rows) -> Rows:
    """Symmetric square root of a positive semi-definite matrix."""
    from scipy import linalg

    values, vectors = linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)


def inception_score(heads: Sequence[Rows]) -> float:
    """exp(E[KL(p(y | x) || p(y))]) for independent heads y: the KL terms add up.

    With one head this is Salimans et al. 2016. A perfect, evenly spread classifier scores the product of the
    heads' classes; a constant one scores 1.
    """
    total = 0.0
    for head in heads:
        p = np.clip(np.asarray(head, np.float64), 1e-12, None)
        total += float((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean())
    return float(np.exp(total))


def paired_bootstrap(
    a: NDArray[np.float64], b: NDArray[np.float64], seed: int = 0, rounds: int = 4000
) -> tuple[float, float, float]:
    """Mean of a - b over the same prompts, and its 95 % percentile interval. a, b: [N], one per prompt."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    rng = np.random.default_rng(seed)
    means = difference[rng.integers(0, len(difference), (rounds, len(difference)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)
