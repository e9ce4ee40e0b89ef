"""Numeric formats: the precision of a layer, and the operand pairs that a tensor engine multiplies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How a layer stores its weights and activations.

    Attributes:
        name: `w8a16`, `w8a8`, `w16a16`, `fp16` or `fp32`.
        weight: element type of weights (`int8`, `int16`, `fp16`, `fp32`).
        activation: element type of activations.
    """

    name: str
    weight: str
    activation: str

    @property
    def weight_bytes(self) -> int:
        """Bytes of one stored weight."""
        return ELEMENT_BYTES[self.weight]

    @property
    def activation_bytes(self) -> int:
        """Bytes of one stored activation."""
        return ELEMENT_BYTES[self.activation]

    @property
    def weight_pair(self) -> str:
        """The product of a weight and an activation, e.g. `int8xint16`."""
        return f"{self.weight}x{self.activation}"

    @property
    def activation_pair(self) -> str:
        """The product of two activations (attention), e.g. `int16xint16`."""
        return f"{self.activation}x{self.activation}"


ELEMENT_BYTES = {"int8": 1, "int16": 2, "int32": 4, "int64": 8, "fp16": 2, "fp32": 4, "bool": 1}

PRECISIONS = {
    p.name: p
    for p in (
        Precision(name="w8a16", weight="int8", activation="int16"),
        Precision(name="w8a8", weight="int8", activation="int8"),
        Precision(name="w16a16", weight="int16", activation="int16"),
        Precision(name="fp16", weight="fp16", activation="fp16"),
        Precision(name="fp32", weight="fp32", activation="fp32"),
    )
}

#: Every operand pair that any precision can ask a tensor engine to multiply, in a fixed order (the index is stored).
PAIRS = tuple(
    sorted({p.weight_pair for p in PRECISIONS.values()} | {p.activation_pair for p in PRECISIONS.values()})
)
