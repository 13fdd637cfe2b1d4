"""The one place where a clock is read.

``now()`` counts seconds from an arbitrary moment, is the same in every process
of the machine, never goes back, and goes on while the machine sleeps.
It does not tell the time of day. ``wall_clock()`` does, and can be set; it is for people, and for
messages that outlive a machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable

if hasattr(time, "CLOCK_BOOTTIME"):

    def now() -> float:
        """Seconds, on a clock that goes on while the machine is suspended."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # pragma: no cover - macOS and others: their monotonic clock is what there is
    now: Callable[[], float] = time.monotonic  # type: ignore[no-redef]


def wall_clock() -> float:
    """Seconds since 1970 by this machine's clock."""
    return time.time()  # noqa: TID251
