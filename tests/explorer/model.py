"""Every course that an election can take, within bounds: what a state is and what follows it.

The candidates are shipped ``Election`` objects over the rules of the scripts
(``FakeStore``). Time goes in whole seconds, the same for everybody: what clocks that run
apart do is the simulation's to find. All that chance decides there is tried here: which
candidate asks first, which request or reply is lost, late or doubled, who is paused,
killed or told to resign and when, when the record is lost or the server's clock set.

A *course* may have a number of such faults, at any moments and in any order, and any
length: states that differ only in what no decision depends on (how late it is, how high
the terms are) are one state, so that all of them can be visited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from celery_leader.core.election import Election, Wait
from celery_leader.core.events import Elected
from celery_leader.core.lease import Acquire, Missing, Release, Renew, Reply, Request
from celery_leader.core.observed_leader import ObservedLeader
from celery_leader.core.requester import Requester
from celery_leader.core.timing import Timing
from tests.support.fake_store import FakeStore, Row

NAME = "beat"
#: One renewal each second, two attempts, and a candidate waits a second for an answer.
TIMING = Timing(
    lease_duration=4.0,
    renew_interval=1.0,
    renew_attempts=2,
    renew_retry_delay=0.0,
    election_jitter=0.0,
    operation_timeout=1.0,
)
_AHEAD = 1_700_000_000
_STEP = 100  # seconds that the server's clock is set by
_FAR = 5  # terms that are further apart than this never meet by counting on


@dataclass(frozen=True, slots=True)
class Scope:
    """What may happen in a course, and how often altogether."""

    faults: int
    messages: bool = True
    pauses: bool = True
    restarts: bool = False
    resignations: bool = False
    data_loss: bool = False
    clock_steps: bool = False
    bootstrap_delay: float = 0.0


class Broken(AssertionError):
    """Something promised does not hold in a state."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A request that its sender waits for, with its answer if that only is under way."""

    request: Request
    sent_at: int
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One process. ``election`` is never changed once it is in here."""

    election: Election
    life: int
    alive: bool = True
    paused: bool = False
    asking: Asking | None = None
    mandate: int = 0
    found_missing: bool = False
    steps_seen: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """All there is at one moment."""

    now: int
    ahead: int
    candidates: tuple[Candidate, ...]
    row: Row | None = None
    late: tuple[tuple[int, Request], ...] = ()
    highest_term: int = 0
    faults_left: int = 0
    steps: int = 0


class _Even:
    """No jitter."""

    def uniform(self, low: float, high: float) -> float:
        return low


_NOBODY = ObservedLeader()
_EVEN: Any = _Even()


class Model:
    """The transitions of one scope."""

    def __init__(self, scope: Scope, *, candidates: int = 3) -> None:
        self.scope = scope
        self.timing = replace(TIMING, bootstrap_delay=scope.bootstrap_delay)
        self._server_time = 0
        self._store = FakeStore(lambda: float(self._server_time))
        self._candidates = candidates

    def start(self) -> State:
        """Everybody has just started."""
        candidates = tuple(self._born(i, 1, 0) for i in range(self._candidates))
        return State(0, _AHEAD, candidates, faults_left=self.scope.faults)

    # -- what may come next -------------------------------------------------------------

    def following(self, state: State) -> Iterator[tuple[str, State]]:
        """Every state that may come next, with what leads there."""
        waits = True
        for i, candidate in enumerate(state.candidates):
            if not candidate.alive:
                yield (
                    f"{i} starts",
                    self._with(state, i, self._born(i, candidate.life + 1, state.now)),
                )
            elif candidate.paused:
                yield f"{i} goes on", self._with(state, i, replace(candidate, paused=False))
            elif candidate.asking is not None:
                if state.now > candidate.asking.sent_at:
                    waits = False
                    yield f"{i} hears", self._hears(state, i)
            else:
                action, after = self._decides(state, i)
                if not isinstance(action, Wait):
                    waits = False
                    yield from self._sends(after, i, action)
                elif not candidate.election.campaigning:
                    yield f"{i} campaigns", self._told(state, i, "campaign")
        for late in range(len(state.late)):
            yield "a late request arrives", self._arrives(state, late)
        if state.faults_left:
            yield from self._faults(replace(state, faults_left=state.faults_left - 1))
        if waits:
            yield "a second passes", replace(state, now=state.now + 1)

    def _sends(self, state: State, i: int, request: Request) -> Iterator[tuple[str, State]]:
        what = f"{i} {type(request).__name__}#{request.attempt}"
        executed, reply = self._executed(state, request)
        done = self._answered(executed, i, request, reply, state.now)
        yield what, done
        if not self.scope.messages or not state.faults_left:
            return
        left = state.faults_left - 1
        asking = replace(state.candidates[i], asking=Asking(request, state.now))
        lost = self._with(replace(state, faults_left=left), i, asking)
        yield f"{what} is lost", lost
        yield f"{what} is late", replace(lost, late=(*state.late, (i, request)))
        unheard = self._with(replace(executed, faults_left=left), i, asking)
        yield f"{what} is not answered", unheard
        slow = replace(asking, asking=Asking(request, state.now, reply))
        yield f"{what} is answered late", self._with(replace(executed, faults_left=left), i, slow)
        yield (
            f"{what} comes twice",
            replace(done, faults_left=left, late=(*done.late, (i, request))),
        )

    def _faults(self, state: State) -> Iterator[tuple[str, State]]:
        scope = self.scope
        for i, candidate in enumerate(state.candidates):
            if not candidate.alive:
                continue
            if scope.pauses and not candidate.paused:
                yield f"{i} is paused", self._with(state, i, replace(candidate, paused=True))
            if scope.restarts:
                yield f"{i} is killed", self._with(state, i, replace(candidate, alive=False))
            idle = not candidate.paused and candidate.asking is None
            if scope.resignations and idle and candidate.election.campaigning:
                yield f"{i} resigns", self._told(state, i, "resign")
                if self._leads(state, candidate):
                    for j in range(len(state.candidates)):
                        yield (
                            f"{i} steps down for {j}",
                            self._told(state, i, "step_down", f"node{j}"),
                        )
        if scope.data_loss and state.row is not None and self._may_be_lost(state):
            yield "the record is lost", self._without_record(state)
        if scope.clock_steps and state.steps == 0 and self._all_have_looked(state):
            for step in (-_STEP, _STEP):
                yield (
                    f"the server's clock is set by {step}",
                    replace(state, ahead=state.ahead + step, steps=1),
                )

    def _may_be_lost(self, state: State) -> bool:
        """What ``election.py`` says it does not guard is not tried.

        That is a record made and lost between two looks of who waits for one, and one that a
        candidate without a bootstrap delay has never seen.
        """
        waiting = any(c.alive and c.found_missing for c in state.candidates)
        return not waiting and (self.scope.bootstrap_delay > 0 or self._all_have_looked(state))

    def _all_have_looked(self, state: State) -> bool:
        return all(c.election.observed.longest_lease > 0 for c in state.candidates if c.alive)

    # -- one thing that happens -------------------------------------------------------------

    def _born(self, i: int, life: int, now: int) -> Candidate:
        election = Election(
            Requester(NAME, holder=f"node{i}", nonce=f"{i}/{life}", timing=self.timing),
            chance=_EVEN,
        )
        election.observed.leader = _NOBODY
        election.campaign(float(now))
        return Candidate(election, life)

    def _told(self, state: State, i: int, order: str, *arguments: Any) -> State:
        election = _copied(state.candidates[i].election)
        getattr(election, order)(float(state.now), *arguments)
        return self._settled(state, i, replace(state.candidates[i], election=election))

    def _decides(self, state: State, i: int) -> tuple[Request | Wait, State]:
        election = _copied(state.candidates[i].election)
        action = election.next_action(float(state.now))
        return action, self._settled(state, i, replace(state.candidates[i], election=election))

    def _executed(self, state: State, request: Request) -> tuple[State, Reply]:
        """What the store makes of a request, and what those hear who listen."""
        store, self._server_time = self._store, state.now + state.ahead
        store.flush()
        if state.row is not None:
            store.rows[NAME] = copy(state.row)
        reply = store.answer(request)
        after = replace(state, row=store.rows.get(NAME))
        for line in store.history.get(NAME, ()):
            for j, other in enumerate(after.candidates):
                listens = other.alive and not other.paused and other.asking is None
                leads = self._leads(after, other)
                if listens and other.election.campaigning and not leads:
                    election = _copied(other.election)
                    election.heard(line, float(after.now))
                    heard = replace(other, election=election, found_missing=False)
                    after = self._settled(after, j, heard)
        return after, reply

    def _answered(
        self, state: State, i: int, request: Request, reply: Reply, sent_at: int
    ) -> State:
        candidate = state.candidates[i]
        election = _copied(candidate.election)
        election.replied(request, reply, sent_at=float(sent_at), now=float(state.now))
        after = replace(candidate, election=election, asking=None)
        if not isinstance(request, Release):
            missing = isinstance(reply, Missing)
            after = replace(after, found_missing=missing, steps_seen=state.steps)
        return self._settled(state, i, after)

    def _hears(self, state: State, i: int) -> State:
        """Of its request: an answer, or none in time."""
        candidate = state.candidates[i]
        asking = candidate.asking
        assert asking is not None
        if asking.reply is not None:
            return self._answered(state, i, asking.request, asking.reply, asking.sent_at)
        election = _copied(candidate.election)
        election.unanswered(asking.request, float(state.now))
        return self._settled(state, i, replace(candidate, election=election, asking=None))

    def _arrives(self, state: State, late: int) -> State:
        after, _ = self._executed(state, state.late[late][1])
        return replace(after, late=state.late[:late] + state.late[late + 1 :])

    def _without_record(self, state: State) -> State:
        # An acquire that may make a record and is executed after a loss is not guarded.
        late = tuple(
            (i, request)
            for i, request in state.late
            if not (isinstance(request, Acquire) and request.from_missing)
        )
        return replace(state, row=None, late=late)

    def _settled(self, state: State, i: int, candidate: Candidate) -> State:
        """``state`` with that candidate, whose changes are looked at."""
        highest = state.highest_term
        for change in candidate.election.take_changes():
            if isinstance(change, Elected):
                if change.term <= highest:
                    raise Broken(f"term {change.term} of {i} after {highest}")
                highest = change.term
                candidate = replace(candidate, mandate=change.term)
        return replace(self._with(state, i, candidate), highest_term=highest)

    def _with(self, state: State, i: int, candidate: Candidate) -> State:
        candidates = (*state.candidates[:i], candidate, *state.candidates[i + 1 :])
        return replace(state, candidates=candidates)

    # -- what must hold -----------------------------------------------------------------

    def _leads(self, state: State, candidate: Candidate) -> bool:
        return candidate.alive and candidate.election.term(float(state.now)) is not None

    def leaders(self, state: State) -> list[int]:
        """Who leads in ``state``."""
        return [i for i, each in enumerate(state.candidates) if self._leads(state, each)]

    def check(self, state: State) -> None:
        """At most one leads, and nobody could write in the name of an older term.

        Raises:
            Broken: it is otherwise.
        """
        leaders = self.leaders(state)
        if len(leaders) > 1:
            raise Broken(f"{leaders} lead at once")
        self._server_time = state.now + state.ahead
        for i, candidate in enumerate(state.candidates):
            if 0 < candidate.mandate < state.highest_term and state.row is not None:
                self._store.rows[NAME] = state.row
                nonce = candidate.election.requester.nonce
                if self._store.fenced_write(NAME, nonce, candidate.mandate) == "accepted":
                    raise Broken(f"{i} may write with {candidate.mandate}")

    def calmed(self, state: State) -> State:
        """``state`` from which on nothing goes wrong."""
        candidates = tuple(replace(c, paused=False) for c in state.candidates)
        return replace(state, candidates=candidates, late=(), faults_left=0)

    # -- which states are the same --------------------------------------------------------

    def key(self, state: State) -> int:
        """The same for states that differ in nothing that a decision depends on."""
        return hash(_Normal(state, self.timing).form())


#: The parts of an election that change, and are copied with it.
_PARTS = ("requester", "observed", "_own", "_pace", "_resignation")
#: What an election knows that none of its decisions depends on, or that is told elsewhere.
_LEFT_OUT = frozenset(
    {
        *_PARTS,
        "name",
        "election",
        "holder",
        "timing",
        "_timing",
        "priority",
        "cursor",
        "leader",
        "nonce",
        "life",
        "attempt",
        "reason",
        "renewed_at",
        "successor",
        "_new_nonce",
        "_app",
        "_preempt",
        "_chance",
        "_changes",
        "_elected_at",
        "_info",
        "_info_stored",
        "_untold",
        "tells_end",
    }
)
#: Moments that are only ever compared with the present: past is past.
_DUE = frozenset({"valid_until", "renew_at", "_ask_at", "_run_out_at", "_silent_at"})
_TERMS = frozenset({"term", "seen_term"})


class _Normal:
    """The normal form of a state: moments from now on, numbers by their order."""

    def __init__(self, state: State, timing: Timing) -> None:
        self._state = state
        self._timing = timing
        self._terms = _gaps(self._all_terms(), (state.now + state.ahead) * 1_000_000)

    def form(self) -> object:
        state = self._state
        locals_ = [self._candidate(i) for i in range(len(state.candidates))]
        # Candidates are alike but for their numbers.
        order = sorted(range(len(locals_)), key=lambda i: hash(locals_[i]))
        place = {f"node{i}": at for at, i in enumerate(order)}
        return (
            tuple(locals_[i] for i in order),
            tuple(
                place.get(state.candidates[i].election._resignation.successor or "", -1)
                for i in order
            ),
            self._row(place),
            self._terms.get(state.highest_term),
            state.faults_left,
            state.steps,
            state.ahead - _AHEAD,
        )

    def _candidate(self, i: int) -> object:
        candidate = self._state.candidates[i]
        asking = candidate.asking
        return (
            self._election(candidate.election) if candidate.alive else None,
            candidate.alive,
            candidate.paused,
            asking
            and (
                self._request(i, asking.request),
                max(asking.sent_at - self._state.now, -6),
                self._reply(asking.reply),
            ),
            self._terms.get(candidate.mandate),
            candidate.found_missing,
            candidate.steps_seen,
            frozenset(Counter(self._request(i, r) for j, r in self._state.late if j == i).items()),
            self._is_rows_owner(candidate),
        )

    def _is_rows_owner(self, candidate: Candidate) -> int:
        row = self._state.row
        if row is None or row.holder != candidate.election.holder:
            return 0
        return 1 + candidate.life - int(row.nonce.partition("/")[2])

    def _election(self, election: Election) -> object:
        now, form = self._state.now, []
        parts = [election, *(getattr(election, part) for part in _PARTS)]
        for name, value in (item for part in parts for item in vars(part).items()):
            if name in _LEFT_OUT:
                continue
            if name in _DUE:
                value = max(value - now, 0.0)
            elif name in _TERMS:
                value = self._terms.get(value or 0)
            elif name == "_watched":
                value = self._watched(value)
            elif name == "_missing_since":
                value = self._since(election, value)
            elif name == "_clock_offset":
                value = None if value is None else self._offset(value)
            elif isinstance(value, float) and value > 1:
                value = max(value - now, -20.0) if name.endswith(("_at", "_since")) else value
            form.append((name, value))
        return tuple(form)

    def _offset(self, offset: float) -> float:
        """Of the server's clock from ours; more than a lease behind it all comes to the same."""
        furthest = -_STEP * self._state.steps - self._timing.lease_duration - 1
        return max(offset - _AHEAD, furthest)

    def _since(self, election: Election, since: float | None) -> float | None:
        wait = election.observed.missing_record_wait
        if since is None or self._state.now > since + 2 * wait:
            return None
        return since - self._state.now

    def _watched(self, watched: tuple[int, int] | None) -> object:
        if watched is None:
            return None
        row, (term, _) = self._state.row, watched
        # A record is only ever renewed on: what is not as it was will not be so again.
        as_it_is = row is not None and (row.term, row.renewals) == watched
        return self._terms.get(term), as_it_is

    def _request(self, i: int, request: Request) -> object:
        attempt = self._attempt(request)
        match request:
            case Acquire():
                return (
                    "acquire",
                    attempt,
                    self._terms.get(request.seen_term),
                    self._terms.get(request.live_term),
                    self._watched(request.watched),
                    request.silent,
                    request.from_missing,
                    self._lives_ago(i, request.nonce),
                )
            case Renew():
                term = self._terms.get(request.term)
                return "renew", attempt, term, self._lives_ago(i, request.nonce)
            case Release():
                return "release", attempt, request.successor, self._lives_ago(i, request.nonce)

    def _lives_ago(self, i: int, nonce: str) -> int:
        return self._state.candidates[i].life - int(nonce.partition("/")[2])

    def _attempt(self, request: Request) -> object:
        """Which of those under way it is that the record has not seen a later one of."""
        row, nonce = self._state.row, request.nonce
        seen = row.attempt if row is not None and row.nonce == nonce else 0
        if request.attempt <= seen:
            return "overtaken"
        under_way = {r.attempt for _, r in self._all_requests() if r.nonce == nonce}
        return sorted(each for each in under_way if each > seen).index(request.attempt)

    def _all_requests(self) -> Iterator[tuple[int, Request]]:
        yield from self._state.late
        for i, candidate in enumerate(self._state.candidates):
            if candidate.asking is not None:
                yield i, candidate.asking.request

    def _all_terms(self) -> set[int]:
        state = self._state
        terms = {state.highest_term, state.row.term if state.row else 0}
        for candidate in state.candidates:
            observed, own = candidate.election.observed, candidate.election._own
            terms |= {candidate.mandate, own.term or 0, observed.seen_term}
            watched = observed._watched
            terms |= {watched[0]} if watched else set()
        for _, request in self._all_requests():
            for name in ("term", "seen_term", "live_term"):
                terms.add(getattr(request, name, 0))
            watched = getattr(request, "watched", None)
            terms |= {watched[0]} if watched else set()
        for candidate in state.candidates:
            reply = candidate.asking.reply if candidate.asking else None
            terms |= {getattr(reply, "term", 0)}
            record = getattr(reply, "record", None)
            terms |= {record.term} if record else set()
        return terms - {0}

    def _reply(self, reply: Reply | None) -> object:
        if reply is None:
            return None
        offset = self._offset(round(reply.server_time) - self._state.now)
        record = getattr(reply, "record", None)
        if record is None:
            return type(reply).__name__, offset, self._terms.get(getattr(reply, "term", 0))
        return (
            "refused",
            offset,
            record.holder,
            self._watched((record.term, record.renewals)),
            record.state.value,
            record.remaining,
        )

    def _row(self, place: dict[str, int]) -> object:
        row, now = self._state.row, (self._state.now + self._state.ahead) * 1000
        if row is None:
            return None
        return (
            place[row.holder],
            self._terms.get(row.term),
            max(row.expires_at - now, -2 * 1000 * _STEP),
            row.state,
            place.get(row.successor, -1),
        )


def _gaps(terms: set[int], micros: int) -> dict[int, tuple[int, ...]]:
    """Each term as its place in their order, with how far it is from the one before."""
    form: dict[int, tuple[int, ...]] = {}
    before = 0
    for place, term in enumerate(sorted(terms | {micros})):
        form[term] = (place, min(term - before, _FAR))
        before = term
    return form


def _copied(election: Election) -> Election:
    other: Election = object.__new__(Election)
    parts = {part: copy(getattr(election, part)) for part in _PARTS}
    other.__dict__.update(election.__dict__, **parts, _changes=[])
    return other
