"""Verbs on run directories: compare two, check one against limits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npusim.cli_options import one_of, parse_dims, parse_shapes
from npusim.errors import BadInputError, CheckFailedError
from npusim.progress import stage

if TYPE_CHECKING:
    from npusim.execute.compare import LayerLoss

RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of the screen.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print only what was written.")]


def compare(
    a: RunArgument,
    b: RunArgument,
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("npusim-compare.html"),
    json: JsonOption = False,
    quiet: QuietOption = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """What got slower or heavier from run A to run B, on screen and as a page."""
    from npusim.files import write_aside
    from npusim.reports.compare import changes, write_compare
    from npusim.run_directory import dump_json, is_pipeline_run, load_summary

    for run in (a, b):
        if is_pipeline_run(run):
            raise BadInputError(
                f"{run}: is a pipeline's run; give two of its networks' runs, such as {run / 'unet'}, or check it with 'npusim check'"
            )
    found = sorted(changes(load_summary(a), load_summary(b)), key=lambda c: -abs(c.share))
    write_aside(out, lambda path: write_compare(a, b, path))
    if json:
        sys.stdout.write(dump_json([asdict(change) for change in found]))
    else:
        if not quiet:
            from npusim.screen import print_changes

            print_changes(f"{a} -> {b}", found)
        typer.echo(f"page: {out}")
    if open_page:
        typer.launch(out.resolve().as_uri())


def check(
    run: RunArgument,
    max_dram_bytes: Annotated[
        int | None, typer.Option(help="Most DRAM bytes, read and written.", min=0)
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Longest latency under the planned policy.", min=0)
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="A run directory or summary.json not to be worse than.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Percent by which the baseline may be exceeded.", min=0)
    ] = 0.0,
    json: JsonOption = False,
) -> None:
    """The DMA-cost gate: exit 1, and the segments to blame, when a limit does not hold."""
    from npusim.check import check_baseline, check_limits, load_cost
    from npusim.run_directory import dump_json

    if max_dram_bytes is None and max_latency_ms is None and baseline is None:
        raise BadInputError("nothing to check: give --max-dram-bytes, --max-latency-ms or --baseline")
    summary = load_cost(run)
    found = check_limits(summary, max_dram_bytes=max_dram_bytes, max_latency_ms=max_latency_ms)
    if baseline is not None:
        found += check_baseline(summary, load_cost(baseline), tolerance_percent=tolerance)
    if json:
        sys.stdout.write(dump_json([asdict(violation) for violation in found]))
    if found:
        raise CheckFailedError(f"{run}: " + "; ".join(v.sentence() for v in found))
    if not json:
        typer.echo(f"{run}: within its limits")


ModelOption = Annotated[
    Path, typer.Option("--model", help="The ONNX file, with its weights, that was profiled.")
]
ShapeOption = Annotated[list[str] | None, typer.Option(help="Size of an input: NAME=1x4x64x64, as profiled.")]
DimOption = Annotated[
    list[str] | None, typer.Option(help="Size of a symbolic dimension: NAME=2, as profiled.")
]


def quantize(
    run: RunArgument,
    model: ModelOption,
    calibration: Annotated[
        Path | None, typer.Option(help="An .npz of inputs (default: seeded ones).")
    ] = None,
    method: Annotated[str, typer.Option(help="auto, minmax, percentile or mse.")] = "auto",
    seed: Annotated[int, typer.Option(help="Determines seeded inputs.")] = 0,
    shape: ShapeOption = None,
    dim: DimOption = None,
) -> None:
    """Measure activation ranges on real weights; write scales.npz beside the plan."""
    from npusim.deployment import SCALES_FILE, quantize_directory

    one_of(method, ("auto", "minmax", "percentile", "mse"), "--method")
    shapes, dims = parse_shapes(shape), parse_dims(dim)
    with stage("measuring ranges"):
        found = quantize_directory(
            run, model, calibration=calibration, method=method, seed=seed, shapes=shapes, dims=dims  # type: ignore[arg-type]
        )  # fmt: skip
    print_notes(found.notes)
    typer.echo(f"wrote {run / SCALES_FILE}: {len(found.scales or {})} scales")


def execute(
    run: RunArgument,
    model: Annotated[
        Path | None,
        typer.Option(help="The ONNX file, with its weights, that was profiled (not for a pipeline's run)."),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="An .npz with one array per input (default: seeded).")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare with onnxruntime (a pipeline: diffusers) in FP32.")
    ] = False,
    order: Annotated[
        str,
        typer.Option(
            help="parallel, serial, or random: one at a time, in any order that the dependencies allow."
        ),
    ] = "parallel",
    seed: Annotated[int, typer.Option(help="Determines the random order and seeded inputs.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="An .npz for the outputs; of a pipeline the PNG (default ./<pipeline>.png)."),
    ] = None,
    shape: ShapeOption = None,
    dim: DimOption = None,
    prompt: Annotated[str | None, typer.Option(help="What a pipeline's run shall draw.")] = None,
) -> None:
    """Execute exactly the commands that were simulated, on real weights; a pipeline's run draws a picture."""
    one_of(order, ("parallel", "serial", "random"), "--order")
    if prompt is not None or model is None:
        from npusim.cli_pipeline import run_command

        given = {"--model": model, "--inputs": inputs, "--shape": shape, "--dim": dim}
        run_command(run, prompt, given, verify=verify, order=order, seed=seed, out=out)
        return
    from npusim.deployment import run_directory

    shapes, dims = parse_shapes(shape), parse_dims(dim)
    with stage("executing"):
        result = run_directory(
            run, model, inputs=inputs, verify=verify, order=order, seed=seed, shapes=shapes, dims=dims  # type: ignore[arg-type]
        )  # fmt: skip
    print_notes(result.notes)
    for name, values in result.outputs.items():
        typer.echo(
            f"{name}: {list(values.shape)}, from {values.min():.6g} to {values.max():.6g}, mean {values.mean():.6g}"
        )
    for name, close in result.closeness.items():
        typer.echo(
            f"  against onnxruntime in FP32: SQNR {close.sqnr_db:.1f} dB, cosine {close.cosine:.6f}, "
            f"largest error {close.max_error:.3g} ({close.relative_error:.2g} of the largest value of {name})"
        )
    _print_losses(result.layers)
    if verify:
        from npusim.run_directory import REPORT, VERIFIED
        from npusim.verification import record

        record(run, result)
        typer.echo(f"wrote {run / VERIFIED} and {run / REPORT}")
    if out is not None:
        from npusim.files import write_aside

        write_aside(out, lambda path: _save(path, result.outputs))
        typer.echo(f"wrote {out}")


def print_notes(notes: Sequence[str]) -> None:
    """What was assumed, or what the user should know."""
    for note in notes:
        typer.echo(f"note: {note}")


def _print_losses(layers: Sequence[LayerLoss]) -> None:
    """The layers that add most noise, as the page orders them."""
    worst = sorted((x for x in layers if x.noise_added > 0), key=lambda x: -x.noise_added)[:5]
    if worst:
        typer.echo("layers that lose most (noise added as a share of the signal's power, SQNR after):")
    for loss in worst:
        typer.echo(
            f"  {100 * loss.noise_added:8.3g} %  {loss.closeness.sqnr_db:6.1f} dB  {loss.op:10} {loss.name}"
        )


def _save(path: Path, outputs: Mapping[str, object]) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, **outputs)  # type: ignore[arg-type]
