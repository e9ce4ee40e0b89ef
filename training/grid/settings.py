"""The grid's budget and sizes, and the folder that holds them to it.

OUT/                          a run: classifier, autoencoder, teacher and student's first weights are shared by every cell
OUT/grid/grid.json            the settings below, and the run's networks that they were used with
OUT/grid/data/                variants: latents and tokens, data.json, one contact sheet each
OUT/grid/cells/<cell>/        networks of a cell, as a stage's folder
OUT/grid/judged/<cell>.json   its figures; per prompt in .npy
OUT/grid/tables.json, .md     what is finished, compared
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from npusim.errors import BadInputError
from npusim.training import checkpoints, networks
from npusim.training import run as runs
from npusim.training.config import Preset, as_json, digest
from npusim.training.data.source import captioned
from npusim.training.run import Run

SYNT_SHARE = 62.3 / 212.8
"""synt's size, as a share of L-orig's. Source: the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSettings:
    """What every cell of one grid has in common.

    records: of L-orig. draw_steps, draw_guidance: how the teacher draws synt. allowed_wrong: attributes that the rule of curation lets
    pass.
    """

    teacher_steps: int
    kd_steps: int
    lcm_steps: int
    records: int
    draw_steps: int = 10
    draw_guidance: float = 1.0
    allowed_wrong: int = 0

    @property
    def synthetic(self) -> int:
        """Pictures of synt."""
        return max(2, round(SYNT_SHARE * self.records))


def settings_of(
    preset: Preset,
    teacher_steps: int | None,
    kd_steps: int | None,
    lcm_steps: int | None,
    records: int | None,
) -> GridSettings:
    """The preset's own budget, but for what was asked. Guidance 1 and 10 steps leave the toy teacher its faults (docs/toy-grid.md)."""
    return GridSettings(
        teacher_steps=teacher_steps or preset.teacher.training.steps,
        kd_steps=kd_steps or preset.kd.training.steps,
        lcm_steps=lcm_steps or preset.lcm.training.steps,
        records=records or preset.pool // 2,
        draw_steps=min(10, preset.sampling.teacher_steps),
    )


def grid_folder(run: Run) -> Path:
    """Where the grid's own files are."""
    return run.out / "grid"


def open_grid(run: Run, settings: GridSettings, given: Mapping[str, Path] | None = None) -> None:
    """Record the settings in the grid's folder, or check that they are the recorded ones.

    given: the user's own variants; their listings are part of what must not change.

    Raises:
        BadInputError: the folder holds a grid of other settings, or of other networks.
    """
    path = grid_folder(run) / "grid.json"
    wanted: dict[str, Any] = as_json(settings) | {
        "prompts": run.preset.sampling.prompts,
        "guidance": run.preset.sampling.guidance,
        "seed": run.seed,
        "threads": torch.get_num_threads(),
        "networks": _networks(run),
    }
    if given:
        wanted["variants"] = {name: _listing(folder) for name, folder in given.items()}
    if not path.is_file():
        checkpoints.write_json(path, wanted)
        return
    found = checkpoints.read_json(path)
    differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    if differing:
        what = ", ".join(f"{key} {found.get(key)}, asked for {wanted.get(key)}" for key in differing)
        raise BadInputError(
            f"{path}: this grid was begun with {what}; use the same settings and networks, or another --out"
        )


def _listing(folder: Path) -> str:
    """A short name of an imagefolder's listing."""
    return digest({str(path.relative_to(folder)): caption for path, caption in captioned(folder)})


def _networks(run: Run) -> dict[str, str]:
    """What identifies the run's networks: their weights."""
    loaded = {
        "classifier": runs.load_classifier(run),
        "vae": runs.load_vae(run),
        "text_encoder": runs.load_text_encoder(run),
        "teacher": runs.load_unet(run, "teacher"),
    }
    return {name: networks.weights_digest(network) for name, network in loaded.items()}
