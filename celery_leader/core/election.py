"""The state machine of one candidate in one election. It decides; others act.

No thread, clock, socket or Celery in here: moments come in as arguments (seconds on the
candidate's own clock), replies come in as values, and actions go out as values. So a simulator
can run years of faults through it.

Guaranteed, if clock *rates* agree within ``Timing.margin`` per lease and the store keeps its
data: no two candidates have a ``term(now)`` at the same moment, whatever is delayed, lost,
doubled, paused or killed. The deadline is counted from before a request was sent. A candidate
takes the lease of another only when the store says that it is over *and* the candidate's own
clock has seen it run out.

Not guaranteed; two candidates may lead at once in these cases:

- The store loses its data, and a candidate that never saw the lost record makes a new one.
  (``Timing.bootstrap_delay`` prevents that if the record is gone, but not if an old copy of it
  has come back.)
- A record is made and lost between two looks of a candidate that waits for one.
- The store's clock is set forward after the last renewal and before the first look of a *fresh*
  candidate.
- The store's clock is set away and back between two looks of any candidate.

The shape (replies in, actions out, leading is a deadline and not a flag) follows Kubernetes'
client-go ``leaderelection`` and Oban's peers, with their holes closed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .events import Change, Copied, Elected, Followed
from .lease import (
    Acquire,
    Announcement,
    Granted,
    Missing,
    Refused,
    Release,
    Released,
    Renew,
    Reply,
    Request,
)
from .observed_lease import ObservedLease
from .own_lease import OwnLease, Resignation
from .pace import Pace
from .requester import Requester


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before ``until``; ``None``: not before something is heard."""

    until: float | None


