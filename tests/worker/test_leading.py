"""Three workers, one leader: where leader-only tasks go and where they run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import chord

from celery_leader import TaskSkipped
from tests.support.fleet import LASTING, Fleet, Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def crew(redis_binary_or_skip: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three workers that all tests of this module share and leave as they are."""
    directory = tmp_path_factory.mktemp("crew")
    with RedisServer() as server, Fleet(directory, server.url, probe=True, conf=LASTING) as fleet:
        fleet.workers("w1", "w2", "w3")
        yield fleet


@pytest.fixture
def leader(crew: Fleet) -> Process:
    return crew.leader()


@pytest.fixture
def follower(crew: Fleet) -> Process:
    return crew.followers()[0]


def test_one_of_three_workers_leads_and_all_three_take_part(crew: Fleet) -> None:
    leader = crew.leader()
    for process in crew.processes:
        crew.takes_part(process)
    assert [line.kind for line in crew.history()] == ["elected"]
    assert crew.history()[0].node == leader.node
    crew.assert_beliefs_never_overlapped()


def test_only_the_leader_consumes_from_the_leader_queue(crew: Fleet, leader: Process) -> None:
    def consumers() -> dict[str, set[str]] | None:
        queues = crew.app.control.inspect(timeout=10, limit=3).active_queues() or {}
        found = {node: {queue["name"] for queue in of} for node, of in queues.items()}
        return found if len(found) == 3 else None

    found = wait_until(consumers, what="three answers to inspect active_queues")
    assert found is not None
    assert {node for node, names in found.items() if "celery.leader" in names} == {leader.node}
    assert all("celery" in names for names in found.values())


def test_inspect_stats_says_which_worker_leads_and_with_which_term(
    crew: Fleet, leader: Process
) -> None:
    def stats() -> dict[str, dict[str, Any]] | None:
        found = crew.app.control.inspect(timeout=10, limit=3).stats() or {}
        return {n: s["leader"] for n, s in found.items()} if len(found) == 3 else None

    found = wait_until(stats, what="three answers to inspect stats")
    assert found is not None
    term = crew.history()[-1].term
    leading = found.pop(leader.node)["worker"]
    assert (leading["leading"], leading["term"]) == (True, term)
    for of in found.values():
        assert (of["worker"]["leading"], of["worker"]["leader"]) == (False, leader.node)


@pytest.mark.parametrize("how", ["delay", "apply_async", "send_task"])
def test_a_leader_only_task_that_the_app_sends_goes_straight_to_the_leader(
    crew: Fleet, leader: Process, how: str
) -> None:
    label = f"straight {how}"
    task = crew.app.tasks["fleet.lead"]
    for _ in range(5):
        if how == "delay":
            result = task.delay(label)
        elif how == "apply_async":
            result = task.apply_async((label,))
        else:
            result = crew.app.send_task("fleet.lead", (label,))
        assert result.get(timeout=30)["node"] == leader.node
    assert {seen["hops"] for seen in crew.records("ran", label)} == {0}
    assert {seen["delivery"]["routing_key"] for seen in crew.records("ran", label)} == {
        "celery.leader"
    }


def test_one_sent_by_name_to_the_default_queue_runs_on_the_leader_under_its_own_id(
    crew: Fleet, leader: Process
) -> None:
    sent = [crew.send("lead", "by name") for _ in range(20)]
    seen = [result.get(timeout=30) for result in sent]
    assert {each["node"] for each in seen} == {leader.node}
    assert [each["id"] for each in seen] == [result.id for result in sent]
    assert len(crew.records("ran", "by name")) == 20


def test_a_follower_forwards_the_message_as_it_came_and_counts_the_hop(
    crew: Fleet, leader: Process, follower: Process
) -> None:
    eta = datetime.now(timezone.utc) + timedelta(milliseconds=300)
    result = crew.stranger.send_task(
        "fleet.lead",
        ("forwarded",),
        {"extra": 1},
        queue=follower.name,
        eta=eta,
        headers={"origin_of_mine": "here"},
        argsrepr="<args>",
        kwargsrepr="<kwargs>",
        compression="zlib",
        priority=3,
    )
    seen = result.get(timeout=30)
    assert seen["node"] == leader.node
    assert seen["id"] == result.id
    assert seen["hops"] == 1
    assert seen["headers"]["origin_of_mine"] == "here"
    assert (seen["argsrepr"], seen["kwargsrepr"]) == ("<args>", "<kwargs>")
    assert datetime.fromisoformat(seen["eta"]) == eta
    assert seen["at"] >= eta.timestamp() * 1e6
    assert seen["delivery"]["priority"] == 3


