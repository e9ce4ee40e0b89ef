"""What our own worker processes are told when they start."""

from __future__ import annotations

import gc
import signal
from typing import Any

from distributed import WorkerPlugin

import npusim.sweep.evaluate  # noqa: F401  what stays for good, before it is frozen


class Prepared(WorkerPlugin):  # type: ignore[misc]
    """Ctrl-C in a terminal reaches all processes started there: the client alone acts on it, and then ends the workers.

    No collection of cycles looks again at modules and the like.
    """

    def setup(self, worker: Any) -> None:
        """Called in the main thread of each worker, also of one that takes a dead one's place."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.freeze()
