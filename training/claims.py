"""Two of the paper's claims at a run's own budget and data: the large teacher for LCM, and stage 1 before it.

The grid (`grid/`) compares far more, on other data and at a budget of its own, with the same means.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.errors import BadInputError
from npusim.training import checkpoints
from npusim.training.distillation import Pairing, train_lcm
from npusim.training.evaluate import evaluate_run
from npusim.training.metrics.paired import compare_correct
from npusim.training.run import Run
from npusim.training.session import Session


def _rival(teacher: str, student: str) -> Pairing:
    return Pairing(teacher=teacher, student=student, place=f"lcm-from-{teacher}-into-{student}")


RIVALS = {
    "large teacher against a student-shaped one": _rival("kd", "kd"),
    "stage 1 before LCM against none": _rival("teacher", "bk-init"),
}
"""Claim -> the rival that the paper's own pairing is compared with."""


def examine_claims(session: Session) -> dict[str, Any]:
    """Train each rival with the same steps, prompts and noise; write OUT/evaluation/claims.json.

    Returns:
        For each claim whose rival is finished (all, unless time is up) and each step count: `metrics.paired.compare_correct`
            (positive: the paper's pairing is better).

    Raises:
        BadInputError: the run that they are compared with is not finished.
    """
    for needed in ("kd", "lcm"):
        if not session.run.finished(needed):
            raise BadInputError(
                f"{session.run.final(needed)}: stage {needed} is not finished; run: npusim train all, then claims again"
            )
    trained = {claim: rival.place for claim, rival in RIVALS.items() if train_lcm(session, rival)}
    if not trained:
        return {}
    evaluate_run(session)
    report = {claim: _compare(session.run, rival) for claim, rival in trained.items()}
    checkpoints.write_json(session.run.out / "evaluation" / "claims.json", report)
    for claim, rows in report.items():
        for steps, row in rows.items():
            session.say(f"{claim}, {steps}: " + ", ".join(f"{k} {v}" for k, v in row.items()))
    return report


def _compare(run: Run, rival: str) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for steps in run.preset.sampling.student_steps:
        ours, theirs = (
            np.load(run.out / "evaluation" / f"seen-{name}-{steps}.npy", allow_pickle=False)
            for name in ("lcm", rival)
        )
        rows[f"{steps} steps"] = compare_correct(ours, theirs)
    return rows
