"""The one thread: real time, a store in memory, and things that go wrong around it.

Its leases are short where a test waits for one to end, and long where it must not.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from celery_leader.core.election import Election
from celery_leader.core.events import (
    Change,
    Deposed,
    Elected,
    Event,
    Followed,
    Renewed,
    Unanswered,
)
from celery_leader.core.lease import Announcement, Granted, Namesake, Record, Reply, Request
from celery_leader.core.requester import Requester
from celery_leader.core.timing import Timing
from celery_leader.core.watchdog import Heartbeat
from celery_leader.errors import StoreUnavailable
from celery_leader.runtime import clock
from celery_leader.runtime.election_thread import ElectionThread
from celery_leader.runtime.local_candidate import LocalCandidate
from celery_leader.runtime.shared_memory import LeasePages
from tests.support.fake_store import FakeStore
from tests.support.waiting import PATIENCE, wait_until

NAME = "beat"
SHORT = Timing.of_lease(1.0)
LONG = Timing.of_lease(120.0)


class Store(FakeStore):
    """A store that can hang, raise what it should not, and count."""

    def __init__(self) -> None:
        super().__init__(time.time)
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Event()
        self.surprise: Exception | None = None
        self.deaf = False
        self.waits = 0
        self.batches: list[int] = []

    def perform(self, requests: Sequence[Request]) -> list[Reply | StoreUnavailable]:
        self.asked.set()
        self.answers.wait(PATIENCE)
        if self.surprise is not None:
            raise self.surprise
        self.batches.append(len(requests))
        return super().perform(requests)

    def announcements(
        self, cursors: dict[str, str], timeout: float, wake: int | None, patience: float = 1.0
    ) -> list[Announcement]:
        self.waits += 1
        if self.deaf:
            raise StoreUnavailable("a blocking read is not allowed here")
        return super().announcements(cursors, timeout, wake, patience)


class Fleet:
    """Runners over one store, ended with the test."""

    def __init__(self) -> None:
        self.store = Store()
        self.threads: list[ElectionThread] = []

    def thread(self, **options: Any) -> ElectionThread:
        thread = ElectionThread(self.store, **options)
        self.threads.append(thread)
        return thread

    def candidate(self, node: str, timing: Timing = LONG, *, name: str = NAME) -> LocalCandidate:
        """A candidate that was not started."""
        election = Election(
            Requester(name, holder=node, nonce=uuid.uuid4().hex, timing=timing, app="us|1")
        )
        return LocalCandidate(election, LeasePages().allot())

    def leader(self, node: str, timing: Timing = LONG) -> tuple[ElectionThread, LocalCandidate]:
        thread, candidate = self.thread(), self.candidate(node, timing)
        thread.start(candidate)
        wait_until(candidate.term, what=f"{node} to lead")
        return thread, candidate

    def end(self) -> None:
        self.store.answers.set()
        self.store.surprise = None
        for thread in self.threads:
            thread.stop(PATIENCE)
            assert not thread.alive


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.end()


def test_an_elected_candidate_is_believed_and_its_listeners_are_told(fleet: Fleet) -> None:
    thread, candidate = fleet.thread(), fleet.candidate("a")
    heard: list[Change] = []
    candidate.listeners.append(heard.append)
    thread.start(candidate)
    assert candidate.led.wait(PATIENCE)
    wait_until(lambda: heard, what="the listener to be told")
    assert heard == [Elected(NAME, "a", candidate.term() or 0)]
    assert thread.resign(candidate).wait(PATIENCE)
    assert [type(change) for change in heard] == [Elected, Deposed]
    assert not candidate.led.is_set()


def test_a_lease_is_renewed_for_as_long_as_the_thread_runs(fleet: Fleet) -> None:
    _, candidate = fleet.leader("a", Timing.of_lease(3.0))
    wait_until(lambda: fleet.store.rows[NAME].renewals >= 2, what="two renewals")
    assert candidate.term() == fleet.store.rows[NAME].term


def test_resigning_ends_the_belief_at_once_although_the_thread_is_busy(fleet: Fleet) -> None:
    thread, candidate = fleet.leader("a")
    fleet.store.answers.clear()
    fleet.store.asked.clear()
    thread.start(fleet.candidate("a", name="other"))
    assert fleet.store.asked.wait(PATIENCE), "the thread is to hang in the store"
    done = thread.resign(candidate)
    assert candidate.term() is None
    assert not done.is_set()
    assert fleet.store.rows[NAME].state == "held"
    fleet.store.answers.set()
    assert done.wait(PATIENCE)
    assert fleet.store.rows[NAME].state == "released"


def test_no_answer_is_no_refusal(fleet: Fleet) -> None:
    patient = Timing(
        lease_duration=2000.0,
        renew_interval=0.05,
        renew_attempts=1000,
        renew_retry_delay=0.01,
        operation_timeout=1.0,
    )
    _, candidate = fleet.leader("a", patient)
    term = candidate.term()
    heard: list[Change] = []
    candidate.listeners.append(heard.append)
    fleet.store.surprise = StoreUnavailable("no answer")
    for _ in range(3):
        fleet.store.asked.clear()
        assert fleet.store.asked.wait(PATIENCE)
    assert candidate.term() == term
    assert not heard


def test_a_deadline_counts_from_before_the_request_was_sent(fleet: Fleet) -> None:
    thread, candidate = fleet.thread(), fleet.candidate("a")
    fleet.store.answers.clear()
    thread.start(candidate)
    assert fleet.store.asked.wait(PATIENCE)
    sent_before = clock.now()
    slow_until = sent_before + 0.2
    wait_until(lambda: clock.now() > slow_until, what="a slow answer")
    fleet.store.answers.set()
    assert candidate.led.wait(PATIENCE)
    assert candidate.view.valid_until <= sent_before + LONG.lease_duration - LONG.margin


def test_a_belief_ends_by_its_deadline_although_the_thread_hangs(fleet: Fleet) -> None:
    _, candidate = fleet.leader("a", SHORT)
    fleet.store.answers.clear()
    hung_at = clock.now()
    asked_at = hung_at
    while candidate.term() is not None:
        assert asked_at < hung_at + SHORT.lease_duration
        asked_at = clock.now()


def test_a_resignation_is_heard_by_who_waits_for_news(fleet: Fleet) -> None:
    first_runner, first = fleet.leader("a")
    second_thread, second = fleet.thread(), fleet.candidate("b")
    second_thread.start(second)
    wait_until(
        lambda: len(fleet.store.register.candidates(NAME)) == 2, what="the second to have asked"
    )
    first_runner.resign(first)
    wait_until(second.term, what="the second to lead, long before the lease is over")
    assert first.term() is None


def test_where_waiting_for_news_never_works_the_timers_are_enough(fleet: Fleet) -> None:
    timing = Timing.of_lease(3.0)
    fleet.store.deaf = True
    first_runner, first = fleet.leader("a", timing)
    second_thread, second = fleet.thread(), fleet.candidate("b", timing)
    second_thread.start(second)
    wait_until(
        lambda: len(fleet.store.register.candidates(NAME)) == 2, what="the second to have asked"
    )
    first_runner.resign(first)
    wait_until(second.term, what="the second to lead")
    assert fleet.store.waits < 20, "it must not try all the time"


def test_due_requests_of_all_elections_go_out_together(fleet: Fleet) -> None:
    thread = fleet.thread()
    fleet.store.answers.clear()
    first = fleet.candidate("a", name="first")
    thread.start(first)
    assert fleet.store.asked.wait(PATIENCE)
    others = [fleet.candidate("a", name=f"other{number}") for number in range(9)]
    for candidate in others:
        thread.start(candidate)
    fleet.store.answers.set()
    wait_until(lambda: all(candidate.term() for candidate in others), what="all to lead")
    assert fleet.store.batches[:2] == [1, 9]


def test_a_listener_that_fails_stops_nobody(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    def fail(change: Change) -> None:
        raise RuntimeError("a user's mistake")

    thread, candidate = fleet.thread(), fleet.candidate("a")
    heard: list[Change] = []
    candidate.listeners += [fail, heard.append]
    thread.start(candidate)
    wait_until(lambda: heard, what="the listener behind it to be told")
    assert "a user's mistake" in caplog.text
    assert thread.resign(candidate).wait(PATIENCE)


def test_the_thread_outlives_whatever_the_store_raises(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.store.surprise = RuntimeError("a bug")
    thread, candidate = fleet.thread(), fleet.candidate("a")
    thread.start(candidate)
    wait_until(lambda: "a bug" in caplog.text, what="the bug in the log")
    assert candidate.term() is None
    fleet.store.surprise = None
    wait_until(candidate.term, what="the candidate to lead all the same")


def test_an_outage_is_logged_once_and_so_is_its_end(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="celery_leader")
    fleet.store.lose_requests(4)
    thread, candidate = fleet.thread(), fleet.candidate("a", SHORT)
    thread.start(candidate)
    wait_until(candidate.term, what="the candidate to lead")
    assert caplog.text.count("trying on") == 1
    assert caplog.text.count("answers again after 4 failed") == 1


def test_a_leader_of_another_project_is_reported(fleet: Fleet) -> None:
    fleet.leader("a")
    reported: list[tuple[str, Record]] = []
    other = fleet.thread(app="them|2", on_foreign=lambda *what: reported.append(what))
    other.start(fleet.candidate("b"))
    wait_until(lambda: reported, what="the report")
    name, record = reported[0]
    assert (name, record.holder, record.app) == (NAME, "a", "us|1")


def test_a_leader_whose_lease_was_rejected_stops_at_once_and_asks(fleet: Fleet) -> None:
    thread, candidate = fleet.leader("a")
    term = candidate.term()
    assert term is not None
    thread.lease_rejected(candidate, term, gone=False)
    wait_until(lambda: (candidate.term() or 0) > term, what="a higher term")


def test_a_leader_whose_earlier_lease_was_rejected_leads_on(fleet: Fleet) -> None:
    thread, candidate = fleet.leader("a")
    term = candidate.term()
    assert term is not None
    thread.lease_rejected(candidate, term - 1, gone=False)
    assert candidate.term() == term


def test_the_answer_to_a_resignation_comes_for_each_who_asked(fleet: Fleet) -> None:
    thread, candidate = fleet.leader("a")
    farewells = [thread.resign(candidate) for _ in range(3)]
    assert all(done.wait(PATIENCE) for done in farewells)
    assert thread.resign(candidate).wait(PATIENCE), "also when there is nothing left to give up"


def test_who_resigned_campaigns_again_when_started_again(fleet: Fleet) -> None:
    thread, candidate = fleet.leader("a")
    first = candidate.term()
    assert first is not None
    assert thread.resign(candidate).wait(PATIENCE)
    thread.start(candidate)
    second = wait_until(candidate.term, what="it to lead again")
    assert second > first


def _raising(error: Exception) -> Any:
    def act() -> None:
        raise error

    return act


# -- who watches -----------------------------------------------------------------------


def test_an_observer_is_told_of_each_change_and_renewal(fleet: Fleet) -> None:
    seen: list[Event] = []
    thread, candidate = (
        fleet.thread(observer=seen.append),
        fleet.candidate("a", Timing.of_lease(3.0)),
    )
    thread.start(candidate)
    wait_until(lambda: any(isinstance(e, Renewed) for e in seen), what="a renewal to be told")
    term = candidate.term() or 0
    assert seen[0] == Elected(NAME, "a", term)
    renewed = seen[1]
    assert isinstance(renewed, Renewed)
    assert (renewed.election, renewed.node, renewed.term) == (NAME, "a", term)
    assert renewed.latency >= 0
    assert thread.resign(candidate).wait(PATIENCE)
    deposed = seen[-1]
    assert isinstance(deposed, Deposed)
    assert (deposed.term, deposed.reason, deposed.sudden) == (term, "resigned", False)
    assert deposed.led_for > 0


def test_an_observer_is_told_who_else_leads(fleet: Fleet) -> None:
    _, leader = fleet.leader("a")
    seen: list[Event] = []
    fleet.thread(observer=seen.append).start(fleet.candidate("b"))
    wait_until(lambda: seen, what="the follower to know")
    assert seen == [Followed(NAME, "b", leader.term() or 0, "a")]


def test_an_observer_is_told_of_each_attempt_without_an_answer(fleet: Fleet) -> None:
    seen: list[Event] = []
    fleet.store.lose_requests(2)
    thread, candidate = fleet.thread(observer=seen.append), fleet.candidate("a", SHORT)
    thread.start(candidate)
    wait_until(candidate.term, what="the candidate to lead")
    assert seen[:2] == [Unanswered(NAME, "a", None)] * 2
    assert isinstance(seen[2], Elected)


def test_how_a_candidate_stands_can_be_asked_at_any_time(fleet: Fleet) -> None:
    thread, candidate = fleet.leader("a")
    standing = candidate.standing(thread.last_contact)
    assert standing.leading
    assert (standing.leader, standing.term) == ("a", candidate.term())
    assert standing.leader_term == standing.term
    assert standing.last_renewal is not None
    assert standing.last_renewal >= 0
    assert standing.last_contact is not None
    assert standing.last_contact >= 0
    assert standing.eligible
    assert thread.resign(candidate).wait(PATIENCE)
    standing = candidate.standing(thread.last_contact)
    assert (standing.leading, standing.leader, standing.eligible) == (False, None, False)
    assert standing.leaderless_seconds >= 0


# -- the log -----------------------------------------------------------------------------


def test_each_change_is_one_line_whose_facts_are_fields_of_the_record(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="celery_leader")
    thread, candidate = fleet.leader("a", Timing.of_lease(3.0))
    term = candidate.term()
    other = fleet.thread()
    other.start(fleet.candidate("b"))
    wait_until(lambda: "follows" in caplog.text, what="the follower's line")
    wait_until(lambda: fleet.store.rows[NAME].renewals >= 2, what="two renewals")
    assert thread.resign(candidate).wait(PATIENCE)
    lines = [r for r in caplog.records if getattr(r, "leader_node", None) == "a"]
    facts = {"leader_election": NAME, "leader_node": "a", "leader_term": term}
    assert [line.levelname for line in lines] == ["INFO", "INFO"], "and none for a renewal"
    for line in lines:
        assert facts.items() <= vars(line).items()
    elected, deposed = lines
    assert elected.getMessage() == f"{NAME}: elected, term {term}, node a"
    assert vars(deposed)["leader_reason"] == "resigned"
    assert vars(deposed)["leader_led_for"] > 0
    assert deposed.getMessage().startswith(f"{NAME}: deposed, term {term}, node a: resigned, after")
    (followed,) = [r for r in caplog.records if vars(r).get("leader_followed") == "a"]
    assert vars(followed)["leader_node"] == "b"


# -- the watchdog ------------------------------------------------------------------------


def test_a_leader_whose_work_stands_still_gives_up_and_comes_back_when_it_moves(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="celery_leader")
    seen: list[Event] = []
    thread, candidate = fleet.thread(observer=seen.append), fleet.candidate("a")
    heartbeat = Heartbeat("the loop", 0.2)
    candidate.requirements = [heartbeat]
    thread.start(candidate)
    wait_until(candidate.term, what="the candidate to lead")
    heartbeat.beat(clock.now())
    thread.wake()
    wait_until(lambda: fleet.store.rows[NAME].state == "released", what="the lease to be free")
    (deposed,) = [event for event in seen if isinstance(event, Deposed)]
    assert (deposed.reason, deposed.sudden) == ("stalled", True)
    assert "the loop has stood still for more than 0.2 s" in caplog.text
    _, other = fleet.leader("b")
    assert not candidate.election.campaigning

    def moving() -> bool:
        heartbeat.beat(clock.now())
        return candidate.election.campaigning

    wait_until(moving, what="it to campaign again")
    assert "the loop moves again" in caplog.text
    assert other.term()


def test_a_follower_whose_work_stands_still_does_not_take_a_free_lease(fleet: Fleet) -> None:
    leading, leader = fleet.leader("a")
    thread, candidate = fleet.thread(), fleet.candidate("b")
    heartbeat = Heartbeat("the loop", 0.2)
    candidate.requirements = [heartbeat]
    heartbeat.beat(clock.now())
    thread.start(candidate)
    wait_until(lambda: candidate.unmet, what="it to be noticed")
    assert leading.resign(leader).wait(PATIENCE)
    fleet.leader("c")
    assert candidate.term() is None


def test_a_candidate_that_fails_two_requirements_comes_back_when_both_hold(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="celery_leader")
    thread, candidate = fleet.leader("a")
    one, other = Heartbeat("the loop", 0.2), Heartbeat("the store", 0.2)
    candidate.requirements = [one, other]
    one.beat(clock.now())
    other.beat(clock.now())
    thread.wake()
    wait_until(lambda: candidate.unmet == [one, other], what="both to be noticed")
    one.suspend()
    wait_until(lambda: candidate.unmet == [other], what="one to hold again")
    assert not candidate.election.campaigning
    other.suspend()
    wait_until(candidate.term, what="it to lead again")
    assert caplog.text.count("deposed") == 1


def _resigned_while_its_work_stood_still(
    fleet: Fleet,
) -> tuple[ElectionThread, LocalCandidate, Heartbeat]:
    thread, candidate = fleet.leader("a")
    heartbeat = Heartbeat("the loop", 0.2)
    candidate.requirements = [heartbeat]
    heartbeat.beat(clock.now())
    thread.wake()
    wait_until(lambda: candidate.unmet, what="it to be noticed")
    assert thread.resign(candidate).wait(PATIENCE)
    return thread, candidate, heartbeat


def test_one_that_resigns_while_its_work_stands_still_does_not_come_back(fleet: Fleet) -> None:
    _, candidate, heartbeat = _resigned_while_its_work_stood_still(fleet)

    def moving() -> bool:
        heartbeat.beat(clock.now())
        return not candidate.unmet

    wait_until(moving, what="it to be seen moving")
    assert not candidate.election.campaigning


def test_one_that_steps_down_and_resigns_while_its_work_stands_still_does_not_come_back(
    fleet: Fleet,
) -> None:
    thread, candidate, heartbeat = _resigned_while_its_work_stood_still(fleet)
    thread.step_down(candidate)
    assert thread.resign(candidate).wait(PATIENCE)
    assert not candidate.wanted
    heartbeat.suspend()
    thread.wake()
    wait_until(lambda: not candidate.unmet, what="nothing to fail any more")
    assert thread.resign(candidate).wait(PATIENCE)
    assert not candidate.election.campaigning


# -- what should not be ------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def test_a_namesake_is_warned_of_once_it_is_heard_again_and_then_no_more(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    checks = fleet.candidate("a").checks
    for _ in range(3):
        checks.look_at(Granted(7, "0-1", 1.0, namesake=Namesake(5.0, "worker, pid 7 on web")))
    assert warnings(caplog) == [], "it may have been killed"
    for seen_at in (6.0, 7.0):
        checks.look_at(Granted(7, "0-1", 1.0, namesake=Namesake(seen_at, "worker, pid 7 on web")))
    (told,) = warnings(caplog)
    assert "another living node is called a too (worker, pid 7 on web)" in told


def test_a_record_that_makes_no_sense_is_said_once_and_written_anew(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    _, candidate = fleet.leader("a", Timing.of_lease(2.0))
    before = candidate.term()
    fleet.store.rows[NAME].damaged = True
    wait_until(lambda: candidate.term() not in (None, before), what="another term")
    assert not fleet.store.rows[NAME].damaged
    (told,) = warnings(caplog)
    assert "somebody wrote to this election's record" in told
