"""The card of each network: where it is from, how large it is, and how it is meant to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a reader needs to know about a network before profiling it.

    Attributes:
        name: The zoo name.
        title: One line for tables.
        source: The publication or checkpoint whose configuration this is.
        parameters: Number of parameters, exact for the architecture as built.
        macs: Multiply-accumulates of convolutions, linear layers and attention products for one evaluation at
            batch 1, exact; None where it has not been counted.
        inputs: Graph inputs as (name, shape) at batch 1.
        default_precision: The precision that the network is deployed in by default (`w8a16`, `fp16`).
        steps: Evaluations per image along the sampling schedule; 1 for encoders and decoders.
        guidance: True where each step evaluates the network twice (classifier-free guidance).
        inferred: True where the publication does not fix the architecture in full.
        notes: What else a reader must know; what was inferred, and from what.
    """

    name: str
    title: str
    source: str
    parameters: int
    macs: int | None
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    default_precision: str
    steps: int
    guidance: bool
    inferred: bool = False
    notes: str = ""

    @property
    def evaluations_per_image(self) -> int:
        """Evaluations of the network at batch 1 that make one image."""
        return self.steps * (2 if self.guidance else 1)


_LATENT_INPUTS = (
    ("sample", (1, 4, 64, 64)),
    ("timestep", (1,)),
    ("encoder_hidden_states", (1, 77, 768)),
)

CARDS: Mapping[str, Card] = {
    card.name: card
    for card in (
        Card(
            name="bk-sdm-tiny",
            title="BK-SDM-Tiny U-Net",
            source="BK-SDM, arXiv:2305.15798; nota-ai/bk-sdm-tiny",
            parameters=323_384_964,
            macs=242_754_519_040,
            inputs=_LATENT_INPUTS,
            default_precision="w8a16",
            steps=25,
            guidance=True,
        ),
    )
}
