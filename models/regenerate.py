"""Write the zoo's graphs again: `python -m npusim.models.regenerate [NAME...] [--spelling dynamo18]`.

Each graph is exported by torch, stripped of its weights and compressed. With the same versions of torch,
diffusers and onnxscript the files come out byte-identical.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from npusim.models import onnx_export, strip, zoo

GRAPHS = Path(__file__).parent / "graphs"
_DYNAMO = onnx_export.spelling_of("dynamo")
_LEGACY = onnx_export.spelling_of("legacy")
SPELLINGS = {spelling.name: spelling for spelling in (_DYNAMO, _LEGACY)}
LEGACY_NAMES = frozenset(
    {"bk-sdm-tiny"}
)  # the others ship as dynamo18 only: legacy export takes minutes and GBs

GUIDED = frozenset({"sd-v1.5"})  # also ship at batch 2: both halves of a guided step at once

PLACEHOLDERS = frozenset({"sdxl", "ssd-1b", "snapfusion-like"})  # 3 to 10 GB of weights


def regenerate(name: str, spelling: onnx_export.Spelling, folder: Path = GRAPHS, *, batch: int = 1) -> Path:
    """Export, strip and compress one graph; the file `<name>.<spelling>.onnx.xz` is replaced as a whole."""
    architecture = zoo.architecture(name).at_batch(batch)
    placeholders = name in PLACEHOLDERS or batch > 1
    build = onnx_export.placeholder_network if placeholders else onnx_export.seeded_network
    network = build(architecture, dtype=spelling.dtype)
    model = onnx_export.stripped_graph(network, architecture, spelling)
    path = folder / f"{name}.{zoo.batched(spelling.name, batch)}.onnx.xz"
    partial = path.with_suffix(".partial")
    partial.write_bytes(strip.compress(model))
    partial.replace(path)
    return path


def wanted(names: Sequence[str], spelling: str | None) -> Iterator[tuple[str, onnx_export.Spelling, int]]:
    """The (name, spelling, batch) triples to write: by default every shipped one."""
    for name in names or zoo.names():
        zoo.card(name)
        if spelling in (None, _DYNAMO.name):
            yield name, _DYNAMO, 1
        if spelling in (None, zoo.batched(_DYNAMO.name, 2)) and name in GUIDED:
            yield name, _DYNAMO, 2
        if spelling == _LEGACY.name or (spelling is None and name in LEGACY_NAMES):
            yield name, _LEGACY, 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m npusim.models.regenerate`."""
    parser = argparse.ArgumentParser(prog="python -m npusim.models.regenerate", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks to export; default: all")
    parser.add_argument(
        "--spelling",
        choices=sorted({*SPELLINGS, zoo.batched(_DYNAMO.name, 2)}),
        help="default: all that ship",
    )
    options = parser.parse_args(arguments)
    for name, spelling, batch in wanted(options.names, options.spelling):
        begin = time.monotonic()
        path = regenerate(name, spelling, batch=batch)
        seconds = time.monotonic() - begin
        sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes, {seconds:.0f} s\n")
        sys.stdout.flush()
        gc.collect()


if __name__ == "__main__":
    main()
