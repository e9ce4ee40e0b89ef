"""Append-only JSON lines that survive a kill: whole lines, flushed to the disk in batches."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from npusim.errors import BadInputError, OutputError

_BLOCK = 1 << 20


class Log:
    """One writer's file of lines. What follows the last whole line (a kill in mid-write) is cut off when it is opened.

    A line counts as finished once `flush` has returned. The file is locked while it is open.
    """

    def __init__(self, path: Path) -> None:
        """Open to append.

        Raises:
            BadInputError: another process has it open.
            OutputError: it cannot be written.
        """
        self.path = path
        self._waiting: list[str] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}); choose another --out"
            ) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            raise BadInputError(
                f"{path}: another process is writing it; wait for it to end, or choose another --out"
            ) from error
        self.count, self._end = _repair(self._handle)
        """Whole lines in the file."""

    def append(self, line: str) -> None:
        """Add one line, without its newline; it is written by the next `flush`."""
        self._waiting.append(line + "\n")

    def flush(self) -> None:
        """Write the waiting lines and push them to the disk.

        Raises:
            OutputError: the disk refused; lines flushed before stand.
        """
        if not self._waiting:
            return
        data = memoryview("".join(self._waiting).encode())
        count, size = len(self._waiting), len(data)
        self._waiting.clear()
        try:
            while data:
                data = data[os.write(self._handle, data) :]
            os.fsync(self._handle)
        except OSError as error:
            os.ftruncate(self._handle, self._end)  # no part of a line stays
            os.lseek(self._handle, self._end, os.SEEK_SET)
            raise OutputError(
                f"{self.path}: could not be written ({error.strerror}); the lines before are kept: free some space, "
                "then run the same command again to go on"
            ) from error
        self.count += count
        self._end += size

    def close(self) -> None:
        """Flush and release the file."""
        try:
            self.flush()
        finally:
            os.close(self._handle)

    def __enter__(self) -> Log:
        """The log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def _repair(handle: int) -> tuple[int, int]:
    """Cut off what is not a whole JSON line at the end; the lines and bytes that stay."""
    count, end, position = 0, 0, 0
    while block := os.pread(handle, _BLOCK, position):
        count += block.count(b"\n")
        newline = block.rfind(b"\n")
        end = position + newline + 1 if newline >= 0 else end
        position += len(block)
    if count:
        size = min(end, 16 * _BLOCK)
        tail = os.pread(handle, size, end - size)
        last = tail[tail.rfind(b"\n", 0, -1) + 1 :]
        if not _is_json(last):
            count, end = count - 1, end - len(last)
    os.ftruncate(handle, end)
    os.lseek(handle, end, os.SEEK_SET)
    return count, end


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Whole lines with their numbers from 1; a torn last one is left out.

    Raises:
        BadInputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield number, line
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from error
