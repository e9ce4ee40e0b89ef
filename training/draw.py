"""Randomness as a function of (seed, stage, step, micro-batch, process), so that resumed runs repeat."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Draw:
    """The address of one micro-batch. Equal addresses draw equal numbers, whatever ran before."""

    seed: int
    stage: str
    step: int
    micro: int = 0
    rank: int = 0

    def _sequence(self, purpose: int) -> np.random.SeedSequence:
        name = zlib.crc32(self.stage.encode())
        return np.random.SeedSequence([self.seed, name, self.step, self.micro, self.rank, purpose])

    def numpy(self) -> np.random.Generator:
        """A numpy generator for data."""
        return np.random.default_rng(self._sequence(0))

    def torch(self) -> Any:
        """A torch generator, on the CPU, for noise and times."""
        import torch

        return torch.Generator().manual_seed(int(self._sequence(1).generate_state(1, np.uint64)[0] >> 1))
