"""npusim beside Vela, ZigZag and Stream, where pip installs them: `make peers` (opt-in: it downloads the peers; takes minutes).

Each peer gets an environment of its own and runs the same small workloads in the format that it reads, on hardware that its own
package describes. The hardware differs, so latencies are not compared; the table says how long each tool takes next to npusim in the
same run, and what it models of the network. A peer that cannot be installed or refuses a workload is a row that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from peer_table import Row, message, ratio, table
from peer_workloads import WORKLOADS, Workload, to_onnx

DRIVERS = Path(__file__).with_name("peer_drivers")
LIMIT_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A tool to compare with. `numerics` is read from its documentation: whether it runs what it plans on real numbers."""

    name: str
    requirements: tuple[str, ...]
    driver: str
    numerics: str


PEERS = (
    Peer(
        name="Vela",
        requirements=("ethos-u-vela>=5.2",),
        driver="run_vela.py",
        numerics="on the device or its model",
    ),
    # six: zigzag-dse imports it and does not require it
    Peer(name="ZigZag", requirements=("zigzag-dse>=3.9", "six"), driver="run_zigzag.py", numerics="no"),
    # On Pythons that Stream 2 does not support, pip would fall back to a release of 2023 that today's ZigZag breaks
    Peer(
        name="Stream",
        requirements=("stream-dse>=2", "six"),
        driver="run_stream.py",
        numerics="no (generates code for AMD AIE)",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a command: its status (None: stopped at the time limit), seconds, and all it said."""

    status: int | None
    wall_s: float
    cpu_s: float
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A peer's interpreter and version, or why there is none."""

    interpreter: Path
    version: str = ""
    problem: str = ""


def run(command: Sequence[str], folder: Path, limit_s: float, *, ours: bool = False) -> Run:
    """Runs a command and its children in a process group of their own; a peer sees none of our Python path."""
    hidden = () if ours else ("PYTHONPATH", "PYTHONHOME")
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        status: int | None
        try:
            status = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        output.seek(0)
        said = output.read()
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(status=status, wall_s=wall_s, cpu_s=cpu_s, said=said)


def install(peer: Peer, folder: Path, python: str) -> Environment:
    """The peer's environment under `folder`, made unless it is there already."""
    home = folder / peer.name.lower()
    interpreter, done = home / "bin" / "python", home / "installed.txt"
    wanted = "\n".join(peer.requirements)
    if home.exists() and not (home / "pyvenv.cfg").exists():
        why = f"{home.name} in --folder is no environment, and is left alone; give another folder"
        return Environment(interpreter=interpreter, problem=f"not installed: {why}")
    if not (done.exists() and done.read_text() == wanted):
        made = run([python, "-m", "venv", "--clear", str(home)], folder, LIMIT_S)
        if made.status == 0:
            pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            made = run([*pip, *peer.requirements], folder, 4 * LIMIT_S)
        if made.status != 0:
            why = "timed out" if made.status is None else message(made.said)
            return Environment(interpreter=interpreter, problem=f"not installed: {why}")
        done.write_text(wanted)
    package = re.split("[<>=]", peer.requirements[0])[0]
    asked = f"from importlib.metadata import version; print(version({package!r}))"
    return Environment(
        interpreter=interpreter, version=run([str(interpreter), "-c", asked], folder, LIMIT_S).said.strip()
    )


def our_facts(folder: Path, model: Path) -> dict[str, Any]:
    """The facts of a run directory of npusim, read from its files as the drivers read those of the peers."""
    summary = json.loads((folder / "summary.json").read_text())
    plan = json.loads((folder / "plan.json").read_text())
    unmodelled = set(summary["coverage"]["unmodelled"])
    nodes = onnx.load(model).graph.node
    layers = tuple(layer["name"] for layer in plan["layers"])
    views = {
        n.op_type
        for n in nodes
        if n.op_type == "Transpose" and not any(name.startswith(n.name) for name in layers)
    }
    return {
        "version": plan["npusim_version"],
        "hardware": summary["npu"],
        "costed": sorted({n.op_type for n in nodes} - unmodelled - views),
        "free": sorted(views),
        "left": sorted(unmodelled),
        "macs": summary["macs"],
        "dram_bytes": summary["dram_read_bytes"] + summary["dram_write_bytes"],
        "addresses": any(layer["slots"] for layer in [*plan["layers"], *plan["segments"]]),
        "timeline": (folder / "trace.json").exists(),
    }


def profile(workload: Workload, folder: Path, limit_s: float) -> Run:
    """One run of npusim's main job on a workload."""
    command = [
        str(Path(sys.executable).with_name("npusim")),
        "profile",
        f"{workload.name}.onnx",
        "--precision",
        "w8a8",
    ]
    ran = run([*command, "--out", f"npusim-{workload.name}"], folder, limit_s, ours=True)
    if ran.status != 0:
        raise SystemExit(f"npusim could not profile {workload.name}: {message(ran.said)}")
    return ran


def measure(
    peer: Peer, at: Environment, workload: Workload, folder: Path, options: argparse.Namespace
) -> list[Row]:
    """npusim and the peer in turn; a peer that does not finish is not asked again."""
    described, model = folder / f"{workload.name}.json", folder / f"{workload.name}.onnx"
    described.write_text(workload.to_json())
    onnx.save(to_onnx(workload), model)
    ours, theirs, facts = [], [], {}
    for number in range(options.rounds):
        ours.append(profile(workload, folder, options.limit))
        out = folder / f"{peer.name}-{workload.name}-{number}"
        out.mkdir()
        driver = [str(at.interpreter), str(DRIVERS / peer.driver), str(described), str(model), str(out)]
        theirs.append(run(driver, folder, options.limit))
        if theirs[-1].status != 0:
            break
        facts = json.loads((out / "facts.json").read_text())
    at_least = "> " if theirs[-1].status is None else ""
    base = our_facts(folder / f"npusim-{workload.name}", model)
    numerics = "yes (`npusim run --verify`)"
    return [
        Row(tool="npusim", version=base["version"], workload=workload, facts=base, numerics=numerics),
        Row(
            tool=peer.name,
            version=at.version,
            workload=workload,
            outcome=outcome(theirs[-1], options.limit),
            wall=at_least + ratio([r.wall_s for r in theirs], [r.wall_s for r in ours]),
            cpu=at_least + ratio([r.cpu_s for r in theirs], [r.cpu_s for r in ours]),
            facts=facts if theirs[-1].status == 0 else {},
            numerics=peer.numerics,
        ),
    ]


def outcome(last: Run, limit_s: float) -> str:
    """How a peer's last run ended, in its own words where it refused."""
    if last.status is None:
        return f"timed out after {limit_s:g} s"
    return "ran" if last.status == 0 else f"refused: {message(last.said)}"


def compare(peer: Peer, folder: Path, options: argparse.Namespace) -> list[Row]:
    """The rows of one peer: every workload, and the simpler one where it does not run."""
    say(f"installing {peer.name} ...")
    at = install(peer, folder, options.python)
    if at.problem:
        return [Row(tool=peer.name, outcome=at.problem, numerics=peer.numerics)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for workload, simpler in WORKLOADS:
            for tried in (workload, simpler):
                say(f"{peer.name} {at.version}: {tried.title} ...")
                rows += measure(peer, at, tried, Path(scratch), options)
                if rows[-1].outcome == "ran":
                    break
    return rows


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    names = [p.name.lower() for p in PEERS]
    parser.add_argument("--peers", nargs="+", choices=names, default=names, help="the peers to run (all)")
    parser.add_argument(
        "--folder", type=Path, help="where environments are made and kept (a temporary folder)"
    )
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="the interpreter that makes them: Stream needs 3.12 (this one)",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs of each; the median of the ratios counts (3)"
    )
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, help=f"seconds that one run may take ({LIMIT_S})"
    )
    options = parser.parse_args(given)
    if options.rounds < 1 or not options.limit > 0:
        parser.error(
            f"--rounds is {options.rounds} and --limit {options.limit:g}: give at least 1 round and more than 0 s"
        )
    if not (found := shutil.which(options.python)):
        parser.error(f"--python {options.python}: no such program; give the path of a Python interpreter")
    options.python = found
    return options


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    chosen = [p for p in PEERS if p.name.lower() in options.peers]
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="npusim-peers-"))
        )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for peer in chosen:
                rows += compare(peer, folder.resolve(), options)
        except KeyboardInterrupt:
            say("interrupted")
            return 130
    print(table(rows, [w for pair in WORKLOADS for w in pair]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
