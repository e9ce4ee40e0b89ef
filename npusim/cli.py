"""The command line: parse, call the API, print. Exit codes: 0 done, 1 a check failed, 2 bad input."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from npusim import cli_export, cli_models, cli_runs, cli_search, cli_sweep
from npusim.cli_options import one_of, parse_dims, parse_shapes
from npusim.errors import BadInputError, CheckFailedError, NpusimError
from npusim.training.cli import app as training_app

if TYPE_CHECKING:
    from npusim.results import Profile

app = typer.Typer(
    name="npusim", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="NPU simulator and profiler: how fast a network runs on a described NPU, where the time goes, and how to tile it.",
)  # fmt: skip
npu_app = typer.Typer(no_args_is_help=True, help="Hardware descriptions.", rich_markup_mode=None)
app.add_typer(npu_app, name="npu")

_PRECISIONS = ("w8a16", "w8a8", "w16a16", "fp16", "fp32")
_SEGMENTS = ("none", "attention", "all")
_POLICIES = ("decoupled", "serial")


#: Planning makes many small objects and hardly a cycle: collecting rarely saves an eighth of the time for a few megabytes.
_COLLECT = (100_000, 50, 50)
#: Exit code after Ctrl-C, as shells have it.
_INTERRUPTED = 130


def main() -> None:
    """Entry point of the `npusim` command."""
    gc.set_threshold(*_COLLECT)
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # typer turns Ctrl-C into this value
            raise KeyboardInterrupt
    except CheckFailedError as error:
        _fail(str(error), 1)
    except NpusimError as error:
        _fail(str(error), 2)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted; no unfinished file is kept", _INTERRUPTED)
    except Exception as error:
        if hasattr(error, "format_message"):  # an argument that click refused
            _fail(f"{error.format_message()} (see --help)", 2)
        raise


def _fail(sentence: str, code: int) -> None:
    safe = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in sentence)
    sys.stderr.write(f"npusim: {safe}\n")
    sys.exit(code)


def _parse_tiles(text: str) -> tuple[str, dict[str, int]]:
    """`auto`, `sram`, `none` or a count, then `SEGMENT=N` pins, separated by commas."""
    rule, pins = "auto", {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, count = part.rpartition("=")
        number = count if equals else part
        counted = bool(equals) or part not in ("none", "sram", "auto")
        if counted and not (number.isdecimal() and 0 < int(number) < 10**7):
            raise BadInputError(
                f"--tiles is '{part}'; allowed are none, sram, auto, a count from 1, or SEGMENT=count"
            )
        if equals:
            pins[name] = int(number)
        else:
            rule = part
    return rule, pins


def _on_the_command_line(context: typer.Context, option: str) -> bool:
    """Whether the user gave an option, rather than its default."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        import npusim

        typer.echo(f"npusim {npusim.__version__}")
        raise typer.Exit


