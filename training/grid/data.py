"""The grid's data: variants made once from one crawl and one teacher, kept as pools of latents and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from npusim.errors import BadInputError
from npusim.training import checkpoints, text, vae
from npusim.training import run as runs
from npusim.training.data.source import Pool
from npusim.training.distillation import Surroundings, surroundings
from npusim.training.draw import Draw
from npusim.training.grid import variants
from npusim.training.grid.crawl import Bytes, crawl, to_bytes, to_floats
from npusim.training.grid.plan import BETTER, VARIANTS
from npusim.training.grid.settings import GridSettings, grid_folder
from npusim.training.grid.variants import Reader, Records
from npusim.training.run import Run
from npusim.training.sample import Contender, Parts, Studio, save_sheet
from npusim.training.session import Session

SHEET = 32


def make_data(session: Session, settings: GridSettings, given: Mapping[str, Path]) -> None:
    """Make every variant, unless all are there: pools, sheets and data.json, published as one folder.

    Args:
        given: variants that the user made, each an imagefolder with metadata.jsonl (`npusim train data` leaves such).

    Raises:
        BadInputError: a given folder cannot be read.
    """
    run, folder = session.run, grid_folder(session.run) / "data"
    if (folder / "data.json").is_file():
        return
    shared = surroundings(run)
    reader = Reader(runs.load_classifier(run), run.world())
    made, report = _variants(run, settings, shared, reader, given)

    def fill(aside: Path) -> None:
        for name, records in made.items():
            report[name] = variants.faults(records, reader, Draw(run.seed, f"faults {name}", 0).numpy())
            session.say(f"data {name}: " + ", ".join(f"{k} {v}" for k, v in report[name].items()))
            if records.captions:
                _write_pool(aside / f"{name}.safetensors", records, shared, run.preset.vae.patch)
                sheet = torch.from_numpy(to_floats(records.pictures[:SHEET]))
                save_sheet(aside / f"{name}.png", sheet)
                checkpoints.write_json(aside / f"{name}-captions.json", records.captions[:SHEET])
        checkpoints.write_json(aside / "data.json", report)

    checkpoints.publish_folder(folder, fill)


def _variants(
    run: Run, settings: GridSettings, shared: Surroundings, reader: Reader, given: Mapping[str, Path]
) -> tuple[dict[str, Records], dict[str, Any]]:
    """Every variant by name, given or made, and what was done."""
    world, report = run.world(), dict[str, Any]()
    made = {name: variants.read_records(folder, world) for name, folder in given.items()}
    if "L-orig" not in made or "L-pp" not in made:
        found = crawl(world, Draw(run.seed, "crawl", 0).numpy(), settings.records)
        made.setdefault("L-orig", variants.as_found(found))
        if "L-pp" not in made:
            made["L-pp"], report["cleaning"] = variants.cleaned(found, reader)
    if "L-pps" not in made:
        rng = Draw(run.seed, "recaption", 0).numpy()
        made["L-pps"] = variants.recaptioned(made["L-pp"], reader, rng)
    if "synt" not in made:
        rng = Draw(run.seed, "quota", 0).numpy()
        made["synt"] = variants.synthetic(world, rng, settings.synthetic, _drawing(run, settings, shared))
    synt = made["synt"]
    half = made.setdefault("synt-half", synt.take(np.arange(len(synt.captions) // 2)))
    if "synt-cur" not in made:
        made["synt-cur"] = variants.curated_by_rule(half, reader, settings.allowed_wrong)
    removed = len(half.captions) - len(made["synt-cur"].captions)
    report["curation"] = {"read": len(half.captions), "removed": removed}
    for second in ("synt", "synt-cur"):
        made.setdefault(f"L-pps+{second}", made["L-pps"].plus(made[second]))
    return {name: made[name] for name in VARIANTS}, report


def _drawing(run: Run, settings: GridSettings, shared: Surroundings) -> Callable[[list[str]], Bytes]:
    """The teacher as synt's image generator."""
    sampling = replace(run.preset.sampling, guidance=settings.draw_guidance)
    artist = replace(run, preset=replace(run.preset, sampling=sampling))
    studio = Studio(artist, Parts(shared.autoencoder, shared.text_encoder, shared.tokenizer))

    def draw(captions: list[str]) -> Bytes:
        return to_bytes(
            studio.pictures(Contender(BETTER, settings.draw_steps), captions, "synt").clamp(-1, 1).numpy()
        )

    return draw


def _write_pool(path: Path, records: Records, shared: Surroundings, patch: int) -> None:
    latents = []
    with torch.no_grad():
        for part in np.array_split(records.pictures, max(1, len(records.pictures) // 256)):
            latents.append(vae.encode(shared.autoencoder, torch.from_numpy(to_floats(part)), patch))
    tokens = text.tokenize(shared.tokenizer, records.captions)
    checkpoints.write_tensors(path, {"latents": torch.cat(latents), "tokens": tokens}, {})


def load_pool(run: Run, variant: str) -> Pool | None:
    """A variant as a source of batches; None where it holds no picture (a rule may reject all of them).

    Raises:
        BadInputError: its file is missing or corrupt.
    """
    folder = grid_folder(run) / "data"
    facts = checkpoints.read_json(folder / "data.json")
    if variant not in facts:
        raise BadInputError(f"{folder}: holds no data {variant!r}; there are {', '.join(VARIANTS)}")
    if facts[variant]["records"] == 0:
        return None
    tensors, _ = checkpoints.read_tensors(folder / f"{variant}.safetensors")
    return Pool(tensors["latents"], tensors["tokens"])