def test_a_follower_forwards_at_once_also_while_its_own_pool_is_busy(
    crew: Fleet, leader: Process, follower: Process
) -> None:
    busy = crew.send("hold_plain", "busy", queue=follower.name)
    crew.saw("started", "busy")
    seen = crew.send("lead", "past the busy", queue=follower.name).get(timeout=30)
    assert (seen["node"], seen["hops"]) == (leader.node, 1)
    assert crew.records("finished", "busy") == []
    crew.open("busy")
    assert busy.get(timeout=30)["node"] == follower.node


def test_a_chord_of_forwarded_tasks_completes(crew: Fleet, follower: Process) -> None:
    tasks = crew.app.tasks
    header = [tasks["fleet.lead"].s("chord").set(queue=follower.name) for _ in range(3)]
    result = chord(header, app=crew.app)(tasks["fleet.gather"].s("chord").set(queue=follower.name))
    assert result.get(timeout=30) == 3


def test_a_link_of_a_forwarded_task_is_called_once(crew: Fleet, follower: Process) -> None:
    tasks = crew.app.tasks
    tasks["fleet.lead"].apply_async(
        ("linked",), queue=follower.name, link=tasks["fleet.plain"].si("link")
    ).get(timeout=30)
    crew.saw("ran", "link")
    # A second call would have been sent before this one.
    tasks["fleet.plain"].apply_async(("after link",)).get(timeout=30)
    assert len(crew.records("ran", "link")) == 1


def test_ordinary_tasks_run_anywhere(crew: Fleet) -> None:
    for process in crew.processes:
        seen = crew.send("plain", f"on {process.name}", queue=process.name).get(timeout=30)
        assert seen["node"] == process.node


def test_a_body_on_a_follower_knows_that_it_does_not_lead(
    crew: Fleet, leader: Process, follower: Process
) -> None:
    there = crew.send("plain", "asked", queue=follower.name).get(timeout=30)
    assert (there["leads"], there["term"]) == (False, None)
    here = crew.send("plain", "asked", queue=leader.name).get(timeout=30)
    assert (here["leads"], here["term"]) == (True, crew.history()[-1].term)


def test_asking_who_leads_costs_no_redis_command(
    crew: Fleet, leader: Process, follower: Process
) -> None:
    term = crew.history()[-1].term
    times = 20_000
    on_leader = crew.send("lead_ask_often", times).get(timeout=30)
    on_follower = crew.send("ask_often", times, queue=follower.name).get(timeout=30)
    assert on_leader["answers"] == [[True, term]]
    assert on_follower["answers"] == [[False, None]]
    # Not nothing, for the others go on working meanwhile.
    assert on_leader["commands"] < times / 20
    assert on_follower["commands"] < times / 20


def test_what_only_the_leader_may_send_is_skipped_when_a_follower_sends_it(
    crew: Fleet, leader: Process, follower: Process
) -> None:
    skipped = crew.send("send", "sent_by_leader", "by follower", queue=follower.name)
    assert skipped.get(timeout=30)["state"] == "REVOKED"
    sent = crew.send("send", "sent_by_leader", "by leader", queue=leader.name)
    assert sent.get(timeout=30)["state"] != "REVOKED"
    crew.saw("ran", "by leader")
    assert crew.records("ran", "by follower") == []


def test_what_only_the_leader_may_send_is_sent_by_a_process_that_is_no_candidate(
    crew: Fleet, leader: Process
) -> None:
    result = crew.app.tasks["fleet.sent_by_leader"].delay("by web")
    assert result.get(timeout=30)["node"] == leader.node


def test_a_skippable_task_that_a_follower_receives_ends_as_revoked(
    crew: Fleet, leader: Process, follower: Process
) -> None:
    skipped = crew.send("skippable", "skipped", queue=follower.name)
    with pytest.raises(TaskSkipped, match=f"{follower.node} does not lead 'worker'"):
        skipped.get(timeout=30)
    assert skipped.state == "REVOKED"
    assert crew.send("skippable", "run", queue=leader.name).get(timeout=30)["node"] == leader.node
    assert crew.records("ran", "skipped") == []


@pytest.mark.parametrize("name", ["marked_above", "shared_marked_above", "shared_marked_below"])
def test_the_decorator_works_above_and_below_app_task_and_shared_task(
    crew: Fleet, leader: Process, follower: Process, name: str
) -> None:
    straight = crew.app.tasks[f"fleet.{name}"].delay("decorated").get(timeout=30)
    assert (straight["node"], straight["hops"]) == (leader.node, 0)
    forwarded = crew.send(name, "decorated", queue=follower.name).get(timeout=30)
    assert (forwarded["node"], forwarded["hops"]) == (leader.node, 1)


def test_calling_a_leader_only_task_just_runs_it(crew: Fleet) -> None:
    seen = crew.app.tasks["fleet.lead"]("called")
    assert (seen["node"], seen["leads"]) == (None, False)


def test_no_log_of_the_three_has_a_traceback(crew: Fleet) -> None:
    for process in crew.processes:
        assert "Traceback" not in process.log
    crew.assert_beliefs_never_overlapped()