class Election:
    """One candidate's part in one election.

    ``resign``, ``abstain`` and ``step_down`` give the lease up, if this candidate has it. It then
    stops leading at once, before the store is told. ``reason`` is what the history will say.

    Args:
        requester: who the candidate is, for the store.
        chance: where jitter comes from; a simulator passes a seeded one.

    Attributes:
        requester: who the candidate is; makes its requests.
        observed: what was seen of the lease, and of who leads.
    """

    def __init__(self, requester: Requester, *, chance: random.Random | None = None) -> None:
        self.name = requester.election
        self.holder = requester.holder
        self.timing = requester.timing
        self.requester = requester
        self.observed = ObservedLease(self.timing)
        self._own = OwnLease(self.name, self.holder)
        self._pace = Pace(self.timing, chance or random.Random())
        self._resignation = Resignation()
        self._campaigning = False
        self._abstains = False
        self._ask_at = 0.0
        self._in_doubt = False
        self._changes: list[Change] = []

    # -- questions ------------------------------------------------------------

    def term(self, now: float) -> int | None:
        """The term this candidate leads with at ``now``, or ``None``."""
        return self._own.term if now < self._own.valid_until else None

    @property
    def valid_until(self) -> float:
        """Until when this candidate leads if nothing more is heard; 0 when it does not."""
        return self._own.valid_until

    @property
    def renewed_at(self) -> float:
        """When the last request was sent that got or kept the lease; 0 before the first."""
        return self._own.renewed_at

    @property
    def campaigning(self) -> bool:
        """Whether this candidate wants the lease."""
        return self._campaigning and not self._abstains

    @property
    def step_down_requested(self) -> bool:
        """Whether this candidate leads and knows that it is to step down."""
        return self._own.step_down is not None

    @property
    def idle(self) -> bool:
        """Whether there is nothing left to do: not campaigning and nothing to give up."""
        return not self._campaigning and not self._resignation.due

    def take_changes(self) -> list[Change]:
        """Every change since the last call, in order."""
        changes, self._changes = self._changes, []
        return changes

    # -- orders and news ------------------------------------------------------

    def campaign(self, now: float) -> None:
        """Try to get the lease from now on."""
        if not self.campaigning:
            self._ask_at = now
        if not self._campaigning:
            self.observed.begin_wait_anew()
        self._campaigning, self._abstains = True, False

    def resign(self, now: float, successor: str | None = None, reason: str | None = None) -> None:
        """Stop campaigning; give the lease up, in favour of ``successor`` if one is named."""
        self._campaigning = False
        if self._own.term is not None:
            self._give_up(now, successor, reason)
        elif not self._resignation.due and (self._in_doubt or self.requester.attempt):
            # An attempt without a reply may have left us a lease that nobody uses. A candidate
            # that was never elected must leave the register too.
            why = self._own.untold_reason or reason or "resigned"
            self._resignation = Resignation(True, not self._in_doubt, successor, why)
        self._pace.reset()
        self._ask_at = now

    def abstain(self, now: float, reason: str) -> None:
        """Want the lease no longer, until ``campaign`` is called, but stay in the register."""
        self._abstains = True
        if self._own.term is not None:
            self._give_up(now, None, reason)
        elif not self._resignation.due:
            why = self._own.untold_reason or reason
            self._resignation = Resignation(self._in_doubt, reason=why)
        self._ask_at = now

    def step_down(
        self, now: float, successor: str | None = None, reason: str | None = None
    ) -> None:
        """Give the lease up, for ``successor`` if one is named, and go on as a candidate."""
        if self._own.term is not None:
            self._give_up(now, successor, reason)
            self._ask_at = now

    def heard(self, news: Announcement, now: float) -> None:
        """Something was announced: a lease is free, or this candidate is meant."""
        self.observed.cursor = news.cursor
        if not self.observed.is_possible(news, now):
            # No candidate can have written that line. Its cursor may be so far ahead that no
            # news comes after it.
            self.lost_touch(now)
            return
        ours = self.requester.is_meant(news)
        if self.observed.hear_of_leader(news, now) and not ours:
            self._changes.append(Followed(self.name, self.holder, news.term, news.node))
        match news.kind:
            case "resigned" | "reserved" if not ours:
                reserved = news.successor not in (None, self.holder)
                self._ask_at = now + (self.timing.renew_retry_delay if reserved else 0.0)
            case "freed" if ours and self._own.term is None:
                self._ask_at = now
            case "asked" | "held" if ours:
                # The answer to a renewal says what the leader is to do.
                self._own.renew_at = now
            case "elected" if self._own.term is not None and news.term > self._own.term:
                self._own.renew_at = now
            case "elected" | "resigned" | "reserved" if self.observed.is_missing:
                # There is a record again, or was: the wait for a missing one begins anew.
                self.observed.begin_wait_anew()
                self._ask_at = now

    def lease_rejected(self, term: int, now: float, *, gone: bool) -> None:
        """The store refused an act done with ``term``.

        ``gone``: the record is not there, which proves nothing. Otherwise another leads.
        """
        if self._own.term != term:
            return
        if gone:
            self._missing(now)
        else:
            self._depose("lost", now)
            self._ask_at = now

    def lost_touch(self, now: float) -> None:
        """Announcements may have been missed: do not rely on having heard them."""
        self._ask_at = min(self._ask_at, now + self.timing.renew_retry_delay)

    # -- the next action ------------------------------------------------------

    def next_action(self, now: float) -> Request | Wait:
        """The request to send at ``now``, or until when there is none."""
        own = self._own
        if own.term is not None and now >= own.valid_until:
            self._depose("expired", own.valid_until)
            self._in_doubt = True
            self._ask_at = now
        if self._resignation.due:
            if now < self._ask_at:
                return Wait(self._ask_at)
            return self.requester.release(self._resignation, leaving=not self._campaigning)
        if own.term is not None:
            if now < own.renew_at:
                return Wait(min(own.renew_at, own.valid_until))
            return self._acquire(now) if own.rewriting else self.requester.renew(own.term)
        if not self._campaigning:
            return Wait(None)
        return self._acquire(now) if now >= self._ask_at else Wait(self._ask_at)

    def _acquire(self, now: float) -> Acquire:
        return self.requester.acquire(self.observed, self._own, now, abstains=self._abstains)

    # -- answers --------------------------------------------------------------

    def replied(self, request: Request, reply: Reply, *, sent_at: float, now: float) -> None:
        """The store answered ``request``, which was sent at ``sent_at``."""
        self._in_doubt = False
        self.observed.forget_impossible_terms(reply.server_time)
        if isinstance(request, Acquire) and request.ended is not None:
            self._own.end_is_told()
        if isinstance(request, Release):
            if self._resignation.tells_end:
                self._own.end_is_told()
            self.requester.released(request)
            self._resignation.due = False
            # A candidate that stepped down lets the others ask first.
            self._ask_at = now + (self.timing.reservation if self._campaigning else 0.0)
        else:
            self._answered(request, reply, sent_at, now)
        if self._abstains and not self._resignation.due:
            # It asks on, to stay in the register and to learn the store's time.
            self._ask_at = now + self.timing.renew_interval

    def _answered(self, request: Acquire | Renew, reply: Reply, sent_at: float, now: float) -> None:
        assert not isinstance(reply, Released), f"{request} was answered {reply}"
        gained = self.observed.clock_gained(reply.server_time, now)
        self.requester.info_is_stored(request, reply.info_stored)
        match reply:
            case Granted():
                self._granted(reply, sent_at, now)
            case Refused():
                self._refused(request, reply, now, gained)
            case Missing():
                if reply.damaged:
                    # The holder of the record before it was damaged may lead for one more lease.
                    self.observed.saw(0, self.timing.lease_duration)
                self._missing(now)
        if not isinstance(reply, Granted):
            self._wait_for_hold(reply.held_for, now)

    def unanswered(self, request: Request, now: float, *, lasting: bool = False) -> None:
        """Nobody knows what became of ``request``.

        ``lasting``: asking again will not help before somebody changes something.
        """
        retry_at = now + self.timing.renew_retry_delay
        self._in_doubt = True
        given_up = self._pace.failed()
        if self._resignation.due:
            # The lease expires by itself, and so does a place in the register: a process that
            # shuts down must not wait for the store.
            self._resignation.due = not (given_up or self._resignation.try_once)
            self._ask_at = retry_at
        elif self._own.term is not None:
            self._own.renew_at = retry_at
            if given_up:
                self._depose("lost contact", now)
                self._ask_at = retry_at
        else:
            self._ask_at = now + self._pace.pause(lasting)
            self.observed.see_lease_run_out(now)

    def _granted(self, reply: Granted, sent_at: float, now: float) -> None:
        timing, own = self.timing, self._own
        self.observed.move_cursor(reply.cursor, reply.server_time)
        self.observed.granted(reply.term, timing.lease_duration, now)
        self._pace.reset()
        own.rewriting = False
        if not self.campaigning or self._resignation.due:
            # Resigned while the request was under way.
            self._resignation.due = True
            self._resignation.try_once = not self._campaigning
            self._ask_at = now
            return
        valid_until = sent_at + timing.lease_duration - timing.margin
        if valid_until <= now:
            self._in_doubt = True
            self._ask_at = now
            return
        changes = own.granted(reply, sent_at, valid_until, sent_at + timing.renew_interval)
        if Elected(self.name, self.holder, reply.term) in changes:
            self.observed.leader.leads(self.holder, reply.term, now)
        self._changes += changes

    def _refused(self, request: Acquire | Renew, reply: Refused, now: float, gained: float) -> None:
        record, own = reply.record, self._own
        self.observed.move_cursor(record.cursor, reply.server_time)
        if self.requester.is_copied(request, record):
            if own.term is not None:
                self._depose("lost", now)
            self.requester.begin_another_life()
            self._changes.append(Copied(self.name, self.holder, self.observed.seen_term))
        ours = record.life == self.requester.life
        if own.stands_against(record, ours):
            own.write_again(now)
            return
        if own.term is not None:
            self._depose("lost", now)
        if self.observed.see_leader(record, now) and not ours:
            self._changes.append(Followed(self.name, self.holder, record.term, record.holder))
        self._pace.reset()
        self._ask_at = self.observed.watch(record, now, gained) + self._pace.jitter()

    def _missing(self, now: float) -> None:
        self._pace.reset()
        if self._own.term is not None:
            self._own.write_again(now)
        else:
            self._ask_at = self.observed.found_missing(now) + self._pace.jitter()

    def _wait_for_hold(self, held_for: float | None, now: float) -> None:
        # An order that ends a hold is announced. A held candidate asks on, to stay registered.
        if held_for is not None and self._own.term is None:
            self._ask_at = now + min(held_for, self.timing.lease_duration) + self._pace.jitter()

    def _give_up(self, now: float, successor: str | None, reason: str | None) -> None:
        reason = reason or ("transferred" if successor else "resigned")
        self._depose(reason, now)
        self._resignation = Resignation(True, successor=successor, reason=reason, tells_end=True)

    def _depose(self, reason: str, at: float) -> None:
        self._changes.append(self._own.end(reason, at))
        self.observed.leader.nobody(at)
        self._pace.reset()
