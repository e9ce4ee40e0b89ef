"""The shipped, trained U-Net: errors of 50 random precisions, predicted and executed; pairs of pictures that survive a stop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npusim.api import load_graph
from npusim.errors import BadInputError
from npusim.models import checkpoints
from npusim.sensitivity.errors import predicted_share, sqnr_db
from npusim.sensitivity.run import Measuring, measure
from npusim.weights import open_weights

from .test_sensitivity import drawn

pytestmark = [pytest.mark.slow, pytest.mark.training]

TOOLS = Path(__file__).parents[2] / "tools"
CAPTIONS = [
    "a small red circle left of a large striped blue cross on wood",
    "a large green star above a small dotted purple ring on brick",
]
ASSIGNMENTS, WITHIN_DB, SHARE = 50, 1.5, 0.9


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    """tools/paired_accuracy.py, which imports tools/quantized_pictures.py from beside it."""
    for package in ("torch", "diffusers", "transformers", "onnxscript"):
        pytest.importorskip(package)
    sys.path.insert(0, str(TOOLS))
    try:
        import paired_accuracy

        yield paired_accuracy
    finally:
        sys.path.remove(str(TOOLS))


def test_errors_of_random_precisions_are_predicted_within_1_5_db(tool: Any, tmp_path: Path) -> None:
    shipped = tool.load_shipped(tool.SHIPPED / "edgefusion-toy")
    asked = tool.calibration_inputs(shipped, CAPTIONS, 4)
    inputs = [asked[0], asked[-1]]  # the first caption at the first step, the second at the last
    model = checkpoints.build("custom", out=tmp_path, weights=tool.SHIPPED / "edgefusion-toy" / "unet")
    graph = load_graph(model)
    subject, found = measure(graph, open_weights(model, graph), inputs, Measuring(cache=tmp_path / "cache"))
    off = []
    for seed in range(ASSIGNMENTS):
        precisions = drawn(graph, found.options, seed)
        predicted = sqnr_db(predicted_share(graph, found, precisions))
        off.append(predicted - sqnr_db(subject.measured_share(precisions)))
    close = np.abs(off) <= WITHIN_DB
    print(  # noqa: T201 - the figure for docs/precision.md, with -s
        f"{close.mean():.0%} of {ASSIGNMENTS} within {WITHIN_DB} dB; largest difference {np.abs(off).max():.2f} dB"
    )
    assert close.mean() >= SHARE


def test_pairs_go_on_after_a_stop_and_end_the_same(tool: Any, tmp_path: Path) -> None:
    from npusim.training.classifier import build_classifier, read
    from npusim.training.config import preset
    from npusim.training.run import Run
    from npusim.training.sample import judging_captions

    shipped = tool.load_shipped(tool.SHIPPED / "edgefusion-toy")
    made = preset("toy")
    run = Run(preset=made, out=tmp_path, seed=0)
    labels, captions = judging_captions(made, run, 4)
    network = build_classifier(
        run.world()
    ).eval()  # untrained: what it reads is wrong, and the same on both ways

    class Reader:
        def read(self, pictures: Any) -> Any:
            return [x.numpy() for x in read(network, pictures, run.world())]

    inputs = tool.calibration_inputs(shipped, CAPTIONS[:1], 1)
    model = checkpoints.build(
        "custom", out=tmp_path / "model", weights=tool.SHIPPED / "edgefusion-toy" / "unet"
    )
    deployment = tool.deploy(model, "exynos2400", "w8a16", inputs)
    setting = tool.Setting("network", "w8a16", "exynos2400", 3, 2, 1, 0, deployment.plan.program_sha256)
    integers = tool.Integers(deployment, shipped.unet)
    pairs = tool.Pairs(shipped, Reader(), labels[:3], captions[:3], integers, setting)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    files = tool.run_chunks(pairs, whole)
    assert integers.checked == 1  # tiled equals untiled in the last chunk too
    tool.open_folder(stopped, setting)
    tool.run_chunks(pairs, stopped, stop_after=1)
    assert len(list(stopped.glob("chunk-*.npz"))) == 1
    again = tool.run_chunks(pairs, stopped)
    for a, b in zip(files, again, strict=True):
        one, other = np.load(a), np.load(b)
        assert all(np.array_equal(one[name], other[name]) for name in one.files)
    assert tool.judge_pairs(again)["pictures"] == 3
    with pytest.raises(BadInputError, match="give another --out"):
        tool.open_folder(stopped, tool.Setting("network", "w8a8", "exynos2400", 3, 2, 1, 0, ""))


def test_a_paired_difference_is_judged_by_its_interval(tool: Any, tmp_path: Path) -> None:
    right = np.ones((400, 2), dtype=np.bool_)
    for lost, excluded in ((1, True), (12, False)):
        wrong = right.copy()
        wrong[:lost] = False
        file = tmp_path / f"chunk-{lost}.npz"
        np.savez(
            file, fp32=right, integers=wrong, picture_mse=np.full(400, 0.04), latents_db=np.asarray(30.0)
        )
        found = tool.judge_pairs([file])
        assert found["mean"]["difference"] == pytest.approx(-lost / 400)
        assert found["all"]["loss_of_a_point_excluded"] is excluded
        assert found["psnr_db"]["median"] == pytest.approx(20)
