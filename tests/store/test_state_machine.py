"""Whole elections over a real Redis, whatever hypothesis makes of them.

Three candidates with the shipped state machine, the clock of this machine and leases of
half a second. Requests are lost or executed without an answer, candidates stop acting,
resign, make way and start anew, the record is lost. Nothing here depends on how fast this
machine is: what is too late is refused, and that is the point.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from celery_leader.core.election import Election, Wait
from celery_leader.core.events import Elected
from celery_leader.core.requester import Requester
from celery_leader.core.timing import Timing
from celery_leader.errors import StoreUnavailable
from celery_leader.runtime import clock
from celery_leader.store.schedule_store import FencingToken, Outcome, ScheduleStore
from tests.support.fixtures import MakeStore
from tests.support.waiting import wait_until

TIMING = Timing(
    lease_duration=0.5,
    renew_interval=0.2,
    renew_retry_delay=0.01,
    election_jitter=0.005,
    operation_timeout=0.05,
)
CANDIDATES = st.integers(0, 2)

_elections = itertools.count()


class Elections(RuleBasedStateMachine):
    """One election; ``store`` is set by the test."""

    store: Any

    def __init__(self) -> None:
        super().__init__()
        self.name = f"election{next(_elections)}"
        self.schedule = ScheduleStore(self.store.client.run, self.store.keys, self.name)
        self.lives = itertools.count()
        self.highest = 0
        self.tokens: list[FencingToken] = []
        self.candidates = [self._new(i) for i in range(3)]

    def _new(self, i: int) -> Election:
        nonce = f"{self.name}/{next(self.lives)}"
        election = Election(Requester(self.name, holder=f"node{i}", nonce=nonce, timing=TIMING))
        election.campaign(clock.now())
        return election

    def _take_changes(self, election: Election) -> None:
        for change in election.take_changes():
            if isinstance(change, Elected):
                assert change.term > self.highest, "a term came back"
                self.highest = change.term
                self.tokens.append(FencingToken(election.requester.nonce, change.term))

    @rule(i=CANDIDATES, fate=st.sampled_from(["answered"] * 4 + ["lost", "not answered"]))
    def act(self, i: int, fate: str) -> None:
        election = self.candidates[i]
        sent_at = clock.now()
        request = election.next_action(sent_at)
        if not isinstance(request, Wait):
            reply = None if fate == "lost" else self.store.perform([request])[0]
            if fate == "answered":
                assert not isinstance(reply, StoreUnavailable)
                election.replied(request, reply, sent_at=sent_at, now=clock.now())
            else:
                election.unanswered(request, clock.now())
        self._take_changes(election)

    @rule(i=CANDIDATES)
    def resign(self, i: int) -> None:
        self.candidates[i].resign(clock.now())
        self._take_changes(self.candidates[i])

    @rule(i=CANDIDATES, j=CANDIDATES)
    def make_way(self, i: int, j: int) -> None:
        self.candidates[i].step_down(clock.now(), f"node{j}")
        self._take_changes(self.candidates[i])

    @rule(i=CANDIDATES)
    def campaign(self, i: int) -> None:
        self.candidates[i].campaign(clock.now())

    @rule(i=CANDIDATES)
    def start_anew(self, i: int) -> None:
        if self.store.read(self.name) is not None:
            # A fresh candidate that never saw the record is not guarded against its loss.
            self.candidates[i] = self._new(i)
            self.act(i, "answered")

    @rule()
    def lose_the_record(self) -> None:
        seen = all(each.observed.longest_lease > 0 for each in self.candidates)
        # One made and lost between two looks of who waits for one is not guarded either.
        if seen and all(not each.observed.is_missing for each in self.candidates):
            key = self.store.keys.of("election", self.name)
            self.store.client.call_all([["DEL", key]])

    @rule(milliseconds=st.sampled_from([1, 20, 250]))
    def rest(self, milliseconds: int) -> None:
        time.sleep(milliseconds / 1000)

    @invariant()
    def at_most_one_leads(self) -> None:
        now = clock.now()
        leaders = [each.holder for each in self.candidates if each.term(now) is not None]
        assert len(leaders) <= 1, f"{leaders} lead at once"

    @invariant()
    def nobody_writes_with_an_older_term(self) -> None:
        for token in self.tokens[-4:-1]:
            outcome = self.schedule.dispatch(token, "tick", "", "x", []).outcome
            assert outcome in (Outcome.REFUSED, Outcome.MISSING)

    def teardown(self) -> None:
        for election in self.candidates:
            election.campaign(clock.now())
        wait_until(self._somebody_leads, what="somebody to lead")

    def _somebody_leads(self) -> bool:
        for i in range(3):
            self.act(i, "answered")
            self.at_most_one_leads()
        now = clock.now()
        return any(each.term(now) is not None for each in self.candidates)


@pytest.fixture
def machine(make_store: MakeStore) -> Iterator[type[Elections]]:
    Elections.store = make_store()
    yield Elections
    del Elections.store


def test_at_most_one_leads_and_terms_grow_whatever_happens(machine: type[Elections]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
