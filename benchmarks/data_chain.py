"""The data chain on 100,000 procedural records: records per second, memory, recall of planted copies, false positives.

    python benchmarks/data_chain.py --folder FOLDER [--records 100000] [--workers 2]

Pictures are JPEGs of 300 to 480 pixels a side (some smaller): smooth noise under rectangles. One in ten shows an earlier picture
again: re-encoded, resized, or brighter or darker. Making them is not timed. Then the real commands run: make, dedup, filter, crop;
memory is the largest sum over the command and its workers.

    python benchmarks/data_chain.py --folder FOLDER --manifest-lines 1000000

instead sends so many manifest lines through union and stats (their pictures are few, with many names).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

DUPLICATES, SMALL = 0.1, 0.05
KINDS = ("re-encoded", "resized", "brighter", "darker")


def scene(seed: int) -> Any:
    """A picture that is a function of its number."""
    from PIL import Image

    rng = np.random.default_rng([7, seed])
    short = int(rng.integers(150, 300)) if rng.random() < SMALL else int(rng.integers(300, 360))
    size = (short, short + int(rng.integers(0, 120)))
    width, height = size if rng.random() < 0.5 else size[::-1]
    coarse = Image.fromarray(rng.integers(20, 236, (6, 6, 3)).astype(np.uint8))
    values = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
    for _ in range(5):
        x, y = rng.integers(0, width - 40), rng.integers(0, height - 40)
        values[y : y + rng.integers(30, 150), x : x + rng.integers(30, 150)] = rng.integers(0, 256, 3)
    return Image.fromarray(values)


def copy(picture: Any, kind: str, rng: np.random.Generator) -> tuple[Any, int]:
    """A changed copy and the JPEG quality to store it at."""
    from PIL import Image, ImageEnhance

    if kind == "re-encoded":
        return picture, int(rng.integers(40, 80))
    if kind == "resized":
        factor = rng.uniform(0.5, 0.9)
        size = (max(8, int(picture.width * factor)), max(8, int(picture.height * factor)))
        return picture.resize(size, Image.Resampling.LANCZOS), 90
    factor = rng.uniform(1.05, 1.2) if kind == "brighter" else rng.uniform(0.8, 0.95)
    return ImageEnhance.Brightness(picture).enhance(factor), 90


def origin(number: int) -> tuple[int, str | None]:
    """Which scene a record shows, and how it is a copy."""
    rng = np.random.default_rng([8, number])
    if number < 10 or rng.random() >= DUPLICATES:
        return number, None
    earlier = int(rng.integers(0, number))
    return origin(earlier)[0], str(rng.choice(KINDS))


def write(folder: Path, first: int, count: int) -> list[str]:
    """Write pictures; return their lines of metadata.jsonl."""
    lines = []
    for number in range(first, first + count):
        shown, kind = origin(number)
        picture, quality = scene(shown), 90
        if kind:
            picture, quality = copy(picture, kind, np.random.default_rng([9, number]))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        name = f"{number // 1000:04d}/{number}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(buffer.getvalue())
        lines.append(json.dumps({"file_name": name, "text": f"scene {shown}"}))
    return lines


def make_source(folder: Path, records: int, workers: int) -> None:
    """The imagefolder, unless it is there."""
    listing = folder / "metadata.jsonl"
    if listing.is_file():
        return
    starts = range(0, records, 1000)
    with ProcessPoolExecutor(workers) as pool, (folder.parent / "listing").open("w") as file:
        for lines in pool.map(
            write, [folder] * len(starts), starts, [min(1000, records - s) for s in starts]
        ):
            file.write("\n".join(lines) + "\n")
    os.replace(folder.parent / "listing", listing)


def timed(words: list[str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds, and the most MiB that a command and its workers held together."""
    command = [sys.executable, "-m", "npusim.training.cli", "data", *words]
    start, most, spent = time.monotonic(), 0.0, {}
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            most = max(most, sum(p.memory_info().rss for p in family) / 2**20)
            for one in family:
                times = one.cpu_times()
                spent[one.pid] = times.user + times.system
        except psutil.Error:
            pass
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: exit {process.returncode}")
    return time.monotonic() - start, sum(spent.values()), most


