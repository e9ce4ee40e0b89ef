"""`npusim train data curate` and `npusim train prefer`: decisions of people, on a page of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from npusim.errors import BadInputError

if TYPE_CHECKING:
    from npusim.training.pages.prefer import Study

PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="of 127.0.0.1; 0 takes a free one")]
SeedOption = Annotated[int, typer.Option("--seed", help="determines samples and orders")]


def curate(
    variant: Annotated[Path, typer.Argument(help="the variant to curate", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="the curated variant; run the same command again to go on", show_default=False
        ),
    ],
    by: Annotated[
        str,
        typer.Option(
            "--by", help="page: a person; classifier or clip (with --checkpoint): an automatic judge"
        ),
    ] = "page",
    blind: Annotated[
        bool, typer.Option("--blind", help="random order, and nothing about where records are from")
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, help="curate so many, drawn by the seed", show_default=False),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="no page: write the variant from the decisions so far")
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="the judge's local folder", show_default=False)
    ] = None,
    sure: Annotated[
        float, typer.Option("--sure", min=0.0, max=1.0, help="classifier: that each attribute needs")
    ] = 0.8,
    correct: Annotated[
        bool,
        typer.Option("--correct/--remove", help="classifier: what to do where it reads another attribute"),
    ] = True,
    least: Annotated[float, typer.Option("--least", help="clip: cosine that a caption must reach")] = 0.2,
    port: PortOption = 0,
    seed: SeedOption = 0,
) -> None:
    """Accept, reject or correct records: by hand on a local page, or by an automatic judge (called one)."""
    from npusim.training.chain import choose
    from npusim.training.chain.step import Work, described, run_step
    from npusim.training.chain.variant import open_variant

    choose.require("PIL", "safetensors")
    parent = open_variant(variant)
    if by != "page":
        step = choose.judge(by, checkpoint, least=least, sure=sure, correct=correct)
        typer.echo(described(run_step(step, parent, out, Work())))
        return
    if checkpoint is not None:
        raise BadInputError(
            f"--checkpoint {checkpoint}: the page reads none; did you mean --by classifier or clip?"
        )
    from npusim.training.pages.curate import Review

    _curate_on_page(parent.folder, out, Review(blind=blind, sample=sample, seed=seed), finish, port)


def _curate_on_page(folder: Path, out: Path, review: Any, finish: bool, port: int) -> None:
    from npusim.training.chain.log import Log
    from npusim.training.chain.step import described
    from npusim.training.chain.variant import Builder, open_variant
    from npusim.training.pages.curate import DECISIONS, NAME, Curation, Queue, publish, replay
    from npusim.training.pages.server import serve

    parent = open_variant(folder)
    queue = Queue.of(parent, review)
    with Builder(out, NAME, review.settings(), [parent]) as builder, Log(out / DECISIONS) as log:
        page = Curation(queue, review, log, replay(out / DECISIONS))
        begun = builder.card.finished is not None or builder.done > 0
        if not (finish or begun or serve(page, port, _announce)):
            typer.echo(
                f"{_progress(page)}; run the same command to go on, or add --finish to leave out the rest"
            )
            return
        typer.echo(_progress(page))
        typer.echo(described(publish(builder, queue, page.stack)))


def _announce(address: str) -> None:
    typer.echo(f"open {address}\n(only this machine can; Ctrl-C stops, nothing decided is lost)")


def _progress(page: Any) -> str:
    """One line: how many are decided, the removal rate and the edit rate."""
    counts, decided = page.counts(), len(page.stack)
    rates = (f"{counts[kind] / decided:.1%}" if decided else "-" for kind in ("reject", "edit"))
    removed, edited = rates
    return f"{decided:,} of {page.total:,} decided: removed {removed}, corrected {edited}"


def prefer(
    sets: Annotated[
        list[Path] | None,
        typer.Argument(
            help="two imagefolders of the same captions, a and b; leave out to go on with a study",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="the study's folder")] = Path("npusim-runs/prefer"),
    participant: Annotated[
        str | None,
        typer.Option("--participant", help="a name or number of the person who answers", show_default=False),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option("--pairs", min=1, help="so many, drawn by the seed", show_default=False)
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="no page: the figures so far")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
    port: PortOption = 0,
    seed: SeedOption = 0,
) -> None:
    """Ask a person, blind, which of two pictures is better; win rate with intervals and an exact test."""
    from npusim.training.chain import choose
    from npusim.training.pages.prefer import open_study, pair_up

    choose.require("PIL", "safetensors", "scipy")
    if sets is not None and len(sets) != 2:
        raise BadInputError(f"prefer: takes two sets of pictures, {len(sets)} were given")
    study = open_study(out, pair_up(sets[0], sets[1], pairs, seed) if sets else None)
    if not (report or as_json):
        _ask(study, out, participant, port)
    _print_figures(study, out, as_json)


def _ask(study: Study, out: Path, participant: str | None, port: int) -> None:
    from npusim.training.chain.log import Log
    from npusim.training.pages.prefer import ANSWERS, Preference, standing
    from npusim.training.pages.server import serve

    name = (participant or "").strip()
    if not name or len(name) > 60:
        raise BadInputError(
            "--participant: say who answers, in 1 to 60 characters (P1 will do), or ask for --report"
        )
    with Log(out / ANSWERS) as log:
        page = Preference(study, name, log, standing(out)[name])
        if not serve(page, port, _announce):
            typer.echo(
                f"{len(page.answers):,} of {len(page.order):,} answered; run the same command to go on"
            )


def _print_figures(study: Study, out: Path, as_json: bool) -> None:
    from npusim.training.metrics.preference import summarise
    from npusim.training.pages.prefer import standing
    from npusim.training.screen_data import print_preference

    answers = [answer for given in standing(out).values() for answer in given]
    figures = {"a_set": study.a, "b_set": study.b, **summarise(answers, study.seed)}
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    else:
        print_preference(figures)
