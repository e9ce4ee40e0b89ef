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
from npusim.training.metrics.measures import NOT_COMPUTED, NOTHING, Measures
from npusim.training.metrics.statistics import frechet_distance, inception_score
from npusim.training.run import Run
from npusim.training.sample import Contender, Studio, contenders, judging_captions

if TYPE_CHECKING:
    from npusim.training.session import Session

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
    """The classifier, its features of reference renders of the combinations that are judged, and what the user gave besides.

    Raises:
        BadInputError: a file of `measures` cannot be used.
    """

    def __init__(self, run: Run, combinations: Combinations = "seen", measures: Measures = NOTHING) -> None:
        self.world = run.world()
        self._network = runs.load_classifier(run)
        rng = Draw(run.seed, "reference renders", 0).numpy()
        labels = self.world.draw_labels(rng, run.preset.sampling.renders, combinations)
        renders = torch.from_numpy(self.world.render(labels, rng))
        self._reference = self.read(renders)[1]
        self._measures = measures.against(renders)

    def read(self, pictures: Any) -> tuple[Labels, Any, Any]:
        """Labels [N, A], features [N, F] and probabilities [N, sum of classes], as numpy."""
        parts = [
            classifier.read(self._network, chunk.clamp(-1, 1), self.world) for chunk in pictures.split(256)
        ]
        labels, features, probabilities = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return labels, features, probabilities

    def judge(
        self, pictures: Any, labels: Labels, captions: list[str] | None = None
    ) -> tuple[dict[str, Any], Correct]:
        """All figures of one set of pictures, and which attribute of which picture is right."""
        seen, features, probabilities = self.read(pictures)
        correct: Correct = seen == labels
        ends = np.cumsum([len(a.values) for a in self.world.attributes])[:-1]
        scores = {
            "classifier_fid": round(frechet_distance(features, self._reference), 4),
            "classifier_is": round(inception_score(np.split(probabilities, ends, axis=1)), 2),
        }
        return summarise(correct, self.world) | scores | self._measures.figures(pictures, captions), correct


class Examination:
    """One set of prompts with its noise: whoever is examined gets the same."""

    def __init__(self, run: Run, studio: Studio, name: Combinations, measures: Measures = NOTHING) -> None:
        self.run, self.name, self._studio = run, name, studio
        self.judge = Judge(run, name, measures)
        self.labels, self.captions = judging_captions(run.preset, run, run.preset.sampling.prompts, name)

    def ceiling(self) -> dict[str, Any]:
        """Figures of renders of the prompts."""
        rng = Draw(self.run.seed, f"ceiling {self.name}", 0).numpy()
        renders = torch.from_numpy(self.run.world().render(self.labels, rng))
        return self.judge.judge(renders, self.labels, self.captions)[0]

    def pictures(self, contender: Contender) -> Any:
        """A network's pictures of the prompts, [N, 3, H, W]."""
        return self._studio.pictures(contender, self.captions, f"evaluate {self.name}")

    def take(self, contender: Contender, keep: Path) -> tuple[dict[str, Any], Any]:
        """Figures and pictures of a network; what was right goes to `keep` (.npy), for paired intervals."""
        pictures = self.pictures(contender)
        figures, correct = self.judge.judge(pictures, self.labels, self.captions)
        with checkpoints.writing(keep):
            keep.parent.mkdir(parents=True, exist_ok=True)
            np.save(keep, correct)
        return figures, pictures

    def floor(self, pictures: Any) -> dict[str, Any]:
        """Figures of pictures against the captions of others."""
        order = np.roll(np.arange(len(self.labels)), 1)
        return self.judge.judge(pictures, self.labels[order], [self.captions[i] for i in order])[0]


def _judge_set(
    run: Run, studio: Studio, name: Combinations, session: Session, measures: Measures
) -> dict[str, Any]:
    """Judge every contender on one set of prompts."""
    examination = Examination(run, studio, name, measures)
    results: dict[str, Any] = {"ceiling (renders)": examination.ceiling()}
    for contender in contenders(run):
        keep = run.out / "evaluation" / f"{name}-{contender.name}.npy"
        results[contender.name], pictures = examination.take(contender, keep)
        session.say(f"{name} {contender.name}: " + line(results[contender.name]))
        if contender.stage == "teacher":
            results["floor (shuffled captions)"] = examination.floor(pictures)
    return results


def line(figures: Mapping[str, Any]) -> str:
    """One line for the screen."""
    given = [
        f"{name} {figures[name]}"
        for name in ("is", "fid", "clip_score")
        if figures.get(name, NOT_COMPUTED) != NOT_COMPUTED
    ]
    return ", ".join(
        [
            f"mean {figures['mean']:.1%}",
            f"all right {figures['all']:.1%}",
            f"classifier_fid {figures['classifier_fid']}",
            f"classifier_is {figures['classifier_is']}",
            *given,
        ]
    )


def evaluate_run(session: Session, measures: Measures = NOTHING) -> dict[str, Any]:
    """Judge every finished network of the run; write and return OUT/evaluation/results.json."""
    run = session.run
    studio = Studio(run)
    results = {name: _judge_set(run, studio, name, session, measures) for name in run.world().tested}
    report = {
        "prompts": run.preset.sampling.prompts,
        "guidance": run.preset.sampling.guidance,
        "sets": results,
    }
    checkpoints.write_json(run.out / "evaluation" / "results.json", report)
    if measures.missing():
        session.say(measures.missing())
    return report
