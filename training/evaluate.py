"""Judging: what the classifier reads from each network's pictures, between a floor and a ceiling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from npusim.training import checkpoints, classifier
from npusim.training import run as runs
from npusim.training.data.world import Combinations, Labels, World
from npusim.training.draw import Draw
from npusim.training.metrics.statistics import frechet_distance, inception_score
from npusim.training.run import Run
from npusim.training.sample import Studio, contenders, judging_captions

if TYPE_CHECKING:
    from npusim.training.stages import Session

Correct = NDArray[np.bool_]
"""[N, A]: whether each attribute of each picture is as its caption asked."""


def summarise(correct: Correct, world: World) -> dict[str, Any]:
    """Accuracy of each attribute, their mean, and the share of pictures with every attribute right."""
    named = {a.name: round(float(correct[:, i].mean()), 5) for i, a in enumerate(world.attributes)}
    return {
        "mean": round(float(correct.mean()), 5),
        "all": round(float(correct.all(axis=1).mean()), 5),
        "attributes": named,
    }


class Judge:
    """The classifier, and its features of reference renders of the combinations that are judged."""

    def __init__(self, run: Run, combinations: Combinations = "seen") -> None:
        self.world = run.world()
        self._network = runs.load_classifier(run)
        rng = Draw(run.seed, "reference renders", 0).numpy()
        labels = self.world.draw_labels(rng, run.preset.sampling.renders, combinations)
        self._reference = self.read(torch.from_numpy(self.world.render(labels, rng)))[1]

    def read(self, pictures: Any) -> tuple[Labels, Any, Any]:
        """Labels [N, A], features [N, F] and probabilities [N, sum of classes], as numpy."""
        parts = [
            classifier.read(self._network, chunk.clamp(-1, 1), self.world) for chunk in pictures.split(256)
        ]
        labels, features, probabilities = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return labels, features, probabilities

    def judge(self, pictures: Any, labels: Labels) -> tuple[dict[str, Any], Correct]:
        """All figures of one set of pictures, and which attribute of which picture is right."""
        seen, features, probabilities = self.read(pictures)
        correct: Correct = seen == labels
        ends = np.cumsum([len(a.values) for a in self.world.attributes])[:-1]
        scores = {
            "classifier_fid": round(frechet_distance(features, self._reference), 4),
            "classifier_is": round(inception_score(np.split(probabilities, ends, axis=1)), 2),
        }
        return summarise(correct, self.world) | scores, correct


def _judge_set(run: Run, studio: Studio, name: Combinations, session: Session) -> dict[str, Any]:
    """Judge every contender on one set of prompts; keep per-prompt results for paired intervals."""
    judge = Judge(run, name)
    labels, captions = judging_captions(run.preset, run, run.preset.sampling.prompts, name)
    rng = Draw(run.seed, f"ceiling {name}", 0).numpy()
    results: dict[str, Any] = {}
    results["ceiling (renders)"], _ = judge.judge(torch.from_numpy(run.world().render(labels, rng)), labels)
    for contender in contenders(run):
        pictures = studio.pictures(contender, captions, f"evaluate {name}")
        results[contender.name], correct = judge.judge(pictures, labels)
        _keep(run.out / "evaluation" / f"{name}-{contender.name}.npy", correct)
        session.say(f"{name} {contender.name}: " + line(results[contender.name]))
        if contender.stage == "teacher":
            shuffled = labels[np.roll(np.arange(len(labels)), 1)]
            results["floor (shuffled captions)"], _ = judge.judge(pictures, shuffled)
    return results


def _keep(path: Path, correct: Correct) -> None:
    with checkpoints.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, correct)


def line(figures: Mapping[str, Any]) -> str:
    """One line for the screen."""
    return (
        f"mean {figures['mean']:.1%}, all right {figures['all']:.1%}, "
        f"classifier_fid {figures['classifier_fid']}, classifier_is {figures['classifier_is']}"
    )


def evaluate_run(session: Session) -> dict[str, Any]:
    """Judge every finished network of the run; write and return OUT/evaluation/results.json."""
    run = session.run
    studio = Studio(run)
    results = {name: _judge_set(run, studio, name, session) for name in run.world().tested}
    report = {
        "prompts": run.preset.sampling.prompts,
        "guidance": run.preset.sampling.guidance,
        "sets": results,
    }
    checkpoints.write_json(run.out / "evaluation" / "results.json", report)
    return report
