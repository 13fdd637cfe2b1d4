"""The state machine of one candidate in one election. It decides; others do.

No thread, clock, socket or Celery in here: moments come in as arguments (seconds
on the candidate's own clock), replies come in as values, and what is to be done
goes out as a value. So a simulator can run years of faults through it.

What it guarantees, if clock *rates* agree within ``Timing.margin`` per lease and
the store keeps its data: ``term(now)`` is not ``None`` in two candidates at once,
whatever is delayed, lost, doubled, paused or killed. The deadline is counted from
before a request was sent, and a lease that another held is taken only when the
store says it is over *and* this candidate's own clock has seen it run out.

What it does not: guard a store that loses data against candidates that never saw
the lost record (``Timing.bootstrap_delay`` does that, if it is gone and no old copy in
its place), nor against one that was made and lost between two looks of who waits for
one; nor a *fresh* candidate
against a store whose clock was set forward after the last renewal and before its
first look, nor anybody against one that was set away and back between two looks.

The shape (replies in, actions out, leading is a deadline and not a flag) follows
Kubernetes' client-go ``leaderelection`` and Oban's peers, with their holes closed.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from .changes import Change, Copied, Deposed, Elected, Followed, StepDownRequested
from .lease import (
    Acquire,
    Announcement,
    Ended,
    Granted,
    Missing,
    Record,
    Refused,
    Release,
    Released,
    Renew,
    Reply,
    Request,
    State,
    StepDown,
    cursor_order,
    latest_term,
    life_of,
)
from .observed_leader import ObservedLeader
from .timing import Timing


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before ``until``; ``None``: not before something is heard."""

    until: float | None


