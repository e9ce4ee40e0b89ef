"""The run directory: plan, summary, trace and report, written aside and renamed as a whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npusim.chrome_trace import chrome_trace
from npusim.errors import OutputError
from npusim.reports.source import Profiled, planned_trace

PLAN, SUMMARY, TRACE, REPORT, SCALES = "plan.json", "summary.json", "trace.json", "report.html", "scales.npz"
VERIFIED, IMAGES = "verify.json", "images"
_OURS = frozenset({PLAN, SUMMARY, TRACE, REPORT, SCALES, VERIFIED, IMAGES})


def default_directory(model: str) -> Path:
    """`./npusim-runs/<model>`, with characters that file systems dislike replaced."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", model).strip("._") or "model"
    return Path("npusim-runs") / name


def check_replaceable(directory: Path) -> None:
    """Refuse a folder that holds anything but a run of ours.

    Raises:
        OutputError: a file is in the way, or the folder holds other files.
    """
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise OutputError(f"{directory}: is in the way and no folder; give another place with --out")
    if not directory.exists():
        return
    names = sorted(p.name for p in directory.iterdir())
    foreign = [name for name in names if name not in _OURS] or ([] if _is_run(directory) else names)
    if foreign:
        raise OutputError(
            f"{directory}: holds '{foreign[0]}', which npusim did not write; only a run directory of npusim is replaced: "
            "give an empty or a new folder with --out"
        )


def _is_run(directory: Path) -> bool:
    """Whether the folder's plan says that npusim wrote it."""
    try:
        return '"npusim_version"' in (directory / PLAN).read_text("utf-8")[:200]
    except (OSError, UnicodeDecodeError):
        return False


def is_pipeline_run(directory: Path) -> bool:
    """Whether the folder holds a pipeline's run: its summary says so."""
    try:
        return load_summary(directory).get("kind") == "pipeline"
    except OutputError:
        return False


def write_run(profile: Profiled, directory: Path, *, images: str | None = None) -> None:
    """Write all files of a run into a folder beside `directory`, then put it in its place.

    Args:
        images: `png` or `svg`: also the figures, into `images` (see `reports.images`).

    Raises:
        MissingExtraError: pictures need kaleido.
        OutputError: the place is not ours, or cannot be written.
    """
    check_replaceable(directory)
    publish(directory, lambda aside: fill_run(profile, aside, images=images))


def fill_run(profile: Profiled, folder: Path, *, images: str | None = None) -> None:
    """Write all files of a run into an empty folder."""
    from npusim.reports.page import write_report

    (folder / PLAN).write_text(profile.plan.to_json(), "utf-8")
    (folder / SUMMARY).write_text(dump_json(profile.summary), "utf-8")
    name = f"{profile.plan.model.name} on {profile.plan.npu.name}"
    with (folder / TRACE).open("w", encoding="utf-8") as file:
        file.writelines(chrome_trace(profile.graph, profile.program, planned_trace(profile), name=name))
    write_report(profile, folder / REPORT)
    if images is not None:
        from npusim.reports.images import write_images

        write_images(profile, folder / IMAGES, images)


def publish(directory: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a folder beside `directory`, then put that in its place as a whole.

    Raises:
        OutputError: the place cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OSError as error:
        raise OutputError(
            f"{directory}: cannot be written ({error.strerror}); give another place with --out"
        ) from error
    try:
        fill(aside)
        aside.chmod(0o755)
        _swap(aside, directory)
    except OSError as error:
        raise OutputError(
            f"{directory}: cannot be written ({error.strerror}); give another place with --out"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _swap(aside: Path, directory: Path) -> None:
    """Put the new folder in place; the old one goes only once the new one stands."""
    if not directory.exists():
        os.rename(aside, directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
    os.rename(directory, old / "run")
    try:
        os.rename(aside, directory)
    except BaseException:
        os.rename(old / "run", directory)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def dump_json(data: Any) -> str:
    """Deterministic JSON text: keys in the order given, floats in their shortest exact form."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def load_summary(path: Path) -> dict[str, Any]:
    """`summary.json` of a run directory (or the file itself).

    Raises:
        OutputError: missing or not a summary of ours.
    """
    file = path / SUMMARY if path.is_dir() else path
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OutputError(
            f"{file}: is no summary of a run ({error}); give a run directory written by 'npusim profile'"
        ) from error
    if not isinstance(data, dict) or "schema_version" not in data:
        raise OutputError(f"{file}: is no summary of a run; give a run directory written by 'npusim profile'")
    return data
