"""A pipeline: the networks that make one picture, in order, how often each runs and how it is deployed (TOML)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from npusim.errors import BadInputError
from npusim.toml_file import checked, parse_toml, read_text

DOCS = "docs/pipelines.md"
SHIPPED = Path(__file__).parent / "pipelines"
STEPS_MAX = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Count = Annotated[int, Field(ge=1, le=STEPS_MAX, strict=True)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(_Section):
    """One network of a pipeline.

    Attributes:
        name: what it is called here; also the folder of its run.
        model: a zoo network, or an ONNX file (`.onnx`, `.onnx.xz`), relative to the specification.
        repeat: evaluations per picture: a count, or `steps`.
        guidance: `batch2` evaluates both halves of classifier-free guidance at once, `none` one sample.
        precision, segments, tiles, pins: as the options of `npusim profile`.
        weights: `resident` in DRAM before the picture starts, `loaded` from storage once per picture, or `reloaded` before
            every evaluation.
        launch_s: cost of submitting one evaluation; the NPU's own by default.
    """

    name: str
    model: str = Field(min_length=1, max_length=4096)
    repeat: Count | Literal["steps"] = 1
    guidance: Literal["none", "batch2"] = "none"
    precision: Literal["w8a16", "w8a8", "w16a16", "fp16", "fp32"] = "w8a16"
    segments: Literal["none", "attention", "all"] = "all"
    tiles: Literal["none", "sram", "auto"] | Annotated[int, Field(ge=1, lt=10**7, strict=True)] = "auto"
    pins: dict[str, Annotated[int, Field(ge=1, lt=10**7, strict=True)]] = Field(default_factory=dict)
    weights: Literal["resident", "loaded", "reloaded"] = "resident"
    launch_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] | None = None

    @field_validator("name")
    @classmethod
    def _is_a_folder(cls, name: str) -> str:
        found = _folder_name(name)
        if "." in found:
            raise ValueError("a network's name has no dot")
        return found

    @property
    def batch(self) -> int:
        """Samples in one evaluation."""
        return 2 if self.guidance == "batch2" else 1


class Pipeline(_Section):
    """What makes one picture.

    Attributes:
        name, title: for folders, and for people.
        steps: denoising steps.
        load_bytes_per_s: rate of storage, for weights that are loaded or reloaded.
        checkpoint: trained networks that `npusim run` draws with: a shipped name, or a folder relative to the specification.
        network: in the order in which they run.
    """

    name: str
    title: str = ""
    steps: Count
    load_bytes_per_s: Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False)] | None = None
    checkpoint: str = ""
    network: tuple[Network, ...] = Field(min_length=1, max_length=32)

    @field_validator("name")
    @classmethod
    def _is_a_folder(cls, name: str) -> str:
        return _folder_name(name)

    @model_validator(mode="after")
    def _fits_together(self) -> Pipeline:
        names = [n.name for n in self.network]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two networks are called '{name}'; give each its own name")
        for one in self.network:
            if one.weights != "resident" and self.load_bytes_per_s is None:
                raise ValueError(
                    f"the weights of '{one.name}' are {one.weights}, and nothing says how fast; add load_bytes_per_s"
                )
        return self


def _folder_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "a name is 1 to 64 letters, digits, dots, dashes and underscores, and starts with a letter or digit"
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """A pipeline and where it is from.

    Attributes:
        folder: what its relative paths start from.
        text: the TOML, as given.
    """

    pipeline: Pipeline
    where: str
    folder: Path
    text: str

    @property
    def checkpoint(self) -> str:
        """Where trained weights lie: the absolute path of a checkpoint's folder, else a shipped name as given, else nothing."""
        path = self.folder / self.pipeline.checkpoint
        there = bool(self.pipeline.checkpoint) and (path / "card.json").is_file()
        return str(path.resolve()) if there else self.pipeline.checkpoint


def shipped_names() -> tuple[str, ...]:
    """The names of the shipped specifications (`edgefusion.toml`), sorted."""
    return tuple(sorted(path.name for path in SHIPPED.glob("*.toml")))


def is_pipeline(model: str) -> bool:
    """Whether an argument names a pipeline rather than a network."""
    return model.endswith(".toml")


def load_pipeline(name_or_path: str | Path) -> Specification:
    """Read a specification: a file, or where there is none the shipped one of that name.

    Raises:
        BadInputError: no such file, not TOML, a key unknown, missing, ill-typed or out of range.
    """
    path = Path(name_or_path)
    if not path.exists() and str(name_or_path) in shipped_names():
        path = SHIPPED / path.name
    if not path.is_file():
        raise BadInputError(
            f"{name_or_path}: no such pipeline; give the path of a TOML file or a shipped one ({', '.join(shipped_names())})"
        )
    return parse_pipeline(read_text(path, BadInputError), where=str(name_or_path), folder=path.parent)


def parse_pipeline(text: str, *, where: str, folder: Path) -> Specification:
    """Check a specification given as TOML text.

    Raises:
        BadInputError: with the path of the first offending key.
    """
    data = parse_toml(text, where=where, error=BadInputError, docs=DOCS)
    pipeline = checked(Pipeline, data, where=where, error=BadInputError, docs=DOCS)
    return Specification(pipeline=pipeline, where=where, folder=folder, text=text)
