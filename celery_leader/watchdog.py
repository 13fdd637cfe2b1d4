"""Whether what a leader leads for still moves: a worker's event loop, a beat's ticks.

The election's thread renews whatever becomes of the rest of its process; a leader whose
own work stands still must not lead on. Time is an argument. Guaranteed: what stands is
noticed after ``patience`` and a little more. A process that was paused as a whole is
not taken for one whose work stands. Not guaranteed: that work that moves gets anything done.
"""

from __future__ import annotations

_NEVER = float("inf")


class Pulse:
    """The signs of life of one thing that must move while its process leads.

    Args:
        what: what moves, for the log.
        patience: for how long, in seconds, it may be silent.
    """

    def __init__(self, what: str, patience: float) -> None:
        self.what = what
        self.patience = patience
        self._silent_at = _NEVER
        self._doubted: tuple[float, float] | None = None

    @property
    def period(self) -> float:
        """How often, in seconds, a sign of life is to be given."""
        return min(1.0, self.patience / 4)

    @property
    def _grace(self) -> float:
        # Who was paused finds its own last sign long ago, and gives the next one soon.
        return min(5.0, self.patience / 2)

    # -- from what moves ---------------------------------------------------------

    def beat(self, now: float, rest: float = 0.0) -> None:
        """It moves, and may now be silent for ``rest`` seconds on purpose."""
        self._silent_at = now + rest + self.patience

    def suspend(self) -> None:
        """It stands for a good reason, until the next sign of life."""
        self._silent_at = _NEVER

    # -- from the election's thread ----------------------------------------------

    def stands(self, now: float) -> bool:
        """Whether it stands still: silent for too long, and looked at twice."""
        silent_at = self._silent_at
        if now < silent_at:
            self._doubted = None
            return False
        if self._doubted is None or self._doubted[0] != silent_at:
            self._doubted = silent_at, now
        return now >= self._doubted[1] + self._grace

    def look_again_at(self, now: float) -> float:
        """When there can be something new to see."""
        return self._silent_at if self._doubted is None else now + self._grace / 5
