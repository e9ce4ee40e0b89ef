"""Two of the paper's claims at the world's scale: the large teacher for LCM, and stage 1 before it."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.errors import BadInputError
from npusim.training import checkpoints
from npusim.training.evaluate import evaluate_run
from npusim.training.metrics.statistics import paired_bootstrap
from npusim.training.run import Run
from npusim.training.stages import Session, lcm_name, train_lcm

RIVALS = {
    "large teacher against a student-shaped one": ("kd", "kd"),
    "stage 1 before LCM against none": ("teacher", "bk-init"),
}
"""Claim -> (teacher, student) of the rival that the paper's own pairing is compared with."""


def examine_claims(session: Session) -> dict[str, Any]:
    """Train each rival with the same steps, prompts and noise; write OUT/evaluation/claims.json.

    Returns:
        For each claim whose rival is finished (all, unless time is up) and each step count: mean difference and its 95 %
            paired bootstrap interval over prompts, in attribute accuracy and in pictures with every attribute right
            (positive: the paper's pairing is better).

    Raises:
        BadInputError: the run that they are compared with is not finished.
    """
    for needed in ("kd", "lcm"):
        if not session.run.finished(needed):
            raise BadInputError(
                f"{session.run.final(needed)}: stage {needed} is not finished; run: npusim train all, then claims again"
            )
    trained = {
        claim: lcm_name(*pair)
        for claim, pair in RIVALS.items()
        if train_lcm(session, teacher=pair[0], student=pair[1])
    }
    if not trained:
        return {}
    evaluate_run(session)
    report = {claim: _compare(session.run, rival) for claim, rival in trained.items()}
    checkpoints.write_json(session.run.out / "evaluation" / "claims.json", report)
    for claim, rows in report.items():
        for steps, row in rows.items():
            session.say(f"{claim}, {steps}: " + ", ".join(f"{k} {v}" for k, v in row.items()))
    return report


def _compare(run: Run, rival: str) -> dict[str, dict[str, list[float]]]:
    rows: dict[str, dict[str, list[float]]] = {}
    for steps in run.preset.sampling.student_steps:
        ours, theirs = (
            np.load(run.out / "evaluation" / f"seen-{name}-{steps}.npy", allow_pickle=False)
            for name in ("lcm", rival)
        )
        rows[f"{steps} steps"] = {
            "mean attribute accuracy": _rounded(paired_bootstrap(ours.mean(axis=1), theirs.mean(axis=1))),
            "all right": _rounded(paired_bootstrap(ours.all(axis=1), theirs.all(axis=1))),
        }
    return rows


def _rounded(values: tuple[float, float, float]) -> list[float]:
    return [round(value, 4) for value in values]
