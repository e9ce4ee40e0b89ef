"""What our own worker processes are told when they start."""

from __future__ import annotations

import signal
from typing import Any

from distributed import WorkerPlugin


class LeaveInterruptsToTheClient(WorkerPlugin):  # type: ignore[misc]
    """Ctrl-C in a terminal reaches all processes started there; the client alone acts on it, and then ends the workers."""

    def setup(self, worker: Any) -> None:
        """Called in the main thread of each worker, also of one that takes a dead one's place."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
