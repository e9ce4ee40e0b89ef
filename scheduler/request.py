"""What the user asked for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from npusim.dtypes import PRECISIONS
from npusim.errors import BadInputError, HardwareError
from npusim.hardware import Npu
from npusim.precisions import Precisions
from npusim.scheduler.problem import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for: tiling rule (`none`, `sram`, `auto` or a count), segment kinds, precision, policy, pins.

    Attributes:
        precision: of all layers, or `mixed`.
        precisions: layer -> precision where it is mixed; the graph has casts then (`npusim.precisions.with_casts`).
    """

    tiles: str = "auto"
    segments: str = "all"
    precision: str = "w8a16"
    policy: Policy = "decoupled"
    pins: Mapping[str, int] = field(default_factory=dict)
    precisions: Precisions = field(default_factory=dict)

    def count(self, segment: str) -> int | None:
        """The tile count asked for a segment, if any."""
        return self.pins.get(segment, int(self.tiles) if self.tiles.isdecimal() else None)


def check_request(npu: Npu, request: Request) -> None:
    """Refuse words that mean nothing and precisions that the hardware cannot multiply.

    Raises:
        BadInputError: an unknown rule, kind of segment, precision or policy, or fewer than one tile.
        HardwareError: no rate or energy for an operand pair of the precision.
    """
    counted = request.tiles.isdecimal() and int(request.tiles) > 0
    for what, found, allowed in (
        ("tiles", "a count" if counted else request.tiles, ("none", "sram", "auto", "a count")),
        ("segments", request.segments, ("none", "attention", "all")),
        *(("precision", used, tuple(PRECISIONS)) for used in used_precisions(request)),
        ("policy", request.policy, ("serial", "decoupled")),
    ):
        if found not in allowed:
            raise BadInputError(f"{what} is '{found}'; allowed are {', '.join(allowed)}")
    if any(count < 1 for count in request.pins.values()):
        raise BadInputError("a segment needs at least one tile")
    for used in used_precisions(request):
        check_multiplies(npu, used)


def used_precisions(request: Request) -> list[str]:
    """Names of the precisions that layers have."""
    return sorted(set(request.precisions.values())) or [request.precision]


def check_multiplies(npu: Npu, precision: str) -> None:
    """Refuse a precision whose operand pairs the hardware cannot multiply.

    Raises:
        HardwareError: no rate or energy for a pair.
    """
    chosen = PRECISIONS[precision]
    for pair in (chosen.weight_pair, chosen.activation_pair):
        for table, where in ((npu.tensor_rates, "tensor_rates"), (npu.energy.mac_pj, "energy.mac_pj")):
            if pair not in table:
                raise HardwareError(
                    f"{npu.name}: {where} has no '{pair}', which precision {precision} needs; "
                    "add it, or choose another precision"
                )
