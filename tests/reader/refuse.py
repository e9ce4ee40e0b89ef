"""Run in a process of its own: gives every model named on the command line to npusim, and reports what happened as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import time
import traceback
from typing import Any

opened: list[str] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        opened.append(arguments[0])


def attempt(path: str) -> dict[str, Any]:
    """Exit code, output, seconds and opened files of one `npusim profile`."""
    from npusim import cli

    error, output = io.StringIO(), io.StringIO()
    opened.clear()
    begin = time.monotonic()
    code: Any = 0
    sys.argv = ["npusim", "profile", path, "--tiles", "sram"]
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(output):
            cli.main()
    except SystemExit as leave:
        code = leave.code
    except BaseException:
        code = traceback.format_exc()
    seconds = time.monotonic() - begin
    return {
        "code": code, "error": error.getvalue(), "output": output.getvalue(), "seconds": seconds, "opened": list(opened),
        "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }  # fmt: skip


if __name__ == "__main__":
    sys.addaudithook(_note)
    for given in sys.argv[1:]:
        sys.stdout.write(json.dumps(attempt(given)) + "\n")
        sys.stdout.flush()
