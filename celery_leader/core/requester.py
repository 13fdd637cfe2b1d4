"""One candidate as the store sees it: its names, its priority, and the requests that it makes."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from .lease import Acquire, Announcement, Record, Release, Renew, life_of
from .observed_lease import ObservedLease
from .own_lease import OwnLease, Resignation
from .timing import Timing


class Requester:
    """Who one candidate is, and the requests that it makes.

    Args:
        election: the election's name.
        holder: the candidate's node name, as others will read it.
        nonce: names this life of the candidate in the store; never used twice. A life is one run
            of a candidate: a process that starts again with the same node name is another life.
        timing: the election's durations.
        app: tells projects that share a store apart.
        priority: the higher comes first at a handover or an expiry.
        preempt: whether its renewals ask if a live candidate has a higher priority.
        info: what the candidate says of itself in the register.
        new_nonce: makes the nonce of another life, needed if a copy of this process has the same.

    Attributes:
        life: the public name of this life; unlike the nonce it may be shown.
        attempt: the number of the last request; it grows with each request.
    """

    def __init__(
        self,
        election: str,
        *,
        holder: str,
        nonce: str,
        timing: Timing,
        app: str = "",
        priority: int = 0,
        preempt: bool = False,
        info: str = "",
        new_nonce: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self.election = election
        self.holder = holder
        self.nonce = nonce
        self.life = life_of(nonce)
        self.timing = timing
        self.priority = priority
        self.attempt = 0
        self._app = app
        self._preempt = preempt
        self._info = info
        self._info_stored = False
        self._new_nonce = new_nonce

    def acquire(
        self, observed: ObservedLease, own: OwnLease, now: float, *, abstains: bool
    ) -> Acquire:
        """Ask for the lease."""
        may_make_record = own.term is not None or observed.may_make_record(now)
        return Acquire(
            election=self.election,
            holder=self.holder,
            nonce=self.nonce,
            attempt=self._next_attempt(),
            lease_duration=self.timing.lease_duration,
            seen_term=observed.seen_term,
            live_term=own.term or 0,
            watched=observed.run_out(now),
            silent=observed.is_silent(now),
            from_missing=may_make_record,
            from_damaged=observed.longest_lease > 0 and may_make_record,
            app=self._app,
            priority=self.priority,
            reservation=self.timing.reservation,
            ended=own.ended(now),
            info=self._info_to_send(),
            abstains=abstains,
        )

    def renew(self, term: int) -> Renew:
        """Keep the lease."""
        return Renew(
            election=self.election,
            nonce=self.nonce,
            attempt=self._next_attempt(),
            term=term,
            lease_duration=self.timing.lease_duration,
            priority=self.priority,
            preempted=self._preempt,
            info=self._info_to_send(),
        )

    def release(self, resignation: Resignation, *, leaving: bool) -> Release:
        """Give the lease up; with ``leaving`` also leave the register."""
        return Release(
            election=self.election,
            holder=self.holder,
            nonce=self.nonce,
            attempt=self._next_attempt(),
            successor=resignation.successor,
            reservation=self.timing.reservation,
            reason=resignation.reason,
            leaving=leaving,
        )

    def introduce(self, info: str) -> None:
        """Say ``info`` of itself from now on."""
        self._info = info
        self._info_stored = False

    def info_is_stored(self, request: Acquire | Renew, stored: bool) -> None:
        """The store said whether it has this candidate's info."""
        self._info_stored = stored and (self._info_stored or request.info == self._info)

    def released(self, request: Release) -> None:
        """The store has answered a release."""
        if request.leaving:
            self._info_stored = False

    def is_meant(self, news: Announcement) -> bool:
        """Whether an announcement is about this candidate."""
        # A hold is for all lives of a node, and earlier versions wrote no life: names decide.
        return news.life == self.life if news.life else news.node == self.holder

    def is_copied(self, request: Acquire | Renew, record: Record) -> bool:
        """Whether the store has a request of this life that this candidate never made."""
        return record.life == self.life and record.attempt >= request.attempt

    def begin_another_life(self) -> None:
        """Take another life, because another process makes requests in the name of this one."""
        self.nonce = self._new_nonce()
        self.life = life_of(self.nonce)
        self._info_stored = False

    def _next_attempt(self) -> int:
        self.attempt += 1
        return self.attempt

    def _info_to_send(self) -> str:
        return "" if self._info_stored else self._info
