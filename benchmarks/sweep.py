"""What a sweep costs beside its points: `python benchmarks/sweep.py [STEPS]`.

Prints processor time per point, that of the points themselves and of the engine around them, and the gain of a
second worker. One transformer block (1024 x 640, 8 heads), the
paper's rule, SRAM from 1 to 16 MiB, bandwidth and lanes around the Exynos 2400's. Processor time is counted over all processes and hardly
moves with what else the machine does; the gain of two workers needs two idle cores.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from npusim.sweep.run import Options, open_sweep, run_sweep

SPEC = """
networks = ["block.onnx"]
[axes]
tiles = "sram"
"sram.sram_bytes" = { range = { from = 1048576, to = 16777216, steps = 5, scale = "log" } }
"vector_engine.lanes" = { range = { from = 16, to = 64, steps = STEPS } }
bandwidth = { keys = ["dram.dram_shared_bytes_per_s", "dma.channel_bytes_per_s"], range = { from = 14e9, to = 67e9, steps = STEPS } }
"""


def processor_s() -> float:
    """Processor seconds of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def run(folder: Path, steps: int, jobs: int) -> tuple[float, float, float, int]:
    """Of a sweep of 5 x steps x steps points: processor seconds in all, those of its points, seconds, and points."""
    spec = folder / f"s{steps}.toml"
    spec.write_text(SPEC.replace("STEPS", str(steps)), "utf-8")
    began, used = time.perf_counter(), processor_s()
    with tempfile.TemporaryDirectory() as out:
        sweep = open_sweep(spec, Path(out))
        done = run_sweep(sweep, Options(jobs=jobs, quiet=True, say=lambda text: None))
        (points_s,) = sweep.store.db.execute("select sum(processor_s) from timings").fetchone()
        sweep.store.close()
    return processor_s() - used, points_s, time.perf_counter() - began, done.computed


def block() -> bytes:
    """The block as ONNX."""
    place = Path(__file__).parents[1] / "tests" / "conftest.py"
    spec = spec_from_file_location("builder", place)
    assert spec is not None
    assert spec.loader is not None
    module: Any = module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.Net()
    data: bytes = net.output(net.transformer(net.input("x", 1, 1024, 640), 8)).bytes()
    return data


def main(steps: int) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "block.onnx").write_bytes(block())
        few, many, single = run(folder, 2, 2), run(folder, steps, 2), run(folder, steps, 1)
    count = many[3] - few[3]
    whole, own = ((many[i] - few[i]) / count for i in (0, 1))
    print(
        f"a point: {1000 * own:.1f} ms of one processor, and {1000 * (whole - own):.2f} ms of the engine ({few[3]} to {many[3]} points)"
    )
    print(
        f"10,000 points on two idle cores: {10_000 * whole / 2 / 60:.1f} min (processor time of both, evenly shared)"
    )
    print(f"two workers against one: {single[2] / many[2]:.2f} x (wall clock, now, on this machine)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
