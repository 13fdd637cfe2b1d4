"""A pipe that ends the wait of a ``select``; for any thread and for signal handlers."""

from __future__ import annotations

import contextlib
import os


class WakePipe:
    """Wakes whoever waits until its ``fileno`` can be read. Takes no lock."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """The file descriptor to wait for."""
        return self._read

    def wake(self) -> None:
        """End the wait that is under way, or the next one."""
        # A full pipe wakes anyway. A closed pipe is a forked child's copy of its parent's.
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._write, b"!")

    def drain(self) -> None:
        """Take all calls of ``wake`` as answered.

        Call it only when the pipe can be read. With eventlet a read of an empty pipe blocks, though
        the pipe is set not to block.
        """
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)

    def close(self) -> None:
        """Give both ends back to the system."""
        for fd in (self._read, self._write):
            with contextlib.suppress(OSError):
                os.close(fd)
