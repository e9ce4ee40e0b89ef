"""Precision for every layer: the verb `search`, and `profile --precision auto`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from npusim.cli_options import one_of, parse_dims, parse_shapes
from npusim.errors import BadInputError

if TYPE_CHECKING:
    from npusim.graph import Graph
    from npusim.precision_search.answer import Goal, Measured
    from npusim.precision_search.search import Planner
    from npusim.results import Profile
    from npusim.scheduler.problem import Infeasible

CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        help="An .npz of inputs on which error is measured, or 'seeded' for inputs drawn from a seed.",
    ),
]
WorkersOption = Annotated[
    int, typer.Option(help="Processes that measure error, each on sets of inputs of its own.", min=1, max=256)
]
CacheOption = Annotated[
    Path | None,
    typer.Option(help="Folder of measured errors (default: npusim/sensitivity in the user's cache)."),
]


@dataclass(frozen=True, slots=True)
class Question:
    """What both verbs are asked."""

    model: str
    calibration: str | None
    workers: int
    cache: Path | None
    quiet: bool
    unconditional: Path | None = None


def measured_model(question: Question, graph: Graph) -> Measured:
    """Errors of every layer and option."""
    from npusim.precision_search.answer import measure_model
    from npusim.sensitivity.run import Measuring

    how = Measuring(cache=question.cache, processes=question.workers, quiet=question.quiet)
    try:
        return measure_model(
            question.model, graph, question.calibration, how, unconditional=question.unconditional
        )
    except KeyboardInterrupt:
        sys.stderr.write("npusim: blocks that were measured are kept; the same command goes on from there\n")
        raise


@dataclass(frozen=True, slots=True)
class Added:
    """What choosing precisions adds to a profile: files beside the plan, lines on the screen."""

    write: Callable[[Path], None] = lambda directory: None
    lines: tuple[str, ...] = ()


def profiled(
    graph: Graph, precision: str, question: Question, limits: tuple[float | None, float | None, int | None], asked: Mapping[str, Any]
) -> tuple[Profile | Infeasible, Added]:  # fmt: skip
    """A profile in one precision, in those of a file, or in the best that keeps some limits.

    Args:
        limits: least SQNR in dB, longest latency in ms, most DRAM bytes; for `auto`.
        asked: options of `npusim.profile`.

    Raises:
        BadInputError: a bad file; for `auto`: no weights, no inputs, no limit, or nothing keeps them.
    """
    from npusim import api

    if precision != "auto":
        return api.profile(graph, precision=_named(precision, graph), **asked), Added()
    from npusim.precision_search.answer import Goal

    if asked["tiles"] not in ("none", "sram", "auto") or asked["pins"] or asked["why"]:
        raise BadInputError(
            "--precision auto goes with --tiles none, sram or auto, without SEGMENT=N and --why; profile the points that it writes"
        )
    measured, profile, figures = _chosen(question, graph, asked, Goal(*limits))
    return profile, Added(partial(write_scales, measured, profile), tuple(_chosen_lines(figures)))


def _named(precision: str, graph: Graph) -> str | dict[str, str]:
    from npusim.precisions import read_precisions

    return read_precisions(Path(precision), graph) if precision.endswith(".json") else precision


def _chosen(
    question: Question, graph: Graph, asked: Mapping[str, Any], goal: Goal
) -> tuple[Measured, Profile, dict[str, Any]]:
    """The network with the chosen precision of every layer, planned; and the chosen point with its executed error."""
    from npusim.hardware import load_npu
    from npusim.precision_search.answer import begin, choose, executed, point_figures
    from npusim.precision_search.search import Planner
    from npusim.progress import stage

    goal.check()
    measured = measured_model(question, graph)
    planner = Planner(
        npu=load_npu(asked["npu"]), tiles=asked["tiles"], segments=asked["segments"], policy=asked["policy"]
    )
    search = begin(measured, planner, quiet=question.quiet)
    figures = point_figures(search, choose(search, goal, quiet=question.quiet))
    profile = planner.profile(graph, figures["layers"])
    with stage("executing the chosen precisions", quiet=question.quiet):
        figures |= executed(measured, figures["layers"])
    return measured, profile, figures


def _chosen_lines(figures: Mapping[str, Any]) -> list[str]:
    """What was chosen, in sentences."""
    mixture = ", ".join(f"{n} layers in {o}" for o, n in figures["precisions"].items())
    lines = [
        f"precision: {mixture}",
        f"  SQNR {_db(figures['predicted_sqnr_db'])} predicted, {_db(figures['measured_sqnr_db'])} executed; "
        f"latency {figures['predicted_latency_ms']:.3f} ms predicted, {figures['latency_ms']:.3f} ms simulated",
    ]
    if "conditioning_sqnr_db" in figures:
        lines.append(f"  of the difference that the text makes: {_db(figures['conditioning_sqnr_db'])}")
    return lines


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def write_scales(measured: Measured, profile: Profile, directory: Path) -> None:
    """Write the scales beside a plan in integers, so that `npusim run` needs no `npusim quantize`."""
    from npusim.deployment import PLAN_FILE, SCALES_FILE
    from npusim.files import write_aside
    from npusim.scales import save_scales
    from npusim.sensitivity.subject import mixed_scales

    scales = mixed_scales(profile.graph, profile.plan.precisions, measured.subject.scales)
    if not scales:
        return
    plan = save_scales(directory / SCALES_FILE, scales, profile.plan, method="auto", source=measured.note)
    write_aside(directory / PLAN_FILE, lambda aside: aside.write_text(plan.to_json(), "utf-8"))


def search(
    model: Annotated[str, typer.Argument(help="An ONNX file with its weights.")],
    calibration: CalibrationOption = None,
    unconditional: Annotated[
        Path | None,
        typer.Option(
            help="An .npz with the text embedding of an empty prompt (default: zeros), for the loss of conditioning."
        ),
    ] = None,
    npu: Annotated[str, typer.Option(help="A preset (npusim npu list) or a TOML file.")] = "exynos2400",
    policy: Annotated[str, typer.Option(help="decoupled or serial.")] = "decoupled",
    tiles: Annotated[str, typer.Option(help="none, sram or auto.")] = "auto",
    segments: Annotated[str, typer.Option(help="none, attention or all.")] = "all",
    shape: Annotated[list[str] | None, typer.Option(help="Size of an input: NAME=1x4x64x64.")] = None,
    dim: Annotated[list[str] | None, typer.Option(help="Size of a symbolic dimension: NAME=2.")] = None,
    budgets: Annotated[
        int,
        typer.Option(
            help="Budgets of latency, of DRAM bytes and of error for which the best is sought.",
            min=1,
            max=100,
        ),
    ] = 6,
    save: Annotated[
        list[int] | None,
        typer.Option(help="Write this point, by its number, as a run directory with scales (runs/N)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of search.json, search.html, points and runs.")] = Path(
        "npusim-search"
    ),
    workers: WorkersOption = 1,
    cache: CacheOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print search.json instead of the table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress; print only what was written.")] = False,
) -> None:
    """The Pareto front of output error, latency, DRAM bytes and energy over the precision of every layer."""
    from npusim import api
    from npusim.hardware import load_npu
    from npusim.precision_search.search import Planner

    one_of(tiles, ("none", "sram", "auto"), "--tiles")
    one_of(segments, ("none", "attention", "all"), "--segments")
    one_of(policy, ("decoupled", "serial"), "--policy")
    graph = api.load_graph(model, shapes=parse_shapes(shape), dims=parse_dims(dim))
    planner = Planner(npu=load_npu(npu), tiles=tiles, segments=segments, policy=policy)  # type: ignore[arg-type]
    if out.exists() and not out.is_dir():
        raise BadInputError(f"{out}: is a file; give a folder with --out")
    measured = measured_model(Question(model, calibration, workers, cache, quiet, unconditional), graph)
    result = _searched(measured, planner, budgets, out, quiet=quiet)
    if json:
        from npusim.run_directory import dump_json

        sys.stdout.write(dump_json({k: v for k, v in result.items() if k != "layers"}))
    elif not quiet:
        _print_points(result)
    for number in save or ():
        typer.echo(f"run: {_save(measured, planner, result, number, out)}")
    if not json:
        typer.echo(f"page: {out / 'search.html'}")


def _searched(
    measured: Measured, planner: Planner, budgets: int, out: Path, *, quiet: bool
) -> dict[str, Any]:
    """Simulate points along the front and write what was found."""
    from npusim.precision_search.answer import begin
    from npusim.precision_search.report import search_result, write_search
    from npusim.progress import counter

    found = begin(measured, planner, quiet=quiet)
    with counter("points of the front", 3 * budgets, quiet=quiet) as done:
        found.explore(budgets, done)
    result = search_result(measured, found, quiet=quiet)
    write_search(result, out)
    return result


def _save(measured: Measured, planner: Planner, result: Mapping[str, Any], number: int, out: Path) -> Path:
    from npusim.run_directory import check_replaceable, write_run

    chosen = next((p for p in result["points"] if p["number"] == number), None)
    if chosen is None:
        raise BadInputError(f"--save is {number}; points are numbered from 0 to {len(result['points']) - 1}")
    directory = out / "runs" / str(number)
    check_replaceable(directory)
    profile = planner.profile(measured.graph, chosen["layers"])
    write_run(profile, directory)
    write_scales(measured, profile, directory)
    return directory


def _print_points(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from npusim.units import format_bytes

    console = Console()
    drawn = Table(
        title=f"{result['model']} on {result['npu']}: error on {result['inputs']}", title_justify="left"
    )
    executed = "measured_sqnr_db" in result["points"][0]
    drawn.add_column("point", no_wrap=True)
    drawn.add_column("layers", overflow="fold")
    for name in ("SQNR", *(("executed",) if executed else ()), "latency", "DRAM", "energy"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for p in result["points"]:
        mark = " *" if p["paper"] else ("" if p["on_front"] else " (beaten)")
        mixture = ", ".join(f"{n} {o}" for o, n in p["precisions"].items())
        drawn.add_row(
            f"{p['number']}{mark}", p["name"] if p["name"] != "mixed" else mixture, _db(p["predicted_sqnr_db"]),
            *((_db(p["measured_sqnr_db"]),) if executed else ()), f"{p['latency_ms']:.2f} ms", format_bytes(p["dram_bytes"]),
            f"{p['energy_mj']:.3g} mJ",
        )  # fmt: skip
    console.print(drawn)
    typer.echo("* the paper's choice")
    first = result["options"][0]
    typer.echo(
        f"SQNR of the output if one layer alone is in {first}, and the time that saves against w8a16; the worst:"
    )
    for layer in result["layers"][:5]:
        saved = layer["time_ms"].get("w8a16", 0.0) - layer["time_ms"].get(first, 0.0)
        typer.echo(f"  {_db(layer['sqnr_db'][first]):>9}  {saved:7.3f} ms  {layer['op']:11} {layer['name']}")
