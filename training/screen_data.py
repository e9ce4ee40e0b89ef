"""What `npusim train data stats` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_statistics(found: list[dict[str, Any]], console: Console | None = None) -> None:
    """One block per variant, and one table of them all if there are several."""
    console = console or Console()
    if len(found) > 1:
        console.print(_summary(found))
    for one in found:
        _print_one(one, console)


def _summary(found: list[dict[str, Any]]) -> Table:
    table = Table("variant", "step", box=None, header_style="bold")
    for name in ("kept", "set aside", "removed", "edited"):
        table.add_column(name, justify="right")
    for one in found:
        away = sum(one["set_aside"].values())
        rates = (f"{one['removal_rate']:.1%}", f"{one['edit_rate']:.1%}")
        table.add_row(escape(one["variant"]), one["step"], f"{one['kept']:,}", f"{away:,}", *rates)
    return table


def _print_one(one: dict[str, Any], console: Console) -> None:
    state = "" if one["finished"] else " (not finished)"
    console.print(f"\n[bold]{escape(one['variant'])}[/bold]: {one['step']}{state}")
    console.print(f"  kept {one['kept']:,}; removed {one['removal_rate']:.1%}, edited {one['edit_rate']:.1%}")
    for cause, count in one["set_aside"].items():
        console.print(f"  set aside {count:,}: {escape(cause)} (such as: {escape(one['examples'][cause])})")
    if one["kept"]:
        words, side = one["caption_words"], one["shorter_side_pixels"]
        sources = ", ".join(f"{escape(name)} {count:,}" for name, count in one["caption_sources"].items())
        console.print(
            f"  captions: {sources}; {words['least']} to {words['largest']} words, median {words['median']}"
        )
        console.print(f"  shorter side: {side['least']} to {side['largest']} px, median {side['median']}")
    for attribute, counts in one["coverage"].items():
        spread = ", ".join(f"{escape(value)} {count:,}" for value, count in counts.items())
        console.print(f"  {escape(attribute)}: {spread}")
    made_of = one["lineage"][1:]
    for row in made_of:
        changed = "" if row["found"] else " [bold](gone, or changed since)[/bold]"
        console.print(f"  made of {escape(row['folder'])} ({row['step']}, {row['kept']:,} kept){changed}")


def print_coverage(
    asked: dict[str, dict[str, int]], there: dict[str, dict[str, int]], console: Console | None = None
) -> None:
    """The coverage table: how often each value was asked for, and how often it is in the variant."""
    table = Table("attribute", "value", box=None, header_style="bold")
    for name in ("asked for", "there", "share"):
        table.add_column(name, justify="right")
    for attribute, values in asked.items():
        total = sum(there.get(attribute, {}).values())
        for value, number in values.items():
            found = there.get(attribute, {}).get(value, 0)
            share = f"{found / total:.1%}" if total else "-"
            table.add_row(escape(attribute), escape(value), f"{number:,}", f"{found:,}", share)
    (console or Console()).print(table)


def print_preference(found: dict[str, Any], console: Console | None = None) -> None:
    """The figures of a preference study."""
    console = console or Console()
    console.print(f"a: {escape(found['a_set'])}\nb: {escape(found['b_set'])}")
    asked = f"{found['participants']} participants, {found['pairs']} pairs"
    console.print(
        f"{found['comparisons']:,} comparisons ({asked}): a {found['a']}, b {found['b']}, ties {found['ties']}"
    )
    if not found["comparisons"]:
        return
    wilson, clustered, sides = (
        _interval(found[key]) for key in ("wilson_95", "clustered_95", "left_wilson_95")
    )
    console.print(f"win rate of a, ties split: [bold]{found['win_rate']:.1%}[/bold] (Wilson 95 %: {wilson})")
    console.print(f"  participants and pairs drawn again: {clustered}")
    console.print(f"  exact test against one half, without ties: p = {found['p_value']:.3g}")
    balance = f"a was on the left in {found['a_shown_left']} of {found['comparisons']:,}"
    console.print(
        f"left preferred: {found['left_rate']:.1%} ({sides}; p = {found['left_p_value']:.3g}); {balance}"
    )


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.1%} to {bounds[1]:.1%}"
