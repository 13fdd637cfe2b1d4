"""When a beat tries again. Its log has one line when an outage begins, and one when it ends."""

from __future__ import annotations

from celery_leader.runtime.log import get_logger

logger = get_logger(__name__)

_SHORTEST = 0.05  # seconds
#: Seconds; the longest pause between attempts in an outage.
LONGEST_PAUSE = 0.8


class Retries:
    """Counts the failures in a row of a beat's requests to Redis and to the broker."""

    def __init__(self) -> None:
        self.failures = 0

    def failed(self, what: str, exc: Exception) -> None:
        """Note that ``what`` could not be done now, and is tried again."""
        self.failures += 1
        if self.failures == 1:
            logger.warning("beat: %s stays due and is tried again: %s", what, exc)

    def succeeded(self) -> None:
        """Note a success, which ends the row of failures."""
        if self.failures:
            logger.info("beat: dispatching again after %d failed attempt(s)", self.failures)
            self.failures = 0

    def pause(self, longest: float) -> float:
        """How many seconds to wait before the next attempt, ``longest`` at most."""
        return float(min(_SHORTEST * 2 ** min(self.failures, 10), LONGEST_PAUSE, longest))
