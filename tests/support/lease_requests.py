"""Makes requests to a lease store, with defaults for the values that a test does not set."""

from __future__ import annotations

from celery_leader.core.lease import Acquire, Ended, Release, Renew

NAME = "beat"
LONG = 600.0


def acquire(
    holder: str,
    attempt: int = 1,
    *,
    election: str = NAME,
    nonce: str | None = None,
    lease_duration: float = LONG,
    seen_term: int = 0,
    live_term: int = 0,
    watched: tuple[int, int] | None = None,
    silent: bool = False,
    from_missing: bool = True,
    app: str = "proj|1",
    priority: int = 0,
    reservation: float = LONG,
    ended: Ended | None = None,
    info: str = "",
    from_damaged: bool = False,
    abstains: bool = False,
) -> Acquire:
    return Acquire(
        election=election,
        holder=holder,
        nonce=nonce or f"life of {holder}",
        attempt=attempt,
        lease_duration=lease_duration,
        seen_term=seen_term,
        live_term=live_term,
        watched=watched,
        silent=silent,
        from_missing=from_missing,
        app=app,
        priority=priority,
        reservation=reservation,
        ended=ended,
        info=info,
        from_damaged=from_damaged,
        abstains=abstains,
    )


def renew(
    holder: str,
    attempt: int,
    term: int,
    *,
    election: str = NAME,
    nonce: str | None = None,
    lease_duration: float = LONG,
    priority: int = 0,
    preempted: bool = False,
    info: str = "",
) -> Renew:
    return Renew(
        election=election,
        nonce=nonce or f"life of {holder}",
        attempt=attempt,
        term=term,
        lease_duration=lease_duration,
        priority=priority,
        preempted=preempted,
        info=info,
    )


def release(
    holder: str,
    attempt: int,
    *,
    election: str = NAME,
    nonce: str | None = None,
    successor: str | None = None,
    reservation: float = LONG,
    reason: str = "resigned",
    leaving: bool = False,
) -> Release:
    return Release(
        election=election,
        holder=holder,
        nonce=nonce or f"life of {holder}",
        attempt=attempt,
        successor=successor,
        reservation=reservation,
        reason=reason,
        leaving=leaving,
    )
