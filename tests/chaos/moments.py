"""Moments of a run, as whole microseconds since the epoch."""

from __future__ import annotations

import time


def present() -> int:
    """The present moment."""
    return time.time_ns() // 1000


def time_of_day(moment: int) -> str:
    """The time of day of ``moment``, in UTC."""
    seconds, micros = divmod(moment, 1_000_000)
    return f"{time.strftime('%H:%M:%S', time.gmtime(seconds))}.{micros:06}"
