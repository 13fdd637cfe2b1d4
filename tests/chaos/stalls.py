"""When the machine, and not what is tested, stood still."""

from __future__ import annotations

import threading
import time

from tests.chaos.moments import present


class Stalls:
    """How long this machine made a thread wait that wanted to run."""

    _STEP = 0.05

    def __init__(self) -> None:
        self._seen: list[tuple[int, float]] = []
        threading.Thread(target=self._watch, name="stalls", daemon=True).start()

    def _watch(self) -> None:
        while True:
            before = time.monotonic()
            time.sleep(self._STEP)
            over = time.monotonic() - before - self._STEP
            if over > self._STEP:
                self._seen.append((present(), over))

    def between(self, begin: int, end: int) -> float:
        """Seconds of it from ``begin`` to ``end``."""
        return sum(over for at, over in self._seen if begin <= at <= end)
