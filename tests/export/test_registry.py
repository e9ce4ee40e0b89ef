"""Targets are plugins: a foreign package's is found, used and refused like our own, and never harms another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from npusim.errors import ExportError, OutputError
from npusim.export import Exporter, registry
from npusim.export.registry import GROUP, Offer, export, find_exporter, offers

from .conftest import Case

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "npusim-exporter-hints"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, built and installed by pip into a folder of its own."""
    import shutil

    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--target", str(folder / "site"), str(folder / "source")],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "site"


def _npusim(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    paths = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-c", "from npusim.cli import main; main()", *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "200"},
    )  # fmt: skip


def test_the_example_package_is_listed_and_exports(
    installed: Path, cases: Callable[..., Case], tmp_path: Path
) -> None:
    case = cases("self_attention", tiles="4")
    listed = _npusim(installed, "export", "--list")
    assert "hints  (package npusim-exporter-hints)" in listed.stdout
    assert "onnx-qdq  (package npusim)" in listed.stdout
    out = tmp_path / "x.json"
    done = _npusim(
        installed,
        "export",
        case.source.directory,
        "--model",
        case.model,
        "--to",
        "hints",
        "--out",
        out,
        "--option",
        "pretty",
    )
    assert done.returncode == 0, done.stderr
    assert "layers have hints" in done.stdout
    found = json.loads(out.read_text())
    assert len(found["hints"]) == len(case.source.graph.layers)
    assert found["made_from"]["npusim.program_sha256"] == case.source.plan.program_sha256


def test_the_how_to_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs" / "exporters.md").read_text("utf-8")
    assert (EXAMPLE / "npusim_exporter_hints.py").read_text("utf-8") in page
    project = (EXAMPLE / "pyproject.toml").read_text("utf-8")
    entry = project[project.index("[project.entry-points") :].split("\n\n")[0]
    assert entry in page


def test_the_targets_of_the_issue_are_installed_and_documented() -> None:
    ours = {o.name for o in offers() if o.package == "npusim"}
    assert ours == {"onnx-qdq", "onnx-tiled", "encodings", "trace", "csv"}
    page = (ROOT / "docs" / "exporters.md").read_text("utf-8")
    for name in ours:
        found = find_exporter(name)
        assert found.carries
        assert found.loses
        assert f"| `{name}` |" in page


_EXPORT_ALL = """
import sys
from pathlib import Path
from npusim.export.registry import export
from npusim.export.source import open_source
run, model, folder = sys.argv[1:]
source = open_source(Path(run), model)
for target, ending in {"onnx-tiled": "t.onnx", "onnx-qdq": "q.onnx", "encodings": "encodings", "csv": "csv"}.items():
    export(source, target, Path(folder) / f"x.{ending}")
for ending in ("json.gz", "json", "pftrace"):
    export(source, "trace", Path(folder) / f"x.{ending}")
"""


def test_the_same_deployment_gives_the_same_bytes_in_every_process(
    cases: Callable[..., Case], tmp_path: Path
) -> None:
    case = cases("unet")
    written = []
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", _EXPORT_ALL, str(case.source.directory), str(case.model), str(tmp_path / seed)],
            check=True, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        written.append({f.name: f.read_bytes() for f in (tmp_path / seed).iterdir()})
    assert len(written[0]) == 8
    assert written[0] == written[1]


# ---- bad plugins -------------------------------------------------------------------------------------------------------


def _offering(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """As if packages offered these targets: name -> what their entry points refer to."""
    made = [Offer(name=n, package=f"npusim-{n}", entry=EntryPoint(n, v, GROUP)) for n, v in values.items()]
    monkeypatch.setattr(registry, "offers", lambda: made)


def test_an_unknown_target_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ExportError, match="--to is 'tflite'; installed targets are csv, encodings, onnx-qdq"):
        find_exporter("tflite")


def test_a_package_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _offering(monkeypatch, broken="no_such_module_of_anyone:X")
    with pytest.raises(
        ExportError, match=r"target 'broken' of the package npusim-broken cannot be loaded \(ModuleNotFound"
    ):
        find_exporter("broken")


def test_something_else_than_an_exporter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _offering(monkeypatch, odd="math:pi")
    with pytest.raises(ExportError, match=r"is a float, not a npusim\.export\.Exporter"):
        find_exporter("odd")


def test_a_target_that_two_packages_offer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Offer(name="x", package=p, entry=EntryPoint("x", f"{p}:X", GROUP)) for p in ("a", "b")]
    monkeypatch.setattr(registry, "offers", lambda: made)
    with pytest.raises(ExportError, match="which the packages a and b both offer; uninstall one"):
        find_exporter("x")


def _failing(error: BaseException) -> Exporter:
    def write(source: Any, path: Path, options: Any) -> tuple[str, ...]:
        path.write_text("half")
        raise error

    return Exporter(title="", suffix=".x", carries="", loses="", write=write)


@pytest.mark.parametrize(
    "error", [ExportError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(
    cases: Callable[..., Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    (tmp_path / "out.x").write_text("old")
    monkeypatch.setattr(registry, "find_exporter", lambda name: _failing(error))
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        export(cases("geglu").source, "failing", tmp_path / "out.x")
    assert [p.name for p in tmp_path.iterdir()] == ["out.x"]
    assert (tmp_path / "out.x").read_text() == "old"


def test_a_folder_as_target_is_refused(cases: Callable[..., Case], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; give a file name with --out"):
        export(cases("geglu").source, "csv", tmp_path)
