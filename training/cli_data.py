"""`npusim train data`: one verb per step of the chain. Each reads one variant (union: several) and writes another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npusim.errors import BadInputError, CheckFailedError
from npusim.training.chain.pictures import MAX_PIXELS
from npusim.training.cli_pages import curate

if TYPE_CHECKING:
    from npusim.training.chain.step import Step, Work
    from npusim.training.chain.variant import Variant

app = typer.Typer(
    help="The data chain: L-orig to L-pp to L-pps, synt to synt-cur, and unions.", no_args_is_help=True
)

VariantArgument = Annotated[Path, typer.Argument(help="the variant to read", show_default=False)]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", help="the variant to write; run the same command again to go on", show_default=False
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="processes (default: one per core)", show_default=False)
]
MaxPixelsOption = Annotated[
    int, typer.Option("--max-pixels", min=1, help="larger pictures are set aside undecoded")
]
SeedOption = Annotated[int, typer.Option("--seed", help="determines all that is drawn")]
WorldOption = Annotated[
    str | None, typer.Option("--world", help="a procedural world: toy or toy-small", show_default=False)
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", help="a local folder: a network's, a pipeline's or a run's", show_default=False
    ),
]


def _work(workers: int | None = None, max_pixels: int = MAX_PIXELS) -> Work:
    from npusim.training.chain.choose import require
    from npusim.training.chain.step import Work
    from npusim.training.chain.stream import usable_cores

    require("PIL", "safetensors", "scipy")
    return Work(workers=workers or usable_cores(), max_pixels=max_pixels)


def _report(variant: Variant) -> None:
    from npusim.training.chain.step import described

    typer.echo(described(variant))


def _run(step: Step, variant: Path, out: Path, work: Work) -> None:
    from npusim.training.chain.step import run_step
    from npusim.training.chain.variant import open_variant

    _report(run_step(step, open_variant(variant), out, work))


@app.command()
def make(
    out: OutOption,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="an imagefolder with metadata.jsonl (file_name, text)", show_default=False
        ),
    ] = None,
    world: WorldOption = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="records of the world", show_default=False)
    ] = None,
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
) -> None:
    """Begin a chain: check every picture and caption of an imagefolder, or draw a toy world with a crawl's faults."""
    from npusim.training.chain.make import make_from_folder

    if (source is None) == (world is None):
        raise BadInputError("make: give either --from IMAGEFOLDER or --world NAME --count N")
    work = _work(workers, max_pixels)
    if source is not None:
        _report(make_from_folder(source, out, work))
        return
    if count is None:
        raise BadInputError(f"--world {world}: say how many records with --count")
    from npusim.training.chain.procedural import make_from_world
    from npusim.training.data.world import world as by_name

    _report(make_from_world(by_name(str(world)), count, seed, out, work))


@app.command()
def dedup(
    variant: VariantArgument,
    out: OutOption,
    distance: Annotated[
        int, typer.Option("--distance", help="bits of 64 that perceptual hashes may differ in")
    ] = 8,
    embed: Annotated[
        str, typer.Option("--embed", help="what confirms it: thumbnail, none, or clip (with --checkpoint)")
    ] = "thumbnail",
    cosine: Annotated[float, typer.Option("--cosine", help="that embeddings must reach")] = 0.98,
    checkpoint: CheckpointOption = None,
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
) -> None:
    """Keep the largest of each group of near copies."""
    from npusim.training.chain import choose
    from npusim.training.chain.dedup import Likeness
    from npusim.training.chain.dedup import dedup as drop_copies
    from npusim.training.chain.variant import open_variant

    work, parent = _work(workers, max_pixels), open_variant(variant)
    likeness = Likeness(distance=distance, embedder=choose.embedder(embed, checkpoint), cosine=cosine)
    _report(drop_copies(parent, out, likeness, work))


@app.command("filter")
def keep(
    variant: VariantArgument,
    out: OutOption,
    min_side: Annotated[int, typer.Option("--min-side", min=0, help="pixels of the shorter side")] = 300,
    max_aspect: Annotated[
        float | None,
        typer.Option("--max-aspect", min=1.0, help="longer side over shorter", show_default=False),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option("--clip", help="a local CLIP: also compare captions with pictures", show_default=False),
    ] = None,
    least: Annotated[
        float, typer.Option("--least", help="cosine that a caption must reach (with --clip)")
    ] = 0.2,
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
) -> None:
    """Set aside what is too small, too long, or captioned wrongly."""
    from npusim.training.chain import choose
    from npusim.training.chain.filter import AgreementFilter, SizeFilter

    size, agreement = SizeFilter(min_side, max_aspect), choose.agreement(clip)
    step = size if agreement is None else AgreementFilter(size, agreement, least)
    _run(step, variant, out, _work(workers if agreement is None else 1, max_pixels))


