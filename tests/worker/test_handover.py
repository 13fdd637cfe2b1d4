"""How the lead passes from one worker to another, and what becomes of the tasks."""

from __future__ import annotations

import signal
from datetime import datetime, timedelta, timezone

import pytest

from celery_leader import LeaderElection
from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet, Process
from tests.support.services import must_have
from tests.support.waiting import wait_until


@pytest.fixture
def pair(new_fleet: NewFleet) -> Fleet:
    """Two workers, with probes that record what each believes."""
    fleet = new_fleet(probe=True)
    fleet.workers("w1", "w2")
    return fleet


def leader_and_follower(fleet: Fleet) -> tuple[Process, Process]:
    leader = fleet.leader()
    (follower,) = fleet.followers()
    fleet.takes_part(follower)
    return leader, follower


def test_a_warm_shutdown_keeps_the_lease_until_the_running_task_is_done(pair: Fleet) -> None:
    leader, follower = leader_and_follower(pair)
    term = pair.history()[-1].term
    hold = pair.app.tasks["fleet.hold"].delay("running")
    pair.saw("started", "running")

    leader.tell(signal.SIGTERM)
    leader.says("no longer consuming from celery.leader")
    waiting = [pair.app.tasks["fleet.lead"].delay("waiting") for _ in range(5)]
    assert pair.outlives_its_lease()["holder"] == leader.node
    assert pair.records("ran", "waiting") == []

    pair.open("running")
    assert leader.wait() == 0
    assert hold.get(timeout=30)["term"] == term
    assert [result.get(timeout=30)["node"] for result in waiting] == [follower.node] * 5
    elected, resigned, successor = pair.history()
    assert (elected.node, resigned.kind, resigned.node) == (leader.node, "resigned", leader.node)
    assert (successor.kind, successor.node) == ("elected", follower.node)
    (finished,) = pair.records("finished", "running")
    assert finished["at"] <= resigned.at + 1000
    assert successor.term > term
    pair.assert_beliefs_never_overlapped()


def test_tasks_that_wait_at_a_warm_shutdown_all_run_once(pair: Fleet) -> None:
    leader, _ = leader_and_follower(pair)
    pair.app.tasks["fleet.hold"].delay("first")
    pair.saw("started", "first")
    sent = [pair.app.tasks["fleet.lead"].delay("behind") for _ in range(12)]
    late = [pair.app.tasks["fleet.lead_late"].delay("behind") for _ in range(12)]
    leader.tell(signal.SIGTERM)
    leader.says("no longer consuming from celery.leader")
    pair.open("first")
    assert leader.wait() == 0
    for result in (*sent, *late):
        result.get(timeout=30)
    ran = [seen["id"] for seen in pair.records("ran", "behind")]
    assert sorted(ran) == sorted(result.id for result in (*sent, *late))


def test_an_idle_leader_hands_over_at_a_warm_shutdown_without_waiting_for_an_expiry(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING)
    fleet.workers("w1", "w2", pool="solo")
    leader, follower = leader_and_follower(fleet)
    assert leader.terminate() == 0
    wait_until(lambda: len(fleet.history()) == 3, what="a successor")
    _, resigned, elected = fleet.history()
    assert (resigned.kind, elected.node) == ("resigned", follower.node)
    assert "deposed" in leader.log
    assert "resigned" in leader.log


