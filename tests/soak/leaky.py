"""Leaks on purpose what ``VARIABLE`` says, in every process that imports this.

So that the soak is seen to find a leak.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

VARIABLE = "SOAK_LEAK"

_kept: list[Any] = []


def _memory() -> None:
    _kept.append(os.urandom(64 * 1024))  # twice a second: 7.5 MiB a minute


def _descriptor() -> None:
    _kept.append(os.open("/dev/null", os.O_RDONLY))


def _thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def _connection() -> None:
    _kept.append(socket.create_connection(_listener.getsockname()))
    _kept.append(_listener.accept())


LEAKS: dict[str, Callable[[], None]] = {
    "memory": _memory,
    "descriptors": _descriptor,
    "threads": _thread,
    "connections": _connection,
}


def _go_on(leak: Callable[[], None]) -> None:
    while True:
        time.sleep(0.5)
        leak()


if VARIABLE in os.environ:
    _listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_go_on, args=(LEAKS[os.environ[VARIABLE]],), daemon=True).start()
