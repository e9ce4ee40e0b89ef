"""Targets of `npusim export`: plugins that packages, npusim among them, offer under the entry point group `npusim.exporters`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from npusim.errors import ExportError, NpusimError, OutputError

if TYPE_CHECKING:
    from npusim.export.source import ExportSource

GROUP = "npusim.exporters"

#: (deployment, file to write, options) -> what the user should know. May write more files into the folder of the first.
Write = Callable[["ExportSource", Path, Mapping[str, str]], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """A target: what an entry point in the group `npusim.exporters` refers to.

    Attributes:
        title: what it writes, in one line.
        suffix: ending of the file that it writes by default.
        carries, loses: what of the deployment the format holds, and what it cannot hold.
        write: writes the files; raises `ExportError` with the name of what the format cannot express.
        options: name -> what it does, for `--option NAME=VALUE`.
        flags: name -> what it does, for `--option NAME`.
    """

    title: str
    suffix: str
    carries: str
    loses: str
    write: Write
    options: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A target that an installed package offers; nothing of the package is imported yet."""

    name: str
    package: str
    entry: EntryPoint

    def load(self) -> Exporter:
        """The exporter.

        Raises:
            ExportError: the package cannot be imported, or offers something else.
        """
        where = f"target '{self.name}' of the package {self.package}"
        try:
            found = self.entry.load()
        except NpusimError:
            raise
        except Exception as error:  # whatever a foreign module does when it is imported
            raise ExportError(
                f"{where} cannot be loaded ({type(error).__name__}: {error}); install it again"
            ) from error
        if not isinstance(found, Exporter):
            raise ExportError(
                f"{where} is a {type(found).__name__}, not a npusim.export.Exporter; ask its author"
            )
        return found


def offers() -> list[Offer]:
    """Every target of every installed package, by name."""
    found = [
        Offer(name=e.name, package=e.dist.name if e.dist is not None else "?", entry=e)
        for e in entry_points(group=GROUP)
    ]
    return sorted(found, key=lambda o: (o.name, o.package))


def find_exporter(name: str) -> Exporter:
    """The exporter of a target.

    Raises:
        ExportError: no package offers it, several do, or it cannot be loaded.
    """
    known = offers()
    chosen = [o for o in known if o.name == name]
    if not chosen:
        names = ", ".join(dict.fromkeys(o.name for o in known)) or "none; install npusim again"
        raise ExportError(f"--to is '{name}'; installed targets are {names}")
    if len({(o.package, o.entry.value) for o in chosen}) > 1:
        packages = " and ".join(o.package for o in chosen)
        raise ExportError(f"--to is '{name}', which the packages {packages} both offer; uninstall one")
    return chosen[0].load()


def check_options(name: str, exporter: Exporter, options: Mapping[str, str]) -> None:
    """Refuse options that a target does not have, options without a value, flags with one.

    Raises:
        ExportError: with what the target takes.
    """
    for option, value in options.items():
        if option in exporter.flags:
            if value:
                raise ExportError(
                    f"--option is '{option}={value}'; {option} takes no value: give --option {option}, or leave it out"
                )
        elif option not in exporter.options:
            allowed = ", ".join([*exporter.options, *exporter.flags]) or "none"
            raise ExportError(f"--option is '{option}'; options of the target {name} are: {allowed}")
        elif not value:
            raise ExportError(
                f"--option is '{option}'; {option} takes a value ({exporter.options[option]}): give --option {option}=VALUE"
            )


def export(
    source: ExportSource, name: str, out: Path, options: Mapping[str, str] | None = None
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write a deployment for a target: into a folder aside, then into place, the main file last.

    Returns:
        The files, and what the user should know.

    Raises:
        ExportError: no such target or option, or the target cannot express a layer.
        OutputError: the place cannot be written, or holds what is exported.
    """
    exporter = find_exporter(name)
    check_options(name, exporter, options or {})
    _check_place(source, out)
    aside = _folder_beside(out)
    try:
        notes = tuple(exporter.write(source, aside / out.name, options or {}))
        return _put_in_place(aside, out), notes
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written ({error.strerror or error}); give another place with --out"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_place(source: ExportSource, out: Path) -> None:
    """Neither over the model, nor among the files of the run."""
    model = Path(source.model)
    if model.is_file() and out.resolve() == model.resolve():
        raise OutputError(f"{out}: is the model itself; give another place with --out")
    if out.resolve().is_relative_to(source.directory.resolve()):
        raise OutputError(
            f"{out}: lies in the run directory, which holds what npusim profile writes and nothing else; "
            "give another place with --out"
        )


def _folder_beside(out: Path) -> Path:
    if out.is_dir():
        raise OutputError(f"{out}: is a folder; give a file name with --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written ({error.strerror}); give another place with --out"
        ) from error


def _put_in_place(aside: Path, out: Path) -> tuple[Path, ...]:
    written = sorted(aside.iterdir(), key=lambda p: (p.name == out.name, p.name))
    for file in written:
        file.chmod(0o644)
        os.replace(file, out.parent / file.name)
    return tuple(out.parent / file.name for file in written)