@app.command()
def crop(
    variant: VariantArgument,
    out: OutOption,
    by: Annotated[
        str, typer.Option("--by", help="gradient, or clip or classifier (with --checkpoint)")
    ] = "gradient",
    size: Annotated[
        int | None, typer.Option("--size", min=8, help="shrink larger squares to this", show_default=False)
    ] = None,
    checkpoint: CheckpointOption = None,
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
) -> None:
    """Cut the best of three squares: the centre or an extreme of the longer side."""
    from npusim.training.chain import choose
    from npusim.training.chain.crop import Crop

    step = Crop(choose.scorer(by, checkpoint), size)
    _run(step, variant, out, _work(workers if by == "gradient" else 1, max_pixels))


@app.command()
def recaption(
    variant: VariantArgument,
    out: OutOption,
    by: Annotated[
        str, typer.Option("--by", help="model or classifier (with --checkpoint), or labels (with --world)")
    ],
    checkpoint: CheckpointOption = None,
    world: WorldOption = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="what a chat model is asked", show_default=False)
    ] = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
) -> None:
    """Write new captions from the pictures; do it after cropping."""
    from npusim.training.chain import choose
    from npusim.training.chain.recaption import Recaption

    step = Recaption(choose.captioner(by, checkpoint, world, instruction))
    _run(step, variant, out, _work(1, max_pixels))


@app.command()
def synth(
    out: OutOption,
    count: Annotated[int, typer.Option("--count", min=1, help="records", show_default=False)],
    world: WorldOption = None,
    quota: Annotated[
        Path | None, typer.Option("--quota", help="a TOML file of attributes and shares", show_default=False)
    ] = None,
    prompts: Annotated[
        str, typer.Option("--prompts", help="plain, or model (with --prompt-model)")
    ] = "plain",
    prompt_model: Annotated[
        Path | None, typer.Option("--prompt-model", help="a local causal language model", show_default=False)
    ] = None,
    images: Annotated[
        str, typer.Option("--images", help="render, or run or pipeline (with --checkpoint)")
    ] = "render",
    checkpoint: CheckpointOption = None,
    stage: Annotated[str, typer.Option("--stage", help="with --images run: whose network")] = "teacher",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="denoising steps (run: 25)", show_default=False)
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=8, help="pixels (pipeline: its own)", show_default=False)
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Make prompts by attribute quota and draw them."""
    from npusim.training.chain import choose
    from npusim.training.chain.stats import statistics
    from npusim.training.chain.synth import synthesise
    from npusim.training.screen_data import print_coverage

    work, asked = _work(1), choose.asked(world, quota, seed, count)
    writer = choose.prompter(prompts, prompt_model, seed)
    drawer = choose.generator(images, checkpoint, asked, stage=stage, steps=steps, size=size, seed=seed)
    made = synthesise(asked, writer, drawer, count, out, work)
    _report(made)
    print_coverage(asked.quotas(), statistics(out)["coverage"])


app.command()(curate)


@app.command()
def union(
    variants: Annotated[list[Path], typer.Argument(help="two or more variants", show_default=False)],
    out: OutOption,
) -> None:
    """Join variants; a record that comes by two ways is kept once."""
    from npusim.training.chain.union import unite
    from npusim.training.chain.variant import open_variant

    _report(unite([open_variant(folder) for folder in variants], out, _work()))


@app.command()
def stats(
    variants: Annotated[list[Path], typer.Argument(help="one or more variants", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="read every picture again and compare its SHA-256; exit 1 if one differs"
        ),
    ] = False,
) -> None:
    """Say what variants hold: what was set aside and why, captions, coverage, lineage."""
    from npusim.training.chain.stats import damaged, statistics
    from npusim.training.chain.variant import open_variant
    from npusim.training.screen_data import print_statistics

    found = [statistics(folder) for folder in variants]
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        print_statistics(found)
    broken = [line for folder in variants if verify for line in damaged(open_variant(folder))]
    if broken:
        more = f" and {len(broken) - 5:,} more" if len(broken) > 5 else ""
        raise CheckFailedError(f"{len(broken):,} pictures are not as recorded: {'; '.join(broken[:5])}{more}")
