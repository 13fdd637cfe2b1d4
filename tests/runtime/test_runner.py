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

from celery_leader.core.candidacy import Candidacy
from celery_leader.core.changes import Change, Deposed, Elected, Followed
from celery_leader.core.election import Election
from celery_leader.core.events import (
    Event,
    Renewed,
    Unanswered,
)
from celery_leader.core.lease import Announcement, Granted, Namesake, Record, Reply, Request
from celery_leader.core.timing import Timing
from celery_leader.core.watchdog import Heartbeat
from celery_leader.errors import StoreUnavailable
from celery_leader.runtime import clock
from celery_leader.runtime.campaign import Campaign
from celery_leader.runtime.runner import Runner
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
        self.runners: list[Runner] = []

    def runner(self, **options: Any) -> Runner:
        runner = Runner(self.store, **options)
        self.runners.append(runner)
        return runner

    def campaign(self, node: str, timing: Timing = LONG, *, name: str = NAME) -> Campaign:
        """A campaign that was not started."""
        election = Election(
            Candidacy(name, holder=node, nonce=uuid.uuid4().hex, timing=timing, app="us|1")
        )
        return Campaign(election, LeasePages().allot())

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
    assert heard == [Elected(NAME, "a", campaign.term() or 0)]
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


def test_no_answer_is_no_refusal(fleet: Fleet) -> None:
    patient = Timing(
        lease_duration=2000.0,
        renew_interval=0.05,
        renew_attempts=1000,
        renew_retry_delay=0.01,
        operation_timeout=1.0,
    )
    _, campaign = fleet.leader("a", patient)
    term = campaign.term()
    heard: list[Change] = []
    campaign.listeners.append(heard.append)
    fleet.store.surprise = StoreUnavailable("no answer")
    for _ in range(3):
        fleet.store.asked.clear()
        assert fleet.store.asked.wait(PATIENCE)
    assert campaign.term() == term
    assert not heard


def test_a_deadline_counts_from_before_the_request_was_sent(fleet: Fleet) -> None:
    runner, campaign = fleet.runner(), fleet.campaign("a")
    fleet.store.answers.clear()
    runner.start(campaign)
    assert fleet.store.asked.wait(PATIENCE)
    sent_before = clock.now()
    slow_until = sent_before + 0.2
    wait_until(lambda: clock.now() > slow_until, what="a slow answer")
    fleet.store.answers.set()
    assert campaign.led.wait(PATIENCE)
    assert campaign.view.valid_until <= sent_before + LONG.lease_duration - LONG.margin


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
    second_runner, second = fleet.runner(), fleet.campaign("b", timing)
    second_runner.start(second)
    wait_until(
        lambda: len(fleet.store.register.candidates(NAME)) == 2, what="the second to have asked"
    )
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


def test_a_leader_whose_lease_was_rejected_stops_at_once_and_asks(fleet: Fleet) -> None:
    runner, campaign = fleet.leader("a")
    term = campaign.term()
    assert term is not None
    runner.lease_rejected(campaign, term, gone=False)
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


# -- who watches -----------------------------------------------------------------------


def test_an_observer_is_told_of_each_change_and_renewal(fleet: Fleet) -> None:
    seen: list[Event] = []
    runner, campaign = fleet.runner(observer=seen.append), fleet.campaign("a", Timing.of_lease(3.0))
    runner.start(campaign)
    wait_until(lambda: any(isinstance(e, Renewed) for e in seen), what="a renewal to be told")
    term = campaign.term() or 0
    assert seen[0] == Elected(NAME, "a", term)
    renewed = seen[1]
    assert isinstance(renewed, Renewed)
    assert (renewed.election, renewed.node, renewed.term) == (NAME, "a", term)
    assert renewed.latency >= 0
    assert runner.resign(campaign).wait(PATIENCE)
    deposed = seen[-1]
    assert isinstance(deposed, Deposed)
    assert (deposed.term, deposed.reason, deposed.sudden) == (term, "resigned", False)
    assert deposed.led_for > 0


def test_an_observer_is_told_who_else_leads(fleet: Fleet) -> None:
    _, leader = fleet.leader("a")
    seen: list[Event] = []
    fleet.runner(observer=seen.append).start(fleet.campaign("b"))
    wait_until(lambda: seen, what="the follower to know")
    assert seen == [Followed(NAME, "b", leader.term() or 0, "a")]


def test_an_observer_is_told_of_each_attempt_without_an_answer(fleet: Fleet) -> None:
    seen: list[Event] = []
    fleet.store.lose_requests(2)
    runner, campaign = fleet.runner(observer=seen.append), fleet.campaign("a", SHORT)
    runner.start(campaign)
    wait_until(campaign.term, what="the candidate to lead")
    assert seen[:2] == [Unanswered(NAME, "a", None)] * 2
    assert isinstance(seen[2], Elected)


