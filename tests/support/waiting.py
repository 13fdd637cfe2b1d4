"""Waiting for a condition, with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STEP = 0.01  # seconds between two looks, and more when it takes long
_LONGEST_STEP = 0.05
PATIENCE = 30.0  # seconds; generous, because it is only ever used up by a failure


def wait_until(
    condition: Callable[[], T], timeout: float = PATIENCE, what: str = "the condition"
) -> T:
    """Return the first true value of ``condition``.

    Raises:
        AssertionError: there was none within ``timeout`` seconds; it names ``what``.
    """
    begun = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - begun
        if waited >= timeout:
            raise AssertionError(
                f"waited {timeout:g} s in vain for {what} (the last answer was {value!r})"
            )
        time.sleep(min(max(STEP, waited / 20), _LONGEST_STEP))
