"""The durations of an election, in seconds, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

from celery_leader.errors import LeaderError

#: Seconds. No candidate writes a longer lease, because others wait for a lease that they find.
LONGEST_LEASE = 3600.0

#: Seconds; a compromise between failover time and patience with a busy Redis.
DEFAULT_LEASE = 25.0


@dataclass(frozen=True, slots=True)
class Timing:
    """The durations of an election, in seconds, checked against each other.

    Attributes:
        lease_duration: how long one renewal lasts. A crashed leader is replaced
            after this long; a leader cut off from Redis stops leading a margin
            before it.
        renew_interval: from one renewal to the next.
        renew_attempts: how often one renewal is tried before leading is given up.
        renew_retry_delay: from a failed attempt to the next.
        election_jitter: the longest random wait after a lease has expired, so that
            not every follower asks in the same instant.
        operation_timeout: how long Redis may take over one answer.
        bootstrap_delay: how long a candidate that has never seen a record waits
            before it makes the first one. A fresh candidate cannot tell a first
            boot from a Redis that lost its data; with a whole lease here, it
            cannot overlap with a leader it knows nothing of.

    Raises:
        LeaderError: a value is out of range, or the renewals of a leader that
            gets no answer would not all fit into its lease.
    """

    lease_duration: float = DEFAULT_LEASE
    renew_interval: float = 10.0
    renew_attempts: int = 3
    renew_retry_delay: float = 0.5
    election_jitter: float = 0.25
    operation_timeout: float = 1.0
    bootstrap_delay: float = 0.0

    @classmethod
    def of_lease(cls, lease_duration: float) -> Timing:
        """The default times in proportion to ``lease_duration``."""
        return cls(
            lease_duration=lease_duration,
            renew_interval=0.4 * lease_duration,
            renew_retry_delay=0.02 * lease_duration,
            election_jitter=0.01 * lease_duration,
            operation_timeout=min(1.0, 0.1 * lease_duration),
        )

    @property
    def margin(self) -> float:
        """How far two clocks may run apart during one lease: 5 % of it, at least 0.1 s."""
        return max(0.05 * self.lease_duration, 0.1)

    @property
    def renewal_budget(self) -> float:
        """From one renewal until a leader without an answer gives up, and the margin."""
        attempt = self.operation_timeout + self.renew_retry_delay
        return self.renew_interval + self.renew_attempts * attempt + self.margin

    @property
    def reservation(self) -> float:
        """How long a lease is kept for a named successor before anybody may take it."""
        return 0.1 * self.lease_duration

    def __post_init__(self) -> None:
        for field in ("lease_duration", "renew_interval", "operation_timeout"):
            if not getattr(self, field) > 0:
                raise LeaderError(f"leader_{field} is {getattr(self, field)!r}: it must be above 0")
        for field in ("renew_retry_delay", "election_jitter", "bootstrap_delay"):
            if not getattr(self, field) >= 0:
                raise LeaderError(
                    f"leader_{field} is {getattr(self, field)!r}: it must be 0 or more"
                )
        if self.lease_duration > LONGEST_LEASE:
            raise LeaderError(
                f"leader_lease_duration is {self.lease_duration:g} s: it must be"
                f" {LONGEST_LEASE:g} s at most"
            )
        if self.renew_attempts < 1:
            raise LeaderError(
                f"leader_renew_attempts is {self.renew_attempts!r}: it must be 1 or more"
            )
        if self.renewal_budget >= self.lease_duration:
            raise LeaderError(
                f"leader_lease_duration ({self.lease_duration:g} s) must be longer than"
                f" leader_renew_interval + leader_renew_attempts x (leader_operation_timeout"
                f" + leader_renew_retry_delay) + margin ({self.renewal_budget:g} s ="
                f" {self.renew_interval:g} + {self.renew_attempts} x"
                f" ({self.operation_timeout:g} + {self.renew_retry_delay:g}) + {self.margin:g}):"
                " lengthen the lease or shorten the others"
            )
