"""SRAM addresses: rectangles in time x address, placed largest first at the lowest address that is free."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """Something that needs `size_bytes` consecutive bytes from step `first` to step `last`, both included."""

    name: str
    size_bytes: int
    first: int
    last: int


def liveness_bound(items: Sequence[Lifetime]) -> int:
    """Most bytes alive at one step: no allocation can do with less."""
    if not items:
        return 0
    change = [0] * (max(i.last for i in items) + 2)
    for item in items:
        change[item.first] += item.size_bytes
        change[item.last + 1] -= item.size_bytes
    peak = total = 0
    for delta in change:
        total += delta
        peak = max(peak, total)
    return peak


#: Orders in which items are placed, each tried in turn: long lives first, large sizes first, large areas first.
_ORDERS: tuple[Callable[[Lifetime], tuple[int, int, str]], ...] = (
    lambda i: (i.first - i.last, -i.size_bytes, i.name),
    lambda i: (-i.size_bytes, i.first, i.name),
    lambda i: (-i.size_bytes * (i.last - i.first + 1), i.first, i.name),
)
#: How often an item that found no place is moved to the front before an order is given up.
REPAIRS = 40


def allocate(items: Sequence[Lifetime], capacity_bytes: int) -> dict[str, int] | None:
    """Address of each item, or None where this heuristic finds no place within the capacity.

    Each order is placed greedily at the lowest gaps; an item that finds none goes to the front and the order is tried again.
    Source: greedy by size, as in Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference" (2020); the repair
    follows the idea of the hill climbing in Arm's Vela.
    """
    if liveness_bound(items) > capacity_bytes:
        return None
    for key in _ORDERS:
        order = sorted(items, key=key)
        for _ in range(REPAIRS):
            found = _place(order, capacity_bytes)
            if isinstance(found, dict):
                return found
            order.insert(0, order.pop(found))
    return None


def _place(order: Sequence[Lifetime], capacity_bytes: int) -> dict[str, int] | int:
    """Addresses, or the position of the first item that finds no place."""
    steps = max((i.last for i in order), default=-1) + 1
    placed_at: list[list[tuple[int, int, int]]] = [[] for _ in range(steps)]
    addresses: dict[str, int] = {}
    for number, item in enumerate(order):
        address = _lowest_gap(item, placed_at, capacity_bytes)
        if address is None:
            return number
        addresses[item.name] = address
        for step in range(item.first, item.last + 1):
            placed_at[step].append((address, address + item.size_bytes, number))
    return addresses


def _lowest_gap(item: Lifetime, placed_at: list[list[tuple[int, int, int]]], capacity: int) -> int | None:
    taken = sorted({place for step in range(item.first, item.last + 1) for place in placed_at[step]})
    cursor = 0
    for low, high, _ in taken:
        if low - cursor >= item.size_bytes:
            return cursor
        cursor = max(cursor, high)
    return cursor if cursor + item.size_bytes <= capacity else None


#: How many steps back a place is looked at: nothing is prefetched further ahead.
LOOKBACK = 8


def spread(
    items: Sequence[Lifetime], addresses: Mapping[str, int], movable: Collection[str], capacity_bytes: int
) -> dict[str, int]:
    """The same placement with the movable items where nothing was alive for longest: then they can be filled early.

    Args:
        items: everything that is placed, with `addresses`.
        movable: names of the items that may move, one by one, in the order of their lives.
    """
    steps = max((i.last for i in items), default=-1) + 1
    placed_at: list[dict[str, tuple[int, int]]] = [{} for _ in range(steps)]
    found = dict(addresses)

    def put(item: Lifetime) -> None:
        for step in range(item.first, item.last + 1):
            placed_at[step][item.name] = (found[item.name], found[item.name] + item.size_bytes)

    for item in items:
        put(item)
    for item in sorted(
        (i for i in items if i.name in movable), key=lambda i: (i.first, -i.size_bytes, i.name)
    ):
        for step in range(item.first, item.last + 1):
            del placed_at[step][item.name]
        found[item.name] = _stalest(item, found[item.name], placed_at, capacity_bytes)
        put(item)
    return found


def _stalest(
    item: Lifetime, address: int, placed_at: Sequence[Mapping[str, tuple[int, int]]], capacity: int
) -> int:
    """The free address whose place was last used earliest; of equals the one it has."""
    taken = sorted({p for step in range(item.first, item.last + 1) for p in placed_at[step].values()})
    before = [
        sorted(placed_at[step].values())
        for step in range(item.first - 1, max(-1, item.first - 1 - LOOKBACK), -1)
    ]
    best, idle = address, _idle(address, item.size_bytes, before)
    starts = dict.fromkeys(
        [0, *(high for _, high in taken), *(high for places in before[:3] for _, high in places)]
    )  # fmt: skip
    for start in starts:
        stop = start + item.size_bytes
        if idle == len(before) or stop > capacity or any(low < stop and start < high for low, high in taken):
            continue
        found = _idle(start, item.size_bytes, before)
        if found > idle:
            best, idle = start, found
    return best


def _idle(start: int, size: int, before: Sequence[Sequence[tuple[int, int]]]) -> int:
    """For how many steps back nothing was alive in a place."""
    for age, places in enumerate(before):
        if any(low < start + size and start < high for low, high in places):
            return age
    return len(before)