def quality(folder: Path) -> str:
    """Recall of planted copies and false positives of the dedup step."""
    source = {}
    for line in (folder / "L-orig" / "manifest.jsonl").open():
        row = json.loads(line)
        source[row["id"]] = int(Path(row["details"]["source"]).stem)
    groups: dict[int, list[bool]] = {}
    wrong = 0
    for line in (folder / "L-dd" / "manifest.jsonl").open():
        row = json.loads(line)
        shown = origin(source[row["parent"]])[0]
        groups.setdefault(shown, []).append("cause" not in row)
        if row.get("cause") == "duplicate":
            wrong += origin(source[row["details"]["duplicate_of"]])[0] != shown
    planted = sum(len(kept) - 1 for kept in groups.values())
    missed = sum(max(0, sum(kept) - 1) for kept in groups.values())
    total = sum(map(len, groups.values()))
    return (
        f"planted copies {planted:,}: recall {1 - missed / planted:.4%}; "
        f"false positives {wrong:,} of {total - planted:,} ({wrong / (total - planted):.4%})"
    )


def chain(folder: Path, records: int, workers: int) -> None:
    """Run the commands and print the table."""
    make_source(folder / "source", records, workers)
    steps = (("source", "make", "L-orig"), ("L-orig", "dedup", "L-dd"), ("L-dd", "filter", "L-f"), ("L-f", "crop", "L-pp"))  # fmt: skip
    seconds, cpu, most = 0.0, 0.0, 0.0
    for source, verb, out in steps:
        read = ["--from", str(folder / source)] if verb == "make" else [str(folder / source)]
        found = timed([verb, *read, "--out", str(folder / out), "--workers", str(workers)])
        seconds, cpu, most = seconds + found[0], cpu + found[1], max(most, found[2])
        print(f"{verb:8} {found[0]:7.1f} s  {found[1]:7.1f} CPU s  {found[2]:6.0f} MiB")
    print(
        f"{records:,} records: {records / seconds:.0f} records/s, {records / cpu:.0f} per CPU second, {most:.0f} MiB"
    )
    print(quality(folder))


def manifests(folder: Path, lines: int) -> None:
    """Two variants of half the lines each through union and stats."""
    from npusim.training.chain.variant import Builder

    names = ["one", "two"]
    for name in names:
        variant(folder / name, name, lines // 2, Builder)
    found = timed(["union", str(folder / "one"), str(folder / "two"), "--out", str(folder / "both")])
    print(f"union    {found[0]:7.1f} s  {found[1]:7.1f} CPU s  {found[2]:6.0f} MiB")
    found = timed(["stats", str(folder / "both"), "--json"])
    print(f"stats    {found[0]:7.1f} s  {found[1]:7.1f} CPU s  {found[2]:6.0f} MiB")
    print(f"{lines:,} manifest lines")


LINKS = 30_000
"""Records that share a picture: file systems allow 65,000 names of one file."""


def variant(folder: Path, name: str, count: int, builder: Any) -> None:
    """A variant whose records share few pictures."""
    from npusim.training.chain.record import Record, record_id

    with builder(folder, "make", {"name": name}) as made:
        (folder / "pictures").mkdir(exist_ok=True)
        for number in range(0, count, LINKS):
            scene(number).save(folder / "pictures" / f"{number // LINKS}.jpg")
        for number in range(count):
            identity = record_id(name, number)
            made.add(
                Record(
                    id=identity, file=f"pictures/{number // LINKS}.jpg", sha256=identity * 4, width=512, height=512,
                    caption=f"record {number} of {name}", step="make", settings=made.settings_digest,
                    attributes={"digit": str(number % 10)}, details={"source": f"{number}.jpg"},
                )
            )  # fmt: skip
            if number % 4096 == 0:
                made.flush()
        made.finish()


def main() -> None:
    """Read the options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--records", type=int, default=100_000)
    options.add_argument("--manifest-lines", type=int)
    options.add_argument("--workers", type=int, default=2)
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.manifest_lines:
        manifests(given.folder, given.manifest_lines)
    else:
        chain(given.folder, given.records, given.workers)


if __name__ == "__main__":
    main()