class Election:
    """One candidate's part in the election ``name``.

    Args:
        name: the election.
        holder: the candidate's node name, as others will read it.
        nonce: names this life of the candidate; never used twice.
        timing: the election's durations.
        app: tells projects that share a store apart.
        priority: the higher comes first at a handover or an expiry.
        preempt: whether to say when a candidate of higher priority is there.
        info: what this candidate says of itself in the register.
        chance: where jitter comes from; a simulator passes a seeded one.
        new_nonce: names another life, should this one turn out to be lived twice.
    """

    def __init__(
        self,
        name: str,
        *,
        holder: str,
        nonce: str,
        timing: Timing,
        app: str = "",
        priority: int = 0,
        preempt: bool = False,
        info: str = "",
        chance: random.Random | None = None,
        new_nonce: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self.name = name
        self.holder = holder
        self.timing = timing
        self.cursor = "0-0"
        self.record: Record | None = None
        self.observed_leader = ObservedLeader()
        self._nonce = nonce
        self._life = life_of(nonce)
        self._new_nonce = new_nonce
        self._app = app
        self._priority = priority
        self._preempt = preempt
        self._info = info
        self._info_stored = False
        self._chance = chance or random.Random()
        self._attempt = 0
        self._changes: list[Change] = []
        # As a leader.
        self._term: int | None = None
        self._elected_at = 0.0
        self._renewed_at = 0.0
        self._valid_until = 0.0
        self._renew_at = 0.0
        self._failures = 0
        self._rewriting = False
        self._order: StepDown | None = None
        # As a candidate.
        self._campaigning = False
        self._abstains = False
        self._ask_at = 0.0
        self._in_doubt = False
        self._seen_term = 0
        self._longest_lease = 0.0
        self._missing_since: float | None = None
        self._watched: tuple[int, int] | None = None
        self._run_out_at = 0.0
        self._silent_at = 0.0
        self._clock_offset: float | None = None
        # While giving up.
        self._releasing = False
        self._leaving = False
        self._successor: str | None = None
        self._reason = "resigned"
        self._untold: tuple[Deposed, float] | None = None

    # -- what is asked of it ------------------------------------------------

    def term(self, now: float) -> int | None:
        """The term this candidate leads with at ``now``, or ``None``."""
        return self._term if now < self._valid_until else None

    @property
    def valid_until(self) -> float:
        """Until when this candidate leads if nothing more is heard; 0 when it does not."""
        return self._valid_until

    @property
    def renewed_at(self) -> float:
        """When the last request was sent that got or kept the lease; 0 before the first."""
        return self._renewed_at

    @property
    def priority(self) -> int:
        """The higher comes first at a handover or an expiry."""
        return self._priority

    @property
    def nonce(self) -> str:
        """Names this life of the candidate in the store."""
        return self._nonce

    @property
    def life(self) -> str:
        """Tells this life from another of the same node name; may be shown."""
        return self._life

    @property
    def campaigning(self) -> bool:
        """Whether this candidate wants the lease."""
        return self._campaigning and not self._abstains

    @property
    def step_down_requested(self) -> bool:
        """Whether this candidate leads and knows that it is to give the lease up."""
        return self._order is not None

    @property
    def idle(self) -> bool:
        """Whether there is nothing left to do: not campaigning and nothing to give up."""
        return not self._campaigning and not self._releasing

    def take_changes(self) -> list[Change]:
        """What has changed since the last call, in order."""
        changes, self._changes = self._changes, []
        return changes

    # -- what it is told ----------------------------------------------------

    def campaign(self, now: float) -> None:
        """Try to get the lease from now on."""
        if self._abstains:
            self._abstains = False
            self._ask_at = now
        if not self._campaigning:
            self._campaigning = True
            self._missing_since = None
            self._ask_at = now

    def resign(self, now: float, successor: str | None = None, reason: str | None = None) -> None:
        """Stop campaigning; give the lease up, for ``successor`` if one is named.

        Harmless when not leading. Leading ends at once, before the store is told.
        ``reason`` is what the history will say of it.
        """
        self._campaigning = False
        if self._term is not None:
            self._give_up(now, successor, reason)
        elif not self._releasing and (self._in_doubt or self._attempt):
            # An attempt without a reply may have left us a lease nobody uses; and who was
            # never elected is to leave the register.
            self._releasing = True
            self._leaving = not self._in_doubt
            self._successor = successor
            self._reason = reason or "resigned"
        self._failures = 0
        self._ask_at = now

    def abstain(self, now: float, reason: str) -> None:
        """Want the lease no longer, until ``campaign`` is called, but stay in the register.

        Leading ends at once, before the store is told. ``reason`` is what the history will say.
        """
        self._abstains = True
        if self._term is not None:
            self._give_up(now, None, reason)
        elif self._in_doubt and not self._releasing:
            self._releasing = True
            self._leaving = False
            self._successor = None
        self._reason = reason
        self._ask_at = now

    def introduce(self, info: str) -> None:
        """Say ``info`` of itself from now on."""
        self._info = info
        self._info_stored = False

    def step_down(
        self, now: float, successor: str | None = None, reason: str | None = None
    ) -> None:
        """Give the lease up, for ``successor`` if one is named, and go on as a candidate.

        Harmless when not leading. Leading ends at once, before the store is told.
        """
        if self._term is None:
            return
        self._give_up(now, successor, reason)
        self._ask_at = now

    def _give_up(self, now: float, successor: str | None, reason: str | None) -> None:
        self._reason = reason or ("transferred" if successor else "resigned")
        self._depose(self._reason, now)
        self._releasing = True
        self._leaving = False
        self._successor = successor

    def heard(self, news: Announcement, now: float) -> None:
        """Something was announced: a lease is free, or this candidate is meant."""
        self.cursor = news.cursor
        if max(news.term, 1000 * cursor_order(news.cursor)[0]) > self._latest_term(now):
            # No candidate can have written that line, and no news might come behind it.
            self.lost_touch(now)
            return
        ours = self._is_ours(news)
        self._heard_who_leads(news, now)
        match news.kind:
            case "resigned" | "reserved" if not ours:
                reserved = news.successor not in (None, self.holder)
                self._ask_at = now + (self.timing.renew_retry_delay if reserved else 0.0)
            case "freed" if ours and self._term is None:
                self._ask_at = now
            case "asked" | "held" if ours:
                # What is wanted stands in the answer to a renewal.
                self._renew_at = now
            case "elected" if self._term is not None and news.term > self._term:
                self._renew_at = now
            case "elected" | "resigned" | "reserved" if self._missing_since is not None:
                # There is a record again, or was: what was waited for begins anew.
                self._missing_since = None
                self._ask_at = now

    def _is_ours(self, news: Announcement) -> bool:
        # A hold is for all lives of a node, and earlier versions wrote no life: compare names.
        return news.life == self._life if news.life else news.node == self.holder

    def lease_rejected(self, term: int, now: float, *, gone: bool) -> None:
        """The store refused an act done with ``term``.

        ``gone``: because the record is not there, which proves nothing; otherwise
        because another holds the lease or it has run out.
        """
        if self._term != term:
            return
        if gone:
            self._missing(now)
        else:
            self._depose("lost", now)
            self._ask_at = now

    def lost_touch(self, now: float) -> None:
        """Announcements may have been missed: do not rely on having heard them."""
        self._ask_at = min(self._ask_at, now + self.timing.renew_retry_delay)

    # -- what is to be done -------------------------------------------------

    def next_action(self, now: float) -> Request | Wait:
        """The request to send at ``now``, or how long there is none."""
        if self._term is not None and now >= self._valid_until:
            self._depose("expired", self._valid_until)
            self._in_doubt = True
            self._ask_at = now
        if self._releasing:
            return self._release() if now >= self._ask_at else Wait(self._ask_at)
        if self._term is not None:
            if now < self._renew_at:
                return Wait(min(self._renew_at, self._valid_until))
            return self._acquire(now) if self._rewriting else self._renew()
        if not self._campaigning:
            return Wait(None)
        return self._acquire(now) if now >= self._ask_at else Wait(self._ask_at)

    def _next_attempt(self) -> int:
        self._attempt += 1
        return self._attempt

    def _acquire(self, now: float) -> Acquire:
        return Acquire(
            election=self.name,
            holder=self.holder,
            nonce=self._nonce,
            attempt=self._next_attempt(),
            lease_duration=self.timing.lease_duration,
            seen_term=self._seen_term,
            live_term=self._term or 0,
            watched=self._watched if now >= self._run_out_at else None,
            silent=self._watched is not None and now >= self._silent_at,
            from_missing=self._may_make_record(now),
            from_damaged=self._longest_lease > 0 and self._may_make_record(now),
            app=self._app,
            priority=self._priority,
            reservation=self.timing.reservation,
            ended=self._what_ended(now),
            info="" if self._info_stored else self._info,
            abstains=self._abstains,
        )

    def _what_ended(self, now: float) -> Ended | None:
        if self._untold is None:
            return None
        deposed, at = self._untold
        return Ended(deposed.term, deposed.reason, max(0.0, now - at))

    def _renew(self) -> Renew:
        assert self._term is not None
        return Renew(
            election=self.name,
            nonce=self._nonce,
            attempt=self._next_attempt(),
            term=self._term,
            lease_duration=self.timing.lease_duration,
            priority=self._priority,
            preempted=self._preempt,
            info="" if self._info_stored else self._info,
        )

    def _release(self) -> Release:
        return Release(
            election=self.name,
            holder=self.holder,
            nonce=self._nonce,
            attempt=self._next_attempt(),
            successor=self._successor,
            reservation=self.timing.reservation,
            reason=self._reason,
            leaving=not self._campaigning,
        )

    def _may_make_record(self, now: float) -> bool:
        """Whether a record that is not there may be made by this candidate."""
        if self._term is not None:
            return True
        return now >= self._makes_record_at(now)

    def _makes_record_at(self, now: float) -> float:
        return self._missing_from(now) + self.missing_record_wait

    @property
    def missing_record_wait(self) -> float:
        """How long a record must be missing before this candidate makes one.

        A record that was there and is gone proves nothing: whoever held it may
        believe in it for as long as its lease, of which we know the longest.
        """
        return self._longest_lease or self.timing.bootstrap_delay

    def _missing_from(self, now: float) -> float:
        """Since when the record is known to be missing, ``now`` if it was not looked for lately.

        Whoever was paused or cut off since may have missed a whole leadership.
        """
        since = self._missing_since
        return now if since is None or now > since + 2 * self.missing_record_wait else since

    # -- what came of it ----------------------------------------------------

    def replied(self, request: Request, reply: Reply, *, sent_at: float, now: float) -> None:
        """The store answered ``request``, which was sent at ``sent_at``."""
        self._in_doubt = False
        self._forget_what_cannot_be(reply.server_time)
        gained = 0.0
        if not isinstance(request, Release):
            # The answer to a release shows no record: it is not a look at the clock
            # from which what the next record says could be judged.
            gained = self._server_clock_gained(reply.server_time, now)
        if not isinstance(request, Renew):
            self._untold = None
        match request, reply:
            case Release(), _:
                self._info_stored = self._info_stored and not request.leaving
                self._releasing = False
                # Who stepped down lets the others ask first.
                self._ask_at = now + (self.timing.reservation if self._campaigning else 0.0)
            case _, Granted():
                self._granted(request, reply, sent_at=sent_at, now=now)
            case _, Refused():
                self._info_stored = self._is_known(request, reply.info_stored)
                self._refused(request, reply, now=now, gained=gained)
                self._wait_for_hold(reply.held_for, now)
            case _, Missing():
                self._info_stored = self._is_known(request, reply.info_stored)
                if reply.damaged:
                    # Whoever wrote the record that was there may lead for a lease.
                    self._saw(0, self.timing.lease_duration)
                self._missing(now)
                self._wait_for_hold(reply.held_for, now)
            case _, Released():  # pragma: no cover - only a Release is answered so
                raise AssertionError(f"{request} was answered {reply}")

        if self._abstains and not self._releasing:
            # It asks on, to stay in the register and to learn the store's time.
            self._ask_at = now + self.timing.renew_interval

    def unanswered(self, request: Request, now: float, *, lasting: bool = False) -> None:
        """Nobody knows what became of ``request``.

        ``lasting``: and asking again will not help before somebody changes something.
        """
        retry_at = now + self.timing.renew_retry_delay
        self._in_doubt = True
        self._failures += 1
        given_up = self._failures >= self.timing.renew_attempts
        if self._releasing:
            # The record expires by itself; a process that shuts down must not wait for it,
            # and even less for its place in the register.
            self._releasing = not (given_up or self._leaving)
            self._ask_at = retry_at
        elif self._term is not None:
            self._renew_at = retry_at
            if given_up:
                self._depose("lost contact", now)
                self._ask_at = retry_at
        else:
            self._ask_at = now + self._patience(lasting)
            self._see_lease_run_out(now)

    def _patience(self, lasting: bool) -> float:
        """How long not to ask after an attempt of a candidate that was not answered.

        At first as long as between a leader's attempts, so that a short outage costs little
        time; then ever longer, so that Redis is not flooded while it comes back.
        """
        timing = self.timing
        most = timing.lease_duration if lasting else timing.reservation
        over = max(0, self._failures - timing.renew_attempts)
        if not over or most <= timing.renew_retry_delay:
            return timing.renew_retry_delay
        longer = min(timing.renew_retry_delay * 2.0 ** min(over, 64), most)
        return max(timing.renew_retry_delay, self._chance.uniform(longer / 2, longer))

    def _granted(self, request: Request, reply: Granted, *, sent_at: float, now: float) -> None:
        timing = self.timing
        self._move_cursor(reply.cursor, reply.server_time)
        self._saw(reply.term, timing.lease_duration)
        self._see_lease_run_out(now)
        self._info_stored = self._is_known(request, reply.info_stored)
        self._missing_since = None
        self._watched = None
        self._failures = 0
        self._rewriting = False
        if not self.campaigning or self._releasing:
            # Resigned while the request was under way.
            self._releasing = True
            self._leaving = not self._campaigning
            self._ask_at = now
            return
        valid_until = sent_at + timing.lease_duration - timing.margin
        if valid_until <= now:
            self._in_doubt = True
            self._ask_at = now
            return
        self._valid_until = valid_until
        self._renewed_at = sent_at
        self._renew_at = sent_at + timing.renew_interval
        if self._term != reply.term:
            if self._term is None:
                self._elected_at = sent_at
            self._term = reply.term
            self.observed_leader.leads(self.holder, reply.term, now)
            self._changes.append(Elected(reply.term))
        order, before = reply.step_down, self._order
        self._order = order
        if order is not None and order != before:
            self._changes.append(StepDownRequested(reply.term, order.reason, order.successor))

    def _refused(
        self, request: Acquire | Renew | Release, reply: Refused, *, now: float, gained: float
    ) -> None:
        record = reply.record
        self.record = record
        self._move_cursor(record.cursor, reply.server_time)
        if record.life == self._life and record.attempt >= request.attempt:
            self._begin_another_life(now)
        if self._term is not None:
            older = record.term < self._term
            ours = record.term == self._term and record.life == self._life
            if (older or ours) and not self._rewriting:
                # An old copy, or our own lease after the store's clock was set
                # forward. Nobody has led since: our deadline stands.
                self._rewriting = True
                self._renew_at = now
                return
            self._depose("lost", now)
        self._look_at_who_leads(record, now)
        self._saw(record.term, record.lease_duration)
        self._missing_since = None
        self._failures = 0
        state = (record.term, record.renewals)
        if state != self._watched:
            # Fewer renewals than we have seen: an old copy, whose holder renewed since.
            old_copy = self._watched is not None and state < self._watched
            remaining = record.lease_duration if old_copy else record.remaining + max(gained, 0.0)
            self._watched = state
            self._run_out_at = now + min(max(remaining, 0.0), record.lease_duration)
            self._silent_at = now + record.lease_duration
            self._ask_at = self._run_out_at + self._jitter()
            return
        # Either it has run out for us, and the store's clock does not agree yet, or we
        # asked early: a held lease is not to be had before both agree.
        over_at = min(now + max(record.remaining, 0.001), max(self._silent_at, now))
        if record.state is State.TAKEN:
            over_at = max(over_at, self._run_out_at)
        self._ask_at = over_at + self._jitter()

    def _begin_another_life(self, now: float) -> None:
        """Another process uses this life: the next requests must not be taken for its own."""
        if self._term is not None:
            self._depose("lost", now)
        self._nonce = self._new_nonce()
        self._life = life_of(self._nonce)
        self._info_stored = False
        self._changes.append(Copied(self._seen_term))

    def _missing(self, now: float) -> None:
        self._failures = 0
        self._watched = None
        if self._term is not None:
            # Our record is gone and our deadline stands: write it again, higher.
            self._rewriting = True
            self._renew_at = now
            return
        self.observed_leader.nobody(now)
        self._missing_since = self._missing_from(now)
        self._ask_at = self._makes_record_at(now) + self._jitter()

    def _wait_for_hold(self, held_for: float | None, now: float) -> None:
        # That it was let in is announced; asked now and then, it stays in the register.
        if held_for is not None and self._term is None:
            self._ask_at = now + min(held_for, self.timing.lease_duration) + self._jitter()

    # -- small parts --------------------------------------------------------

    def _depose(self, reason: str, at: float) -> None:
        assert self._term is not None
        deposed = Deposed(self._term, reason, at - self._elected_at)
        self._changes.append(deposed)
        self._untold = deposed, at
        self.observed_leader.nobody(at)
        self._term = None
        self._valid_until = 0.0
        self._failures = 0
        self._rewriting = False
        self._order = None

    def _saw(self, term: int, lease_duration: float) -> None:
        self._seen_term = max(self._seen_term, term)
        self._longest_lease = max(self._longest_lease, lease_duration)

    def _move_cursor(self, cursor: str, server_time: float) -> None:
        """The answer tells of all that was announced before ``cursor``."""
        if cursor_order(self.cursor)[0] > 1000 * (server_time + 1):
            # It stands at a line of the future: no news might come behind it for years.
            self.cursor = cursor
        else:
            self.cursor = max(self.cursor, cursor, key=cursor_order)

    def _latest_term(self, now: float) -> float:
        offset = self._clock_offset
        return float("inf") if offset is None else latest_term(now + offset)

    def _forget_what_cannot_be(self, server_time: float) -> None:
        """Forget terms that were seen while the store's clock was far ahead."""
        latest = latest_term(server_time)
        if self._seen_term > latest:
            self._seen_term = 0
        if self.observed_leader.term > latest:
            self.observed_leader.term = 0

    def _see_lease_run_out(self, now: float) -> None:
        if self._watched is not None and now >= self._run_out_at:
            self.observed_leader.nobody(self._run_out_at)

    def _look_at_who_leads(self, record: Record, now: float) -> None:
        self._see_lease_run_out(now)
        if record.led:
            self._hear_of(record.holder, record.term, now, ours=record.life == self._life)
        else:
            self.observed_leader.nobody(now)

    def _heard_who_leads(self, news: Announcement, now: float) -> None:
        if news.term < self.observed_leader.term:
            return  # of before what is known
        if news.kind == "elected":
            self._see_lease_run_out(now)
            self._hear_of(news.node, news.term, now, ours=self._is_ours(news))
        elif news.kind in ("resigned", "reserved"):
            self.observed_leader.nobody(now)

    def _hear_of(self, leader: str, term: int, now: float, *, ours: bool) -> None:
        if self.observed_leader.leads(leader, term, now) and not ours:
            self._changes.append(Followed(term, leader))

    def _is_known(self, request: Request, known: bool) -> bool:
        """Whether the store knows what this candidate says of itself now."""
        if isinstance(request, Release):
            return self._info_stored
        return known and (self._info_stored or request.info == self._info)

    def _jitter(self) -> float:
        return self._chance.uniform(0.0, self.timing.election_jitter)

    def _server_clock_gained(self, server_time: float, now: float) -> float:
        """How far the store's clock may have run ahead of ours since our last look at it.

        A lease renewed in between may run longer than the store says by that much.
        Once it was set back it may have been set forward too, by who knows how much.
        """
        offset = server_time - now
        before, self._clock_offset = self._clock_offset, offset
        moved = 0.0 if before is None else offset - before
        return moved if moved >= -self.timing.margin else float("inf")
