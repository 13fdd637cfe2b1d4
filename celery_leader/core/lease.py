"""The values of a lease: its record, the requests to a store, and the store's answers.

Durations and moments are seconds. The moments here are on the store's clock; what a candidate
measures by its own clock comes as a duration. Nothing here knows Redis, threads or Celery.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from celery_leader.errors import StoreUnavailable


def life_of(nonce: str) -> str:
    """The public name of a life: a digest of its nonce, which does not give the nonce away."""
    text = nonce.encode("utf-8", "surrogateescape")
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()[:16]


#: Seconds that a moment or a term may be ahead of the store's clock, which may have been set
#: back. No candidate wrote anything that is further ahead.
CLOCK_SLACK = 366 * 86400.0


def cursor_order(cursor: str) -> tuple[int, int]:
    """A sort key for cursors, which count as ``milliseconds-sequence``."""
    millis, _, sequence = cursor.partition("-")
    return int(millis), int(sequence or 0)


def latest_term(server_time: float) -> int:
    """The highest term that a candidate can have by now."""
    return int((server_time + CLOCK_SLACK) * 1e6)


class State(enum.Enum):
    """What a record says of its lease."""

    TAKEN = "held"
    RELEASED = "released"
    RESERVED = "reserved"


@dataclass(frozen=True, slots=True)
class Record:
    """What the store keeps of one election, as it stood when the store answered.

    Attributes:
        remaining: how long the lease (or a reservation) still runs by the store's clock;
            negative once it has expired.
        renewals: grows with every write of one term, by the number of requests that the holder
            made since the last write. So ``(term, renewals)`` names one state of the lease, even
            after an old copy of the record was renewed.
        elected_at: when the holder was elected, by the store's clock.
        cursor: the last line of history; news begins after it.
        event: the line of history that was written with the record's last change.
        life: the holder's life.
        attempt: the number of the holder's last request.
    """

    holder: str
    term: int
    state: State
    remaining: float
    lease_duration: float
    renewals: int
    elected_at: float
    transitions: int
    successor: str | None
    app: str
    cursor: str
    event: str = "0-0"
    life: str = ""
    attempt: int = 0

    @property
    def led(self) -> bool:
        """Whether somebody leads, by the store's clock."""
        return self.state is State.TAKEN and self.remaining > 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a leadership ended, told when the store could be reached again.

    ``ago`` is how many seconds before the request it ended, by the candidate's clock.
    """

    term: int
    reason: str
    ago: float


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask for the lease.

    Attributes:
        nonce: names this candidate's life; a record with it is ours, whatever
            became of the reply.
        attempt: grows with every request of that life, so that a request that
            arrives after a later one is refused.
        seen_term: the highest term this candidate knows of.
        live_term: the term it leads with at this moment, or 0. A record of a
            lower term is older than what we hold and may be written over.
        watched: the ``(term, renewals)`` whose lease has run out by the
            candidate's own clock, or ``None`` if there is none.
        silent: the watched state of the lease has not changed for a whole lease on the
            candidate's own clock: it is over even if the store's clock went back.
        from_missing: a record that is missing, or older than ``seen_term``, may
            be made anew.
        from_damaged: a record that makes no sense may be made anew.
        priority: when a lease is over, a live candidate of a higher priority comes first.
        reservation: how long, in seconds, the lease is then kept for that candidate.
        ended: how this candidate's last leadership ended, if the store was not told.
        info: what this candidate says of itself; empty if the store knows it.
        abstains: the candidate only shows that it is there. It is not granted the lease, and no
            lease is kept for it because of its priority.
    """

    election: str
    holder: str
    nonce: str
    attempt: int
    lease_duration: float
    seen_term: int
    live_term: int
    watched: tuple[int, int] | None
    silent: bool
    from_missing: bool
    app: str
    priority: int
    reservation: float
    ended: Ended | None = None
    info: str = ""
    from_damaged: bool = False
    abstains: bool = False


