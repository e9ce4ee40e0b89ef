"""Broken bytes: whatever happens to a file, npusim answers with layers or with one sentence, and soon."""

from __future__ import annotations

import importlib.util
import lzma
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from npusim import api
from npusim.errors import NpusimError

HERE = Path(__file__).parent
BLOCK = 500
#: NPUSIM_MUTANTS=100000 tries as many; CI tries 2,000.
COUNT = int(os.environ.get("NPUSIM_MUTANTS", "2000"))
LONGEST_S = 10.0  # a hang, not a matter of speed


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"reader_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutants = load("mutants")


@cache
def seeds() -> tuple[bytes, ...]:
    """Small models of every operator, and exports of whole networks without weights."""
    operators = load("test_operators")
    foreign = sorted((HERE.parent / "fixtures" / "foreign").glob("*.xz"))
    small = [operators.model_of(name)[0].SerializeToString() for name in operators.CASES]
    return (*small, *(lzma.decompress(path.read_bytes()) for path in foreign))


@pytest.mark.parametrize("first", range(0, COUNT, BLOCK))
def test_broken_bytes_give_layers_or_a_sentence(first: int) -> None:
    for number in range(first, min(first + BLOCK, COUNT)):
        begin = time.monotonic()
        try:
            api.load_graph(mutants.mutant(seeds(), number), name="mutant")
        except NpusimError as refusal:
            if not str(refusal):
                raise AssertionError(f"mutant {number} is refused without a word") from refusal
        except Exception as error:
            raise AssertionError(f"mutant {number} is not handled") from error
        assert time.monotonic() - begin < LONGEST_S, f"mutant {number} hangs"


def test_some_mutants_are_still_models() -> None:
    read = 0
    for number in range(300):
        try:
            read += bool(api.load_graph(mutants.mutant(seeds(), number), name="mutant").layers)
        except NpusimError:
            continue
    assert read > 10