def test_how_a_candidate_stands_can_be_asked_at_any_time(fleet: Fleet) -> None:
    runner, campaign = fleet.leader("a")
    standing = campaign.standing(runner.last_contact, giving_way=False)
    assert standing.leading
    assert (standing.leader, standing.term) == ("a", campaign.term())
    assert standing.leader_term == standing.term
    assert standing.last_renewal is not None
    assert standing.last_renewal >= 0
    assert standing.last_contact is not None
    assert standing.last_contact >= 0
    assert standing.eligible
    assert runner.resign(campaign).wait(PATIENCE)
    standing = campaign.standing(runner.last_contact, giving_way=False)
    assert (standing.leading, standing.leader, standing.eligible) == (False, None, False)
    assert standing.leaderless_seconds >= 0


# -- the log -----------------------------------------------------------------------------


def test_each_change_is_one_line_whose_facts_are_fields_of_the_record(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="celery_leader")
    runner, campaign = fleet.leader("a", Timing.of_lease(3.0))
    term = campaign.term()
    other = fleet.runner()
    other.start(fleet.campaign("b"))
    wait_until(lambda: "follows" in caplog.text, what="the follower's line")
    wait_until(lambda: fleet.store.rows[NAME].renewals >= 2, what="two renewals")
    assert runner.resign(campaign).wait(PATIENCE)
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
    runner, campaign = fleet.runner(observer=seen.append), fleet.campaign("a")
    heartbeat = Heartbeat("the loop", 0.2)
    campaign.requirements = [heartbeat]
    runner.start(campaign)
    wait_until(campaign.term, what="the candidate to lead")
    heartbeat.beat(clock.now())
    runner.wake()
    wait_until(lambda: fleet.store.rows[NAME].state == "released", what="the lease to be free")
    (deposed,) = [event for event in seen if isinstance(event, Deposed)]
    assert (deposed.reason, deposed.sudden) == ("stalled", True)
    assert "the loop has stood still for more than 0.2 s" in caplog.text
    _, other = fleet.leader("b")
    assert not campaign.election.campaigning

    def moving() -> bool:
        heartbeat.beat(clock.now())
        return campaign.election.campaigning

    wait_until(moving, what="it to campaign again")
    assert "the loop moves again" in caplog.text
    assert other.term()


def test_a_follower_whose_work_stands_still_does_not_take_a_free_lease(fleet: Fleet) -> None:
    leading, leader = fleet.leader("a")
    runner, campaign = fleet.runner(), fleet.campaign("b")
    heartbeat = Heartbeat("the loop", 0.2)
    campaign.requirements = [heartbeat]
    heartbeat.beat(clock.now())
    runner.start(campaign)
    wait_until(lambda: campaign.unmet, what="it to be noticed")
    assert leading.resign(leader).wait(PATIENCE)
    fleet.leader("c")
    assert campaign.term() is None


def test_a_candidate_that_fails_two_requirements_comes_back_when_both_hold(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="celery_leader")
    runner, campaign = fleet.leader("a")
    one, other = Heartbeat("the loop", 0.2), Heartbeat("the store", 0.2)
    campaign.requirements = [one, other]
    one.beat(clock.now())
    other.beat(clock.now())
    runner.wake()
    wait_until(lambda: campaign.unmet == [one, other], what="both to be noticed")
    one.suspend()
    wait_until(lambda: campaign.unmet == [other], what="one to hold again")
    assert not campaign.election.campaigning
    other.suspend()
    wait_until(campaign.term, what="it to lead again")
    assert caplog.text.count("deposed") == 1


def _resigned_while_its_work_stood_still(fleet: Fleet) -> tuple[Runner, Campaign, Heartbeat]:
    runner, campaign = fleet.leader("a")
    heartbeat = Heartbeat("the loop", 0.2)
    campaign.requirements = [heartbeat]
    heartbeat.beat(clock.now())
    runner.wake()
    wait_until(lambda: campaign.unmet, what="it to be noticed")
    assert runner.resign(campaign).wait(PATIENCE)
    return runner, campaign, heartbeat


def test_one_that_resigns_while_its_work_stands_still_does_not_come_back(fleet: Fleet) -> None:
    _, campaign, heartbeat = _resigned_while_its_work_stood_still(fleet)

    def moving() -> bool:
        heartbeat.beat(clock.now())
        return not campaign.unmet

    wait_until(moving, what="it to be seen moving")
    assert not campaign.election.campaigning


def test_one_that_steps_down_and_resigns_while_its_work_stands_still_does_not_come_back(
    fleet: Fleet,
) -> None:
    runner, campaign, heartbeat = _resigned_while_its_work_stood_still(fleet)
    runner.step_down(campaign)
    assert runner.resign(campaign).wait(PATIENCE)
    assert not campaign.wanted
    heartbeat.suspend()
    runner.wake()
    wait_until(lambda: not campaign.unmet, what="nothing to fail any more")
    assert runner.resign(campaign).wait(PATIENCE)
    assert not campaign.election.campaigning


# -- what should not be ------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def test_a_namesake_is_warned_of_once_it_is_heard_again_and_then_no_more(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    checks = fleet.campaign("a").checks
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
    _, campaign = fleet.leader("a", Timing.of_lease(2.0))
    before = campaign.term()
    fleet.store.rows[NAME].damaged = True
    wait_until(lambda: campaign.term() not in (None, before), what="another term")
    assert not fleet.store.rows[NAME].damaged
    (told,) = warnings(caplog)
    assert "somebody wrote to this election's record" in told