def test_a_follower_that_shuts_down_changes_nothing(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    fleet.workers("w1", "w2", pool="solo")
    leader, follower = leader_and_follower(fleet)
    assert follower.terminate() == 0
    fleet.renewed(1)
    assert len(fleet.history()) == 1
    assert fleet.app.tasks["fleet.lead"].delay().get(timeout=30)["node"] == leader.node


def test_a_leader_only_task_that_the_leader_does_not_know_waits_for_one_that_does(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING)
    old = fleet.worker("old", "-P", "solo", unknown=["lead"]).says("consuming from celery.leader")
    result = fleet.app.tasks["fleet.lead"].delay("from the new release")
    old.says("task fleet.lead is leader-only and unknown to this worker")
    new = fleet.worker("new", "-P", "solo").says(" ready.")
    fleet.takes_part(new)
    assert old.terminate() == 0
    seen = result.get(timeout=30)
    assert (seen["node"], seen["id"]) == (new.node, result.id)
    assert len(fleet.records("ran", "from the new release")) == 1
    assert "Traceback" not in old.log


def test_a_cold_shutdown_resigns_after_its_bodies_have_ended(pair: Fleet) -> None:
    leader, follower = leader_and_follower(pair)
    pair.app.tasks["fleet.pulse"].delay("pulse")
    pair.saw("pulse", "pulse", count=3)
    leader.terminate(signal.SIGQUIT)
    wait_until(lambda: len(pair.history()) >= 3, what="a successor")
    _, resigned, elected = pair.history()
    assert (resigned.kind, resigned.node) == ("resigned", leader.node)
    assert elected.node == follower.node
    last = pair.records("pulse", "pulse")[-1]
    assert last["at"] <= resigned.at + 1000


def test_after_a_kill_the_lead_passes_on_when_the_lease_has_run_out(pair: Fleet) -> None:
    leader, follower = leader_and_follower(pair)
    leader.kill()
    left = pair.record()
    waiting = pair.app.tasks["fleet.lead"].delay("after the kill")
    assert waiting.get(timeout=30)["node"] == follower.node
    _, elected = pair.history()
    assert (elected.kind, elected.node) == ("elected", follower.node)
    assert elected.at // 1000 >= int(left["expires_at"])
    assert elected.term > int(left["term"])
    pair.assert_beliefs_never_overlapped()


def test_a_frozen_leader_is_a_follower_when_it_thaws_and_what_it_held_ran_elsewhere(
    pair: Fleet,
) -> None:
    leader, follower = leader_and_follower(pair)
    old_term = pair.history()[-1].term
    hold = pair.app.tasks["fleet.hold"].delay("body")
    pair.saw("started", "body")
    # Fetched by the leader, which can run one at a time.
    held = [pair.app.tasks[f"fleet.{name}"].delay("held") for name in ("lead", "lead_late")]
    for result in held:
        leader.says(f"[{result.id}] received")

    leader.freeze()
    pair.leader(other_than=leader)
    leader.thaw()
    leader.says(f"deposed, term {old_term}")
    pair.open("body")

    for result in held:
        seen = result.get(timeout=30)
        assert (seen["node"], seen["hops"]) == (follower.node, 0)
        assert seen["term"] > old_term
        assert seen["id"] == result.id
    assert len(pair.records("ran", "held")) == 2
    (finished,) = pair.saw("finished", "body")
    assert (finished["leads"], finished["term"]) == (False, None)
    hold.get(timeout=30)
    assert leader.alive
    assert [line.kind for line in pair.history()] == ["elected", "elected"]
    pair.takes_part(leader)
    pair.assert_beliefs_never_overlapped()
    assert "Traceback" not in leader.log


def test_a_task_whose_eta_outlives_the_term_runs_on_the_next_leader(pair: Fleet) -> None:
    leader, follower = leader_and_follower(pair)
    eta = datetime.now(timezone.utc) + timedelta(seconds=3)
    result = pair.app.tasks["fleet.lead"].apply_async(("later",), eta=eta)
    leader.says(f"[{result.id}] received")
    leader.freeze()
    pair.leader(other_than=leader)
    leader.thaw()
    seen = result.get(timeout=30)
    assert (seen["node"], seen["hops"]) == (follower.node, 0)
    assert seen["at"] >= eta.timestamp() * 1e6
    assert datetime.fromisoformat(seen["eta"]) == eta
    assert len(pair.records("ran", "later")) == 1


def test_a_retry_by_a_body_that_no_longer_leads_runs_on_the_next_leader(pair: Fleet) -> None:
    leader, follower = leader_and_follower(pair)
    # Only the leader may send it; that it goes on is no sending.
    result = pair.send("retried", "again")
    pair.saw("started", "again")
    leader.freeze()
    pair.leader(other_than=leader)
    leader.thaw()
    leader.says("deposed")
    pair.open("again")
    seen = result.get(timeout=30)
    assert (seen["node"], seen["id"]) == (follower.node, result.id)


def test_an_ordinary_task_that_runs_on_does_not_keep_the_lead_in_a_warm_shutdown(
    pair: Fleet,
) -> None:
    leader, follower = leader_and_follower(pair)
    pair.send("hold_plain", "ordinary", queue=leader.name)
    pair.saw("started", "ordinary")
    leader.tell(signal.SIGTERM)
    leader.says("no longer consuming from celery.leader")
    try:
        wait_until(lambda: len(pair.history()) == 3, timeout=5, what="a successor")
        assert pair.history()[-1].node == follower.node
    finally:
        pair.open("ordinary")


def test_what_waits_in_a_worker_that_stops_runs_on_the_next_leader_at_once_and_in_order(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING)
    leader = fleet.worker("w1").says(" ready.").says("consuming from celery.leader")
    fleet.send("hold_plain", "ordinary", queue=leader.name)
    fleet.saw("started", "ordinary")
    # Three are fetched by the leader, whose one process is busy; the others wait in Redis.
    sent = [fleet.app.tasks["fleet.lead"].delay(f"{number:02}") for number in range(12)]
    for result in sent[:3]:
        leader.says(f"[{result.id}] received")
    other = fleet.worker("w2").says(" ready.")
    fleet.takes_part(other)
    leader.tell(signal.SIGTERM)
    try:
        results = [result.get(timeout=30) for result in sent]
        assert leader.alive
        assert fleet.records("finished", "ordinary") == []
    finally:
        fleet.open("ordinary")
    assert {seen["node"] for seen in results} == {other.node}
    assert [seen["id"] for seen in fleet.records("ran")] == [result.id for result in sent]
    assert leader.wait() == 0
    assert "Traceback" not in leader.log


def test_each_lease_is_passed_on_when_its_own_last_body_is_done(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    leader = fleet.worker("w1", "-c", "2").says(" ready.")
    leader.says("consuming from celery.leader.reports")
    other = fleet.worker("w2", "-c", "2").says(" ready.")
    for election in ("worker", "reports"):
        fleet.takes_part(other, election)
    fleet.send("hold_report", "report", queue="celery.leader.reports")
    fleet.saw("started", "report")
    leader.tell(signal.SIGTERM)
    assert fleet.leader("worker", other_than=leader) is other
    assert fleet.record("reports")["holder"] == leader.node
    assert fleet.record("reports")["state"] == "held"
    fleet.open("report")
    assert fleet.leader("reports", other_than=leader) is other
    (finished,) = fleet.saw("finished", "report")
    assert finished["leads"]


def test_who_is_deposed_in_a_shutdown_does_not_campaign_again_while_its_body_runs_on(
    pair: Fleet,
) -> None:
    leader, follower = leader_and_follower(pair)
    hold = pair.app.tasks["fleet.hold"].delay("body")
    pair.saw("started", "body")
    leader.tell(signal.SIGTERM)
    leader.says("no longer consuming from celery.leader")
    leader.freeze()
    assert pair.leader(other_than=leader) is follower
    leader.thaw()
    leader.says("deposed, term")

    assert follower.terminate() == 0
    released = pair.record()
    assert released["state"] == "released"
    over = pair.moment() + 2 * pair.lease
    wait_until(lambda: pair.moment() > over, what="two leases to pass")
    assert pair.record() == released
    pair.open("body")
    hold.get(timeout=30)
    assert leader.wait() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_fetched_task_does_not_start_once_the_shutdown_has_begun(
    new_fleet: NewFleet, pool: str
) -> None:
    fleet = new_fleet(conf=LASTING)
    leader = fleet.worker("w1", "-P", pool).says(" ready.").says("consuming from celery.leader")
    fleet.send("hold", "body")
    fleet.saw("started", "body")
    waiting = fleet.app.tasks["fleet.skippable"].delay("behind")
    leader.says(f"[{waiting.id}] received")
    leader.tell(signal.SIGTERM)
    leader.says("no longer consuming from celery.leader")
    fleet.open("body")
    leader.wait()
    assert fleet.records("ran", "behind") == []
    other = fleet.worker("w2", "-P", "solo").says(" ready.")
    assert waiting.get(timeout=30)["node"] == other.node


def test_with_late_acknowledgement_a_killed_leader_loses_no_task(new_fleet: NewFleet) -> None:
    """With kombu's default visibility timeout, which is an hour."""
    fleet = new_fleet()
    fleet.workers("w1", "w2")
    sent = [fleet.app.tasks["fleet.work_late"].delay("work") for _ in range(30)]
    fleet.saw("finished", "work", count=5)
    leader = fleet.leader()
    leader.kill()
    for result in sent:
        result.get(timeout=30)
    finished = [seen["id"] for seen in fleet.records("finished", "work")]
    assert set(finished) == {result.id for result in sent}
    assert max(finished.count(each) for each in finished) <= 2
    assert {seen["node"] for seen in fleet.records("finished", "work")} > {leader.node}


def test_workers_frozen_one_after_the_other_never_both_believe_they_lead(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(probe=True)
    fleet.workers("w1", "w2", "w3")
    for _ in range(2):
        leader = fleet.leader()
        leader.freeze()
        fleet.leader(other_than=leader)
        leader.thaw()
        leader.says("deposed")
    fleet.renewed(1)
    terms = [line.term for line in fleet.history()]
    assert terms == sorted(set(terms))
    assert len(terms) >= 3
    fleet.assert_beliefs_never_overlapped()
    sent = [fleet.send("lead", "afterwards") for _ in range(10)]
    for result in sent:
        result.get(timeout=30)
    assert len(fleet.records("ran", "afterwards")) == 10


def test_a_rolling_restart_runs_every_task_once(new_fleet: NewFleet) -> None:
    fleet = new_fleet(probe=True, conf=LASTING)
    old = fleet.workers("w1", "w2", pool="solo")
    sent = []
    for number, process in enumerate(old):
        sent += [fleet.send("lead", "rolling") for _ in range(5)]
        sent += [fleet.app.tasks["fleet.lead"].delay("rolling") for _ in range(5)]
        assert process.terminate() == 0
        fleet.worker(f"new{number}", "-P", "solo").says(" ready.")
        sent += [fleet.send("lead", "rolling") for _ in range(5)]
    for result in sent:
        result.get(timeout=30)
    assert sorted(seen["id"] for seen in fleet.records("ran", "rolling")) == sorted(
        result.id for result in sent
    )
    assert {seen["leads"] for seen in fleet.records("ran", "rolling")} == {True}
    fleet.assert_beliefs_never_overlapped()


def test_a_worker_steps_down_for_a_higher_priority_between_two_bodies_and_loses_nothing(
    new_fleet: NewFleet,
) -> None:
    conf = {"leader_renew_interval": 0.5, "leader_preempt": True}
    fleet = new_fleet(conf=conf, probe=True)
    low = fleet.worker("w1", "-c", "1").says(" ready.")
    assert fleet.leader() is low
    held = fleet.send("hold", "first")
    fleet.saw("started", "first")
    waiting = [fleet.send("lead", f"waits{i}") for i in range(3)]
    high = fleet.worker("w2", "--leader-priority", "1").says(" ready.")
    low.says("has a higher priority")
    fleet.renewed(2)
    assert fleet.leader() is low, "a body of its runs"
    fleet.open("first")
    assert held.get(timeout=30)["node"] == low.node
    low.says("no longer consuming from celery.leader\n")
    assert fleet.leader(other_than=low) is high
    for result in waiting:
        result.get(timeout=30)
    assert sorted(seen["label"] for seen in fleet.records("ran")) == [f"waits{i}" for i in range(3)]
    assert fleet.history()[-2].kind == "resigned"
    fleet.assert_beliefs_never_overlapped()


def test_a_long_body_keeps_a_leader_that_steps_down_from_no_other_task(
    new_fleet: NewFleet,
) -> None:
    conf = {"leader_renew_interval": 0.5, "leader_preempt": True}
    fleet = new_fleet(conf=conf, probe=True)
    low = fleet.worker("w1", "-c", "2").says(" ready.")
    assert fleet.leader() is low
    long = fleet.send("hold", "long")
    fleet.saw("started", "long")
    high = fleet.worker("w2", "--leader-priority", "1").says(" ready.")
    low.says("has a higher priority")
    fleet.outlives_its_lease()
    meanwhile = [fleet.send("lead", "meanwhile") for _ in range(10)]
    assert {result.get(timeout=30)["node"] for result in meanwhile} == {low.node}
    assert fleet.leader() is low
    fleet.open("long")
    assert long.get(timeout=30)["node"] == low.node
    assert fleet.leader(other_than=low) is high
    assert fleet.send("lead", "afterwards").get(timeout=30)["node"] == high.node
    (finished,) = fleet.records("finished", "long")
    assert finished["leads"] is True
    fleet.assert_beliefs_never_overlapped()


def test_what_was_given_back_does_not_start_when_its_time_has_come_though_the_lease_is_still_held(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf={**LASTING, "leader_preempt": True})
    low = fleet.worker("w1", "-c", "2").says(" ready.")
    assert fleet.leader() is low
    fleet.send("hold", "first")
    fleet.saw("started", "first")
    due = fleet.moment() + 15
    sent = fleet.send("lead", "later", countdown=15)
    low.says(f"[{sent.id}] received")
    higher = fleet.sender(conf={"leader_priority": 1})
    with LeaderElection(higher, "worker", node="higher") as election:
        low.says("has a higher priority")
        fleet.send("hold", "second")
        fleet.saw("started", "second")
        fleet.open("first")
        low.says("1 waiting leader-only task(s) given back")
        must_have(fleet.moment() < due, "this machine is too slow to tell")
        wait_until(lambda: fleet.moment() > due + 1, what="its time")
        assert fleet.leader() is low
        fleet.open("second")
        assert election.wait_until_leader(timeout=30)
        assert [message["id"] for message in fleet.messages("celery.leader")] == [sent.id]
        assert fleet.records("ran", "later") == []
