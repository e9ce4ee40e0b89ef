"""What is being done, shown while it takes long: on stderr, and only if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


@contextmanager
def stage(text: str, *, quiet: bool = False) -> Iterator[None]:
    """Show a text with the time that it takes; it goes when the work is done."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    with _bar(count=False) as bar:
        bar.add_task(text, total=None)
        yield


def track(items: Iterable[T], text: str, *, total: int, quiet: bool = False) -> Iterator[T]:
    """The items, with a bar of how many are done."""
    if quiet or not sys.stderr.isatty():
        yield from items
        return
    with _bar(count=True) as bar:
        task = bar.add_task(text, total=total)
        for item in items:
            yield item
            bar.advance(task)


@contextmanager
def counter(text: str, total: int, *, done: int = 0, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A function to be called with how many more are done; shows them with their rate and the time that is left."""
    if quiet or not sys.stderr.isatty():
        yield lambda more: None
        return
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    bar = _bar(count=True)
    rate = TextColumn("{task.fields[rate]}")
    with Progress(
        *bar.columns[:-1], rate, TimeRemainingColumn(), console=bar.console, transient=True
    ) as shown:
        task = shown.add_task(text, total=total, completed=done, rate="")

        def advance(more: int) -> None:
            shown.advance(task, more)
            speed = shown.tasks[0].speed
            if speed:
                shown.update(task, rate=f"{speed:.3g}/s")

        yield advance


def _bar(*, count: bool) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    text = TextColumn("{task.description}", markup=False)
    counted = (BarColumn(), MofNCompleteColumn()) if count else ()
    return Progress(
        SpinnerColumn(), text, *counted, TimeElapsedColumn(), console=Console(stderr=True), transient=True
    )
