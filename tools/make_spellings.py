"""Write the spellings of BK-SDM-Tiny's U-Net that the reader's tests compare.

Run `python tools/make_spellings.py [SPELLING...]`. The zoo ships the network as dynamo 18 and legacy 17 write
it; these are six more spellings, stripped of weights and compressed, into tests/fixtures/spellings.
Exports take up to a minute and 7 GB each, onnxslim minutes and up to 12 GB: not for CI. `onnxslim` and
`onnxruntime` must be installed for theirs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx

from npusim.models import onnx_export, strip, zoo

NETWORK = "bk-sdm-tiny"
FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "spellings"


def exported(
    exporter: onnx_export.Exporter, opset: int, dtype: onnx_export.Dtype, *, distinct: bool = True
) -> onnx.ModelProto:
    """The stripped graph as torch's exporters write it."""
    architecture = zoo.architecture(NETWORK)
    network = onnx_export.seeded_network(architecture, dtype=dtype, distinct=distinct)
    spelling = onnx_export.spelling_of(exporter, opset, dtype)
    return onnx_export.stripped_graph(network, architecture, spelling)


def legacy_file(folder: Path) -> Path:
    """The legacy exporter's fp32 file with its weights inside: what both optimizers read."""
    architecture = zoo.architecture(NETWORK)
    network = onnx_export.seeded_network(architecture)
    path = folder / "legacy.onnx"
    onnx_export.write_legacy(network, architecture, onnx_export.spelling_of("legacy"), path)
    return path


def slimmed() -> onnx.ModelProto:
    """onnxslim's output for the legacy fp32 export."""
    import onnxslim

    with tempfile.TemporaryDirectory() as folder:
        return strip.strip(onnxslim.slim(onnx.load(legacy_file(Path(folder)))))


def optimized() -> onnx.ModelProto:
    """What onnxruntime's `unet` optimizer makes of the legacy fp32 export: com.microsoft operators."""
    from onnxruntime.transformers import optimizer

    with tempfile.TemporaryDirectory() as folder:
        optimized = optimizer.optimize_model(str(legacy_file(Path(folder))), model_type="unet", opt_level=0)
        saved = Path(folder) / "optimized.onnx"
        optimized.save_model_to_file(str(saved), use_external_data_format=True)  # adds the opset imports
        return strip.strip(onnx.load(saved, load_external_data=True))


SPELLINGS: dict[str, Callable[[], onnx.ModelProto]] = {
    "dynamo18-fp16": lambda: exported("dynamo", 18, "fp16"),
    "dynamo21": lambda: exported("dynamo", 21, "fp32"),
    "dynamo23": lambda: exported("dynamo", 23, "fp32"),
    "legacy17-untrained": lambda: exported(
        "legacy", 17, "fp32", distinct=False
    ),  # equal norms merged: Identity
    "legacy17-fp16": lambda: exported("legacy", 17, "fp16"),
    "onnxslim": slimmed,
    "ort-unet": optimized,
}


def main() -> None:
    """Make the named spellings, by default all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="SPELLING", choices=[[], *SPELLINGS])
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().names or SPELLINGS:
        begin = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own
            model = SPELLINGS[name]()
        path = FIXTURES / f"{NETWORK}.{name}.onnx.xz"
        path.write_bytes(strip.compress(model))
        seconds = time.monotonic() - begin
        print(f"{path.name}: {len(model.graph.node)} nodes, {path.stat().st_size:,} bytes, {seconds:.0f} s")


if __name__ == "__main__":
    main()
