"""Pairwise human preference: win rate, its intervals, an exact test, and whether side mattered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Outcome = Literal["a", "b", "tie"]
_Z = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One comparison: who was asked, about which pair, which set was on the left, and what was preferred."""

    participant: str
    pair: int
    left: Literal["a", "b"]
    preferred: Outcome


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
    """95 % interval of a proportion. Source: Wilson 1927. Half successes (split ties) are allowed."""
    if not count:
        return 0.0, 1.0
    share, square = successes / count, _Z * _Z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _Z / (1 + square / count) * np.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def binomial_p_value(successes: int, count: int) -> float:
    """Two-sided exact test against one half: the probability of outcomes as likely as this one or less."""
    from scipy.stats import binomtest

    return float(binomtest(successes, count, 0.5).pvalue) if count else 1.0


def clustered_interval(
    scores: NDArray[np.float64],
    participants: NDArray[np.int64],
    prompts: NDArray[np.int64],
    seed: int = 0,
    rounds: int = 4000,
) -> tuple[float, float]:
    """95 % percentile interval of the mean score when participants and prompts are both drawn again, each with replacement.

    scores, participants, prompts: [N]. An answer weighs as often as both of its clusters were drawn. Source: Owen 2007, "The
    pigeonhole bootstrap"; it does not take answers of one person, or about one prompt, for independent.
    """
    rng = np.random.default_rng(seed)
    people, pairs = int(participants.max()) + 1, int(prompts.max()) + 1
    means = []
    for _ in range(rounds):
        drawn = [np.bincount(rng.integers(0, n, n), minlength=n) for n in (people, pairs)]
        weights = drawn[0][participants] * drawn[1][prompts]
        if weights.any():
            means.append(float(weights @ scores) / float(weights.sum()))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(answers: Sequence[Answer], seed: int = 0) -> dict[str, Any]:
    """All figures of a study from the answers that stand. `win_rate` is that of set a; ties count half."""
    scores = np.asarray([{"a": 1.0, "b": 0.0, "tie": 0.5}[answer.preferred] for answer in answers])
    wins, losses, ties = (int((scores == value).sum()) for value in (1.0, 0.0, 0.5))
    decided = [answer for answer in answers if answer.preferred != "tie"]
    left = sum(answer.preferred == answer.left for answer in decided)
    found: dict[str, Any] = {
        "comparisons": len(answers),
        "participants": len({answer.participant for answer in answers}),
        "pairs": len({answer.pair for answer in answers}),
        "a": wins,
        "b": losses,
        "ties": ties,
        "a_shown_left": sum(answer.left == "a" for answer in answers),
        "left_preferred": left,
    }
    if not answers:
        return found
    people = np.unique([answer.participant for answer in answers], return_inverse=True)[1]
    pairs = np.unique([answer.pair for answer in answers], return_inverse=True)[1]
    total = float(scores.sum())
    return found | {
        "win_rate": total / len(answers),
        "wilson_95": wilson_interval(total, len(answers)),
        "p_value": binomial_p_value(wins, wins + losses),
        "clustered_95": clustered_interval(scores, people, pairs, seed),
        "left_rate": left / len(decided) if decided else 0.5,
        "left_wilson_95": wilson_interval(left, len(decided)),
        "left_p_value": binomial_p_value(left, len(decided)),
    }
