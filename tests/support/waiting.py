"""Waiting for a condition, with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STEP = 0.01
PATIENCE = 30.0  # seconds; generous, because it is only ever used up by a failure


def wait_until(
    condition: Callable[[], T], timeout: float = PATIENCE, what: str = "the condition"
) -> T:
    """Return the first true value of ``condition``.

    Raises:
        AssertionError: there was none within ``timeout`` seconds; it names ``what``.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(
                f"waited {timeout:g} s in vain for {what} (the last answer was {value!r})"
            )
        time.sleep(STEP)
