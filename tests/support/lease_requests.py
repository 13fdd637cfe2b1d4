"""Makes requests to a lease store, with defaults for the values that a test does not set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celery_leader.core.lease import Acquire, Release, Renew

NAME = "beat"
LONG = 600.0

_ACQUIRE = Acquire(
    election=NAME,
    holder="",
    nonce="",
    attempt=1,
    lease_duration=LONG,
    seen_term=0,
    live_term=0,
    watched=None,
    silent=False,
    from_missing=True,
    app="proj|1",
    priority=0,
    reservation=LONG,
)
_RENEW = Renew(
    election=NAME,
    nonce="",
    attempt=1,
    term=0,
    lease_duration=LONG,
    priority=0,
    preempted=False,
    info="",
)
_RELEASE = Release(
    election=NAME,
    holder="",
    nonce="",
    attempt=1,
    successor=None,
    reservation=LONG,
    reason="resigned",
    leaving=False,
)


def acquire(holder: str, attempt: int = 1, **fields: Any) -> Acquire:
    return replace(_ACQUIRE, holder=holder, attempt=attempt, **_in_life(holder, fields))


def renew(holder: str, attempt: int, term: int, **fields: Any) -> Renew:
    return replace(_RENEW, attempt=attempt, term=term, **_in_life(holder, fields))


def release(holder: str, attempt: int, **fields: Any) -> Release:
    return replace(_RELEASE, holder=holder, attempt=attempt, **_in_life(holder, fields))


def _in_life(holder: str, fields: dict[str, Any]) -> dict[str, Any]:
    """``fields``, with the one life that ``holder`` has unless they name another."""
    return {**fields, "nonce": fields.get("nonce") or f"life of {holder}"}