@dataclass(frozen=True, slots=True)
class Renew:
    """Keep the lease held with ``nonce`` and ``term`` for another duration.

    Attributes:
        preempted: also ask whether a live candidate has a higher priority than ``priority``.
        info: what this candidate says of itself; empty if the store knows it.
    """

    election: str
    nonce: str
    attempt: int
    term: int
    lease_duration: float
    priority: int
    preempted: bool
    info: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Give the lease up, or for ``reservation`` seconds to ``successor``.

    If no successor is named, or the named one is held, the lease is kept for the live
    candidate of the highest priority, unless all other candidates have the same priority.

    Attributes:
        reason: what the history will say.
        leaving: this candidate goes for good, and leaves the register.
    """

    election: str
    holder: str
    nonce: str
    attempt: int
    successor: str | None
    reservation: float
    reason: str = "resigned"
    leaving: bool = False


Request = Acquire | Renew | Release


@dataclass(frozen=True, slots=True)
class StepDown:
    """Why a leader is to step down, and in favour of whom.

    ``reason`` is ``resigned`` or ``transferred`` (somebody gave that order), ``held`` (its
    node is kept out of the race) or ``outranked`` (``successor`` has a higher priority).
    """

    reason: str
    successor: str | None


@dataclass(frozen=True, slots=True)
class Namesake:
    """Another life of the asker's node that the store has heard of lately.

    Attributes:
        seen_at: when the store last heard of it, by the store's clock.
        place: where it runs, in its own words; empty if it does not say.
    """

    seen_at: float
    place: str


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is the asker's from now, with this term.

    Attributes:
        step_down: the order to step down, if a ``Renew`` finds one; the lease is renewed anyway.
        info_stored: whether the store has what the asker says of itself.
        namesake: another life of its node, if there is one.
    """

    term: int
    cursor: str
    server_time: float
    step_down: StepDown | None = None
    info_stored: bool = True
    namesake: Namesake | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The lease is not the asker's; the record says whose it is and for how long.

    ``held_for``: for how many seconds the asker is kept out of the race (for ever: infinity).
    """

    record: Record
    server_time: float
    held_for: float | None = None
    info_stored: bool = True
    namesake: Namesake | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no record, or only one older than the asker has seen: that proves nothing.

    ``damaged``: there is a record, but no candidate can have written it.
    """

    server_time: float
    held_for: float | None = None
    info_stored: bool = True
    namesake: Namesake | None = None
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Released:
    """The lease is not the asker's, whether it was before or not."""

    server_time: float


Reply = Granted | Refused | Missing | Released


@dataclass(frozen=True, slots=True)
class Announcement:
    """One line of an election's history.

    Attributes:
        kind: ``elected``; ``resigned``; ``reserved`` (a lease that had expired is kept for
            ``successor``, whose priority is higher than that of the candidate that found it);
            ``ended`` (how an earlier leadership ended, told late); ``asked`` (the leader is to
            step down); ``held`` or ``freed`` (a node is kept out of the race, or let in again).
        node: the node that was elected, resigned, and so on; in ``asked``, the leader.
        term: its term, or the term of the leader.
        successor: the node that the lease goes to, if one was named.
        reason: why a leadership ended; in ``elected``, why the one before it did, if nobody
            wrote that.
        ended_at: when it ended, by the store's clock, if that is not the moment of the line.
        life: the node's life, if the line is about one life only.
    """

    election: str
    cursor: str
    kind: str
    node: str
    term: int
    successor: str | None
    reason: str | None = None
    ended_at: float | None = None
    life: str = ""


class LeaseStore(Protocol):
    """Where leases live. Every method may raise ``StoreUnavailable``: nobody knows."""

    def perform(self, requests: Sequence[Request]) -> list[Reply | StoreUnavailable]:
        """Answer ``requests`` in order, in one round trip.

        An answer that could not be had stands in its place as an exception.
        """
        ...

    def announcements(
        self, cursors: dict[str, str], timeout: float, wake: int | None, patience: float = 1.0
    ) -> list[Announcement]:
        """Wait for news of these elections past these cursors.

        Returns at the first news, after ``timeout`` seconds, or as soon as the
        file descriptor ``wake`` can be read; then with what there is. A store that
        has not answered ``patience`` seconds after that time is unavailable.
        """
        ...

    def close(self) -> None:
        """Drop the connection; the next call makes another."""
        ...
