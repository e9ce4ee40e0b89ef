"""Work that makes many small objects and hardly a cycle: looking for cycles meanwhile would cost a tenth of the time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected_cycles() -> Iterator[None]:
    """Collect no cycles within; reference counts free what they always free."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
