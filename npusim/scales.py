"""`scales.npz`: the scales of a deployment's activations. The plan holds the file's hash, so that the two stay together."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from npusim.errors import BadInputError
from npusim.files import write_aside
from npusim.plan import Plan

Array = npt.NDArray[Any]
SCALES_SCHEMA = 1


def save_scales(path: Path, scales: Mapping[str, float], plan: Plan, *, method: str, source: str) -> Plan:
    """Write scales with what they were measured for, deterministically.

    Returns:
        The plan that names them by their hash.

    Raises:
        OutputError: the file cannot be written.
    """
    names = sorted(scales)
    arrays: dict[str, Array] = {
        "schema_version": np.asarray(SCALES_SCHEMA), "program_sha256": np.asarray(plan.program_sha256),
        "method": np.asarray(method), "source": np.asarray(source),
        "names": np.asarray(names, dtype=np.str_), "scales": np.asarray([scales[n] for n in names], dtype=np.float64),
    }  # fmt: skip
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    data = packed.getvalue()
    write_aside(path, lambda aside: aside.write_bytes(data))
    return plan.model_copy(update={"scales_sha256": hashlib.sha256(data).hexdigest()})


def load_scales(path: Path, plan: Plan) -> dict[str, float]:
    """Read scales and check that they belong to this plan.

    Raises:
        BadInputError: unreadable, not those that the plan names, of another schema, or a scale is not finite and positive.
    """
    arrays = read_npz(path)
    missing = {"schema_version", "program_sha256", "names", "scales"} - set(arrays)
    if missing:
        raise BadInputError(f"{path}: holds no '{sorted(missing)[0]}'; run 'npusim quantize' again")
    if arrays["schema_version"].ravel().tolist() != [SCALES_SCHEMA]:
        raise BadInputError(
            f"{path}: has schema version {arrays['schema_version']}; this npusim reads {SCALES_SCHEMA}; quantize again"
        )
    if str(arrays["program_sha256"]) != plan.program_sha256:
        raise BadInputError(f"{path}: belongs to another plan; run 'npusim quantize' on this run directory")
    if hashlib.sha256(path.read_bytes()).hexdigest() != plan.scales_sha256:
        raise BadInputError(
            f"{path}: is not the file that the plan names (scales_sha256); put that one back, or run 'npusim quantize' again"
        )
    names, values = arrays["names"].ravel().tolist(), arrays["scales"].ravel().tolist()
    if len(names) != len(values):
        raise BadInputError(
            f"{path}: has {len(names)} names and {len(values)} scales; run 'npusim quantize' again"
        )
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, float) or not np.isfinite(value) or value <= 0:
            raise BadInputError(
                f"{path}: the scale of '{name}' is {value}; positive finite numbers are allowed; quantize again"
            )
    return dict(zip(names, values, strict=True))


def read_npz(path: Path) -> dict[str, Array]:
    """Arrays of an `.npz` by name.

    Raises:
        BadInputError: it is none, or holds Python objects.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        AttributeError,
        TypeError,
        BadZipFile,
        zlib.error,
    ) as error:
        pickled = isinstance(error, ValueError) and "pickle" in str(error)
        why = "no archive of arrays, or one with Python objects, which are never loaded" if pickled else error
        raise BadInputError(f"{path}: is no readable .npz file ({why}); write it with numpy.savez") from error
