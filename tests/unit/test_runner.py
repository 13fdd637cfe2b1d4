"""The one thread: real time, a store in memory, and things that go wrong around it.

Its leases are short where a test waits for one to end, and long where it must not.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from celery_leader import clock
from celery_leader.belief import BeliefPage
from celery_leader.election import Change, Deposed, Elected, Election
from celery_leader.errors import StoreUnavailable
from celery_leader.lease import Announcement, Record, Reply, Request, Timing
from celery_leader.runner import Campaign, Runner
from tests.fake_store import FakeStore
from tests.waiting import PATIENCE, wait_until

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
        self, cursors: dict[str, str], timeout: float, wake: int
    ) -> list[Announcement]:
        self.waits += 1
        if self.deaf:
            raise StoreUnavailable("a blocking read is not allowed here")
        return super().announcements(cursors, timeout, wake)


class Fleet:
    """Runners over one store, ended with the test."""

    def __init__(self) -> None:
        self.store = Store()
        self.runners: list[Runner] = []

    def runner(self, **options: Any) -> Runner:
        runner = Runner(self.store, **options)
        self.runners.append(runner)
        return runner

    def campaign(self, node: str, timing: Timing = LONG, *, name: str = NAME) -> Campaign:
        """A campaign that was not started."""
        election = Election(name, holder=node, nonce=uuid.uuid4().hex, timing=timing, app="us|1")
        return Campaign(election, BeliefPage().allot())

    def leader(self, node: str, timing: Timing = LONG) -> tuple[Runner, Campaign]:
        runner, campaign = self.runner(), self.campaign(node, timing)
        runner.start(campaign)
        wait_until(campaign.term, what=f"{node} to lead")
        return runner, campaign

    def end(self) -> None:
        self.store.answers.set()
        self.store.surprise = None
        for runner in self.runners:
            runner.stop(PATIENCE)
            assert not runner.alive


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.end()


def test_an_elected_candidate_is_believed_and_its_listeners_are_told(fleet: Fleet) -> None:
    runner, campaign = fleet.runner(), fleet.campaign("a")
    heard: list[Change] = []
    campaign.listeners.append(heard.append)
    runner.start(campaign)
    assert campaign.led.wait(PATIENCE)
    wait_until(lambda: heard, what="the listener to be told")
    assert heard == [Elected(campaign.term() or 0)]
    assert runner.resign(campaign).wait(PATIENCE)
    assert [type(change) for change in heard] == [Elected, Deposed]
    assert not campaign.led.is_set()


def test_a_lease_is_renewed_for_as_long_as_the_thread_runs(fleet: Fleet) -> None:
    _, campaign = fleet.leader("a", Timing.of_lease(3.0))
    wait_until(lambda: fleet.store.rows[NAME].renewals >= 2, what="two renewals")
    assert campaign.term() == fleet.store.rows[NAME].term


def test_resigning_ends_the_belief_at_once_although_the_thread_is_busy(fleet: Fleet) -> None:
    runner, campaign = fleet.leader("a")
    fleet.store.answers.clear()
    fleet.store.asked.clear()
    runner.start(fleet.campaign("a", name="other"))
    assert fleet.store.asked.wait(PATIENCE), "the thread is to hang in the store"
    done = runner.resign(campaign)
    assert campaign.term() is None
    assert not done.is_set()
    assert fleet.store.rows[NAME].state == "held"
    fleet.store.answers.set()
    assert done.wait(PATIENCE)
    assert fleet.store.rows[NAME].state == "released"


def test_a_belief_ends_by_its_deadline_although_the_thread_hangs(fleet: Fleet) -> None:
    _, campaign = fleet.leader("a", SHORT)
    fleet.store.answers.clear()
    hung_at = clock.now()
    asked_at = hung_at
    while campaign.term() is not None:
        assert asked_at < hung_at + SHORT.lease_duration
        asked_at = clock.now()


def test_a_resignation_is_heard_by_who_waits_for_news(fleet: Fleet) -> None:
    first_runner, first = fleet.leader("a")
    second_runner, second = fleet.runner(), fleet.campaign("b")
    second_runner.start(second)
    wait_until(lambda: len(fleet.store.candidates(NAME)) == 2, what="the second to have asked")
    first_runner.resign(first)
    wait_until(second.term, what="the second to lead, long before the lease is over")
    assert first.term() is None


def test_where_waiting_for_news_never_works_the_timers_are_enough(fleet: Fleet) -> None:
    timing = Timing.of_lease(3.0)
    fleet.store.deaf = True
    first_runner, first = fleet.leader("a", timing)
    second_runner, second = fleet.runner(), fleet.campaign("b", timing)
    second_runner.start(second)
    wait_until(lambda: len(fleet.store.candidates(NAME)) == 2, what="the second to have asked")
    first_runner.resign(first)
    wait_until(second.term, what="the second to lead")
    assert fleet.store.waits < 20, "it must not try all the time"


def test_due_requests_of_all_elections_go_out_together(fleet: Fleet) -> None:
    runner = fleet.runner()
    fleet.store.answers.clear()
    first = fleet.campaign("a", name="first")
    runner.start(first)
    assert fleet.store.asked.wait(PATIENCE)
    others = [fleet.campaign("a", name=f"other{number}") for number in range(9)]
    for campaign in others:
        runner.start(campaign)
    fleet.store.answers.set()
    wait_until(lambda: all(campaign.term() for campaign in others), what="all to lead")
    assert fleet.store.batches[:2] == [1, 9]


def test_a_listener_that_fails_stops_nobody(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    def fail(change: Change) -> None:
        raise RuntimeError("a user's mistake")

    runner, campaign = fleet.runner(), fleet.campaign("a")
    heard: list[Change] = []
    campaign.listeners += [fail, heard.append]
    runner.start(campaign)
    wait_until(lambda: heard, what="the listener behind it to be told")
    assert "a user's mistake" in caplog.text
    assert runner.resign(campaign).wait(PATIENCE)


def test_the_thread_outlives_whatever_the_store_raises(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.store.surprise = RuntimeError("a bug")
    runner, campaign = fleet.runner(), fleet.campaign("a")
    runner.start(campaign)
    wait_until(lambda: "a bug" in caplog.text, what="the bug in the log")
    assert campaign.term() is None
    fleet.store.surprise = None
    wait_until(campaign.term, what="the candidate to lead all the same")


def test_an_outage_is_logged_once_and_so_is_its_end(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="celery_leader")
    fleet.store.lose_requests(4)
    runner, campaign = fleet.runner(), fleet.campaign("a", SHORT)
    runner.start(campaign)
    wait_until(campaign.term, what="the candidate to lead")
    assert caplog.text.count("trying on") == 1
    assert caplog.text.count("answers again after 4 failed") == 1


def test_a_leader_of_another_project_is_reported(fleet: Fleet) -> None:
    fleet.leader("a")
    reported: list[tuple[str, Record]] = []
    other = fleet.runner(app="them|2", on_foreign=lambda *what: reported.append(what))
    other.start(fleet.campaign("b"))
    wait_until(lambda: reported, what="the report")
    name, record = reported[0]
    assert (name, record.holder, record.app) == (NAME, "a", "us|1")


def test_a_contradicted_leader_stops_at_once_and_asks(fleet: Fleet) -> None:
    runner, campaign = fleet.leader("a")
    term = campaign.term()
    assert term is not None
    runner.contradicted(campaign, term, gone=False)
    wait_until(lambda: (campaign.term() or 0) > term, what="a higher term")


def test_the_answer_to_a_resignation_comes_for_each_who_asked(fleet: Fleet) -> None:
    runner, campaign = fleet.leader("a")
    farewells = [runner.resign(campaign) for _ in range(3)]
    assert all(done.wait(PATIENCE) for done in farewells)
    assert runner.resign(campaign).wait(PATIENCE), "also when there is nothing left to give up"


def test_who_resigned_campaigns_again_when_started_again(fleet: Fleet) -> None:
    runner, campaign = fleet.leader("a")
    first = campaign.term()
    assert first is not None
    assert runner.resign(campaign).wait(PATIENCE)
    runner.start(campaign)
    second = wait_until(campaign.term, what="it to lead again")
    assert second > first


def _raising(error: Exception) -> Any:
    def act() -> None:
        raise error

    return act