@app.command()
def profile(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="An ONNX file, the name of a zoo network (npusim models list), or a pipeline's TOML (edgefusion.toml, ...)."
        ),
    ],
    tiles: Annotated[
        str,
        typer.Option(
            help="none, sram (fewest tiles that fit, the paper's rule), auto, or a count; SEGMENT=N pins one."
        ),
    ] = "auto",
    segments: Annotated[
        str,
        typer.Option(
            help="Kinds of layers joined tile by tile: none, attention (as in the paper), all (row chains too)."
        ),
    ] = "all",
    precision: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(_PRECISIONS)}; a JSON file with one per layer; or auto: chosen layer by layer (docs/precision.md)."
        ),
    ] = "w8a16",
    min_sqnr: Annotated[
        float | None, typer.Option(help="With --precision auto: least SQNR of the output, in dB.")
    ] = None,
    max_latency: Annotated[
        float | None, typer.Option(help="With --precision auto: longest latency, in ms.", min=0)
    ] = None,
    max_dram: Annotated[
        int | None, typer.Option(help="With --precision auto: most DRAM bytes.", min=0)
    ] = None,
    calibration: cli_search.CalibrationOption = None,
    workers: cli_search.WorkersOption = 1,
    cache: cli_search.CacheOption = None,
    npu: Annotated[str, typer.Option(help="A preset (npusim npu list) or a TOML file.")] = "exynos2400",
    policy: Annotated[
        str, typer.Option(help="decoupled: one in-order queue per engine; serial: one step at a time.")
    ] = "decoupled",
    shape: Annotated[list[str] | None, typer.Option(help="Size of an input: NAME=1x4x64x64.")] = None,
    dim: Annotated[list[str] | None, typer.Option(help="Size of a symbolic dimension: NAME=2.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory (default ./npusim-runs/<model>).")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of the screen.")] = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print the layer table as CSV instead of the screen.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress; print only where the run was written.")
    ] = False,
    images: Annotated[
        str | None, typer.Option(help="png or svg: also write the figures (extra images) into RUN/images.")
    ] = None,
    why: Annotated[
        bool,
        typer.Option(
            "--why",
            help="Also say what binds each segment, what other tile counts cost, what more hardware would buy.",
        ),
    ] = False,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps of a pipeline (default: its own).", min=1, max=1000)
    ] = None,
) -> None:
    """Plan and simulate a network or a pipeline; write the run directory and print one screen."""
    rule, pins = _parse_tiles(tiles)
    one_of(segments, _SEGMENTS, "--segments")
    goal = {
        "--min-sqnr": min_sqnr,
        "--max-latency": max_latency,
        "--max-dram": max_dram,
        "--calibration": calibration,
    }
    _check_precision(precision, goal)
    one_of(policy, _POLICIES, "--policy")
    shapes, dims = parse_shapes(shape), parse_dims(dim)
    if json and csv:
        raise BadInputError("--json and --csv both want stdout; give one of them")
    import gc

    gc.disable()  # a short life that frees next to nothing: collecting cycles would cost a tenth of the time
    if model.endswith(".toml"):
        from npusim.cli_pipeline import profile_command, refuse

        if precision == "auto" or precision.endswith(".json"):
            raise BadInputError(
                "--precision auto or a file is for one network; give a network of the pipeline as MODEL"
            )
        refuse({"--why": why, "--csv": csv, "--shape": shape, "--dim": dim, "SEGMENT=N": pins})
        given = {"tiles": rule, "segments": segments, "precision": precision}
        changes = {key: value for key, value in given.items() if _on_the_command_line(context, key)}
        profile_command(
            model, changes, steps=steps, npu=npu, policy=policy, out=out, json=json, quiet=quiet, images=images, open_report=open_report
        )  # fmt: skip
        return
    if steps is not None:
        raise BadInputError("--steps is for a pipeline's TOML; a network is profiled for one evaluation")
    from npusim import api
    from npusim.progress import stage
    from npusim.run_directory import check_replaceable, default_directory, write_run
    from npusim.scheduler.problem import Infeasible

    if images is not None:
        from npusim.reports.images import check_images

        check_images(images)
    with stage(f"reading {model}", quiet=quiet):
        graph = api.load_graph(model, shapes=shapes, dims=dims)
    directory = out if out is not None else default_directory(graph.name)
    check_replaceable(directory)
    question = cli_search.Question(model, calibration, workers, cache, quiet)
    asked: dict[str, Any] = {
        "tiles": rule, "segments": segments, "npu": npu, "policy": policy, "pins": pins, "why": why,
    }  # fmt: skip
    with stage(f"planning and simulating {len(graph.layers)} layers", quiet=quiet or precision == "auto"):
        found, added = cli_search.profiled(
            graph, precision, question, (min_sqnr, max_latency, max_dram), asked
        )
    if isinstance(found, Infeasible):
        raise BadInputError(found.sentence())
    with stage(f"writing {directory}", quiet=quiet):
        write_run(found, directory, images=images)
        added.write(directory)
    _show_profile(found, directory, added.lines, json=json, csv=csv, quiet=quiet)
    if open_report:
        typer.launch((directory / "report.html").resolve().as_uri())


