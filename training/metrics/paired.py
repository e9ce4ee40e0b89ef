"""Two networks on the same prompts and noise: differences with intervals, and whom an automatic judge prefers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.training.metrics.statistics import paired_bootstrap

JUDGE = "automatic judge"
"""What stands where the paper asked people: the classifier, by its count of right attributes. No person is imitated."""


def compare_correct(ours: NDArray[np.bool_], rival: NDArray[np.bool_]) -> dict[str, Any]:
    """Mean difference and its 95 % paired bootstrap interval (positive: ours is better), and the classifier's preference.

    Args:
        ours, rival: [N, A], whether each attribute of each prompt's picture is right.
    """
    mine, theirs = (np.asarray(each.all(axis=1), np.float64) for each in (ours, rival))
    lead = ours.sum(axis=1) - rival.sum(axis=1)
    sides = {"ours": lead > 0, "tie": lead == 0, "rival": lead < 0}
    return {
        "attributes": rounded(paired_bootstrap(ours.mean(axis=1), rival.mean(axis=1))),
        "all right": rounded(paired_bootstrap(mine, theirs)),
        JUDGE: {name: round(float(np.mean(where)), 4) for name, where in sides.items()},
    }


def with_interval(values: NDArray[np.float64]) -> list[float]:
    """Mean over prompts and its 95 % bootstrap interval. values: [N]."""
    return rounded(paired_bootstrap(values, np.zeros(len(values))))


def rounded(values: tuple[float, float, float]) -> list[float]:
    """Mean, low, high to four places."""
    return [round(value, 4) for value in values]
