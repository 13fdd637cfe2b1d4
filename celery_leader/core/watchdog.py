"""Whether a process is fit to lead: its event loop moves, its broker answers.

The election's thread renews the lease even when the rest of its process hangs. A leader that
cannot do its work must not lead on. Time is an argument. Guaranteed: silence is noticed after
``patience`` and a little more. A process that was paused as a whole does not count as stalled.
Not guaranteed: that a process that moves gets work done.
"""

from __future__ import annotations

import logging
from typing import Protocol

#: The reasons for which a leader gives its lease up when it does not meet a requirement.
UNFIT = ("stalled", "broker lost", "clock")

#: What a candidate says of itself whose process ends, and whose bodies still run.
SHUTS_DOWN = "its process ends, and leader-only bodies still run there"

_NEVER = float("inf")


class Requirement(Protocol):
    """One condition that a process must meet to lead; the election's thread asks for it."""

    @property
    def reason(self) -> str:
        """Why the lease was given up, as the history says it."""

    @property
    def level(self) -> int:
        """The level at which the log says that the requirement is not met."""

    @property
    def keeps_place(self) -> bool:
        """Whether a process that does not meet it stays in the register of candidates."""

    def heard(self, server_time: float, sent_at: float, now: float) -> None:
        """Redis answered at ``now`` a request sent at ``sent_at``, and told its time."""

    def trouble(self, now: float) -> str:
        """What is wrong while the requirement is not met, for people."""

    @property
    def cure(self) -> str:
        """What must happen before the process leads again, for the log."""

    @property
    def relief(self) -> str:
        """What is right again when the requirement is met, for the log."""

    def fails(self, now: float) -> bool:
        """Whether the requirement is not met."""

    def look_again_at(self, now: float) -> float:
        """When the answer of ``fails`` can be another."""


class Shutdown:
    """A process that ends stays in contact while bodies run whose successors must know of them."""

    reason = "resigned"
    cure = "it is started again"
    relief = "it goes on"
    level = logging.INFO
    keeps_place = True

    def __init__(self) -> None:
        self.begun = False

    def heard(self, server_time: float, sent_at: float, now: float) -> None:
        """Nothing to do: an answer of Redis changes nothing about it."""

    def trouble(self, now: float) -> str:
        """What is going on, for people."""
        return SHUTS_DOWN

    def fails(self, now: float) -> bool:
        """Whether it has begun."""
        return self.begun

    def look_again_at(self, now: float) -> float:
        """Never by itself."""
        return _NEVER


class Heartbeat:
    """The signs of life of something that a process needs in order to lead.

    Args:
        what: the name of the thing watched, for the log.
        patience: for how long, in seconds, it may be silent.
    """

    reason = "stalled"
    cure = "it moves"
    level = logging.WARNING
    keeps_place = False

    def __init__(self, what: str, patience: float) -> None:
        self.what = what
        self.patience = patience
        self._silent_at = _NEVER
        self._doubted: tuple[float, float] | None = None

    def heard(self, server_time: float, sent_at: float, now: float) -> None:
        """Nothing to do: an answer of Redis is no sign of life of the thing watched."""

    def trouble(self, now: float) -> str:
        """What is wrong while it is stalled."""
        return f"{self.what} has stood still for more than {self.patience:g} s"

    @property
    def relief(self) -> str:
        """What is right again when it moves."""
        return f"{self.what} moves again"

    @property
    def period(self) -> float:
        """How often, in seconds, a sign of life is to be given."""
        return min(1.0, self.patience / 4)

    @property
    def _grace(self) -> float:
        # After a pause of the process the last sign is old, but the next one comes soon.
        return min(5.0, self.patience / 2)

    # -- from the thing watched --------------------------------------------------

    def beat(self, now: float, rest: float = 0.0) -> None:
        """It moves, and may now be silent for ``rest`` seconds on purpose."""
        self._silent_at = now + rest + self.patience

    def suspend(self) -> None:
        """It is silent for a good reason, until the next sign of life."""
        self._silent_at = _NEVER

    # -- from the election's thread ----------------------------------------------

    def fails(self, now: float) -> bool:
        """Whether it is stalled: silent for too long, and still silent at a second look."""
        silent_at = self._silent_at
        if now < silent_at:
            self._doubted = None
            return False
        if self._doubted is None or self._doubted[0] != silent_at:
            self._doubted = silent_at, now
        return now >= self._doubted[1] + self._grace

    def look_again_at(self, now: float) -> float:
        """When the answer of ``fails`` can be another."""
        return self._silent_at if self._doubted is None else now + self._grace / 5


class BrokerHeartbeat(Heartbeat):
    """The answers of the broker, whose silence counts only while one is expected.

    Args:
        lease_duration: about how long, in seconds, the broker may be away.
        least: how long, in seconds, it may be away in any case.
    """

    reason = "broker lost"
    cure = "it answers"
    relief = "the broker answers again"

    def __init__(self, lease_duration: float, least: float = 2.0) -> None:
        # With the grace of the second look this is one lease at most, except for short leases.
        super().__init__("the broker", max(lease_duration * 2 / 3, least))

    def trouble(self, now: float) -> str:
        """What is wrong while it does not answer."""
        return "the broker does not answer"

    def expect(self, now: float) -> None:
        """An answer is awaited from now on, unless one is awaited already."""
        self._silent_at = min(self._silent_at, now + self.patience)

    @property
    def awaited(self) -> bool:
        """Whether an answer is awaited."""
        return self._silent_at < _NEVER