def _show_profile(
    found: Profile, directory: Path, lines: Sequence[str], *, json: bool, csv: bool, quiet: bool
) -> None:
    """Print what was asked for: the summary, the layer table, where the report is, or one screen."""
    from npusim.run_directory import dump_json

    report = directory / "report.html"
    if json:
        sys.stdout.write(dump_json(found.summary))
    elif csv:
        sys.stdout.write(found.layers_csv())
    elif quiet:
        typer.echo(f"report: {report}")
    else:
        from rich.console import Console

        from npusim.screen import print_profile

        print_profile(Console(), found)
        for line in lines:
            typer.echo(line)
        typer.echo(f"report: {report}")


def _check_precision(precision: str, goal: Mapping[str, object]) -> None:
    """A name, a JSON file, or auto; what only auto understands is refused elsewhere."""
    if precision != "auto":
        given = [option for option, value in goal.items() if value is not None]
        if given:
            raise BadInputError(f"{given[0]} goes with --precision auto; --precision is '{precision}'")
    if not precision.endswith(".json"):
        one_of(precision, (*_PRECISIONS, "auto", "a file ending in .json"), "--precision")


@npu_app.command("list")
def npu_list() -> None:
    """The shipped hardware descriptions."""
    from npusim.hardware import load_npu, preset_names

    for name in preset_names():
        typer.echo(f"{name:14} {load_npu(name).title}")


@npu_app.command("show")
def npu_show(npu: Annotated[str, typer.Argument(help="A preset or a TOML file.")]) -> None:
    """Every number of a hardware description with its source."""
    from npusim.hardware import load_npu

    described = load_npu(npu)
    typer.echo(f"{described.name}: {described.title}")
    for path, value in described.numbers():
        shown = f"{value:,}" if isinstance(value, int) and value >= 10**4 else f"{value:g}"
        typer.echo(f"  {path:42} {shown:>18}  {described.source_of(path)}")


@npu_app.command("fit")
def npu_fit(
    targets: Annotated[Path, typer.Argument(help="TOML: parameters, runs and measured figures.")],
) -> None:
    """Fit numbers of a hardware description to measurements; print numbers, residuals and how far each is determined."""
    from npusim.fit import fit, load_targets
    from npusim.screen_fit import print_fit

    print_fit(fit(load_targets(targets)))


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="edgefusion")],
    table: Annotated[int | None, typer.Option(help="5, 6 or 7; default 6 and 7.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda: measure Table 5 on this machine's GPU (extra models).")
    ] = None,
    runs: Annotated[int, typer.Option(help="Pictures timed per row of Table 5.", min=1)] = 50,
) -> None:
    """The paper's tables, ours beside theirs, computed on the spot."""
    one_of(paper, ("edgefusion",), "the paper")
    if table not in (None, 5, 6, 7):
        raise BadInputError(f"--table is {table}; allowed are 5, 6, 7")
    if device is not None:
        one_of(device, ("cuda",), "--device")
        if table != 5:
            raise BadInputError(
                "--device is for Table 5, which is measured on a GPU; give --table 5, or leave --device out"
            )
    from rich.console import Console

    from npusim.reproduce import print_edgefusion

    print_edgefusion(Console(), tables=(table,) if table else (6, 7), device=device, runs=runs)


app.command("compare")(cli_runs.compare)
app.command("check")(cli_runs.check)
app.command("quantize")(cli_runs.quantize)
app.command("run")(cli_runs.execute)
app.command("export")(cli_export.export)
app.command("sweep")(cli_sweep.sweep)
app.command("search")(cli_search.search)
app.add_typer(cli_models.app, name="models")
app.add_typer(training_app, name="train")
