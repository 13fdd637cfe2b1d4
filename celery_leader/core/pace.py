"""How soon a candidate asks again after an attempt that was not answered."""

from __future__ import annotations

import random

from .timing import Timing


class Pace:
    """Counts unanswered attempts, and says how long to wait.

    Args:
        timing: the election's durations.
        chance: where random waits come from; a simulator passes a seeded one.
    """

    def __init__(self, timing: Timing, chance: random.Random) -> None:
        self._timing = timing
        self._chance = chance
        self._failures = 0

    def reset(self) -> None:
        """Count from zero: the store has answered, or the candidate's part has changed."""
        self._failures = 0

    def failed(self) -> bool:
        """Count an unanswered attempt; returns whether ``renew_attempts`` are used up."""
        self._failures += 1
        return self._failures >= self._timing.renew_attempts

    def pause(self, lasting: bool) -> float:
        """How long a candidate waits after an attempt that was not answered.

        At first as long as a leader waits between attempts, so that a short outage costs little
        time; then longer and longer, so that Redis is not flooded while it comes back. The
        waits grow up to a lease if the trouble is ``lasting``, and else up to a reservation.
        """
        timing = self._timing
        most = timing.lease_duration if lasting else timing.reservation
        over = max(0, self._failures - timing.renew_attempts)
        if not over or most <= timing.renew_retry_delay:
            return timing.renew_retry_delay
        longer = min(timing.renew_retry_delay * 2.0 ** min(over, 64), most)
        return max(timing.renew_retry_delay, self._chance.uniform(longer / 2, longer))

    def jitter(self) -> float:
        """A short random wait, so that not every candidate asks in the same instant."""
        return self._chance.uniform(0.0, self._timing.election_jitter)
