"""How values stand in Redis's requests and answers."""

from __future__ import annotations


def millis(seconds: float) -> int:
    """``seconds`` in milliseconds, as scripts are given durations."""
    return round(seconds * 1000)
