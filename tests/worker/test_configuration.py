"""Settings and options that change who leads, where leases live and where tasks go."""

from __future__ import annotations

import json
import signal

import pytest

from celery_leader import LeaderElection
from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


def test_a_worker_with_all_its_chatter_leads_as_one_without_does(fleet: Fleet) -> None:
    loud = fleet.worker("loud", quiet=False)
    mute = fleet.worker("mute", "--without-gossip", "--without-mingle", "--without-heartbeat")
    for process in (loud, mute):
        process.says(" ready.")
    leader = fleet.leader()
    for process in (loud, mute):
        seen = fleet.send("lead", queue=process.name).get(timeout=30)
        assert seen["node"] == leader.node


@pytest.mark.parametrize("how", ["--no-candidate", "leader_candidate=False"])
def test_a_worker_that_is_no_candidate_never_leads_and_never_consumes_the_leader_queue(
    fleet: Fleet, how: str
) -> None:
    if how == "--no-candidate":
        outsider = fleet.worker("outsider", "--no-candidate")
    else:
        outsider = fleet.worker("outsider", conf={"leader_candidate": False})
    outsider.says(" ready.")
    routed = fleet.app.tasks["fleet.lead"].delay("routed")
    received = fleet.send("lead", "received")
    seen = fleet.send("plain").get(timeout=30)
    assert (seen["node"], seen["leads"]) == (outsider.node, False)
    wait_until(lambda: len(fleet.messages("celery.leader")) == 2, what="both in the leader queue")
    assert fleet.record() == {}
    assert not fleet.redis.exists(fleet.key("candidates", "worker"))

    candidate = fleet.worker("candidate", "-P", "solo").says(" ready.")
    for result in (routed, received):
        assert result.get(timeout=30)["node"] == candidate.node
    candidate.terminate()
    assert fleet.record()["state"] == "released"
    left = fleet.app.tasks["fleet.lead"].delay("left")
    fleet.send("plain").get(timeout=30)
    assert [message["id"] for message in fleet.messages("celery.leader")] == [left.id]
    assert outsider.node not in {line.node for line in fleet.history()}


def test_every_key_carries_the_key_prefix_of_the_broker(
    new_fleet: NewFleet, redis_url: str
) -> None:
    prefix = {"global_keyprefix": "mine:"}
    conf = {
        **LASTING,
        "broker_transport_options": prefix,
        "result_backend_transport_options": prefix,
    }
    schedule = {"tick": {"task": "lead", "every": 0.3, "args": ["tick"]}}
    # The records of the tasks are our own; they go to another database.
    fleet = new_fleet(conf=conf, schedule=schedule, record=redis_url.replace("/0", "/1"))
    fleet.prefix = "mine:"
    fleet.workers("w1", "w2")
    fleet.beats("b1", "b2")
    (follower,) = [p for p in fleet.followers() if p.name in ("w1", "w2")]
    seen = fleet.send("lead", "forwarded", queue=follower.name).get(timeout=30)
    assert seen["hops"] == 1
    ticks = [each["headers"]["leader_tick"] for each in fleet.saw("ran", "tick", count=3)]
    assert len(set(ticks)) == len(ticks)
    keys = set(fleet.redis.keys("*"))
    assert {f"mine:celery-leader:celery:election:{name}" for name in ("worker", "beat")} <= keys
    assert {key for key in keys if not key.startswith("mine:")} == set()


def test_leader_tasks_need_no_missing_queue_to_be_created(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf={"task_create_missing_queues": False})
    w1 = fleet.worker("w1", "-Q", "celery").says(" ready.")
    w2 = fleet.worker("w2", "-Q", "celery").says(" ready.")
    leader = fleet.leader()
    assert leader in (w1, w2)
    straight = fleet.app.tasks["fleet.lead"].delay("straight")
    assert straight.get(timeout=30)["node"] == leader.node
    sent = [fleet.send("lead", "by name") for _ in range(10)]
    assert {result.get(timeout=30)["node"] for result in sent} == {leader.node}


@pytest.mark.parametrize("when", ["conf", "conf_after_install"])
def test_routes_of_the_users_own_come_first_and_do_not_undo_the_others(
    new_fleet: NewFleet, when: str
) -> None:
    routes = {"task_routes": {"fleet.marked_above": {"queue": "mine"}}}
    fleet = new_fleet()
    sender = fleet.sender(**{when: routes})
    own = sender.tasks["fleet.marked_above"].delay("own")
    ours = sender.tasks["fleet.lead"].delay("ours")
    named = sender.tasks["fleet.lead"].apply_async(("named",), queue="mine")
    assert {message["id"] for message in fleet.messages("mine")} == {own.id, named.id}
    assert [message["id"] for message in fleet.messages("celery.leader")] == [ours.id]
    leader = fleet.worker("w1", "-Q", "celery,mine").says(" ready.")
    for result in (own, ours, named):
        assert result.get(timeout=30)["node"] == leader.node


def test_routes_set_after_a_first_send_do_not_undo_the_leaders_route(fleet: Fleet) -> None:
    app = fleet.app
    first = app.tasks["fleet.lead"].delay()
    app.conf.task_routes = {"fleet.plain": {"queue": "mine"}}
    app.amqp.flush_routes()
    vars(app.amqp).pop("router", None)
    second = app.tasks["fleet.lead"].delay()
    assert [message["id"] for message in fleet.messages("celery.leader")] == [first.id, second.id]


def test_naming_the_leader_queue_on_the_command_line_makes_no_follower_consume_it(
    fleet: Fleet,
) -> None:
    for name in ("w1", "w2"):
        fleet.worker(name, "-Q", f"celery,celery.leader,{name}").says(" ready.")
    leader = fleet.leader()
    sent = [fleet.app.tasks["fleet.lead"].delay("named") for _ in range(10)]
    for result in sent:
        seen = result.get(timeout=30)
        assert (seen["node"], seen["hops"]) == (leader.node, 0)


def test_a_follower_that_is_told_to_consume_the_leader_queue_gets_nothing_before_it_leads(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING)
    fleet.workers("w1", "w2")
    leader = fleet.leader()
    (follower,) = fleet.followers()
    fleet.takes_part(follower)
    fleet.app.tasks["fleet.hold"].delay("gate")
    fleet.saw("started", "gate")
    # More than the leader fetches while it is busy: who else consumes gets some.
    sent = [fleet.app.tasks["fleet.lead"].delay("waiting") for _ in range(12)]
    fleet.app.control.add_consumer("celery.leader", destination=[follower.node])
    follower.says("Started consuming from celery.leader")
    fleet.open("gate")
    seen = [result.get(timeout=30) for result in sent]
    assert {each["node"] for each in seen} == {leader.node}
    assert {each["hops"] for each in seen} == {0}

    leader.terminate()
    assert fleet.leader() is follower
    assert fleet.app.tasks["fleet.lead"].delay().get(timeout=30)["node"] == follower.node


def test_the_leader_queue_can_be_named(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf={"leader_queue": "bridge", "task_default_queue": "deck"})
    leader = fleet.worker("w1", "-Q", "deck").says(" ready.")
    leader.says("consuming from bridge")
    seen = fleet.app.tasks["fleet.lead"].delay().get(timeout=30)
    assert seen["delivery"]["routing_key"] == "bridge"
    assert fleet.record()["holder"] == leader.node
    assert fleet.redis.keys("celery-leader:deck:*")
    assert fleet.redis.keys("celery-leader:celery:*") == []


def test_an_election_of_another_name_has_its_own_leader_and_queue(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    elsewhere = LeaderElection(fleet.app, "reports", node="elsewhere")
    with elsewhere:
        assert elsewhere.wait_until_leader(timeout=30)
        first = fleet.worker("w1").says(" ready.")
        assert fleet.leader() is first
        second = fleet.worker("w2").says(" ready.")
        for process in (first, second):
            fleet.takes_part(process, "reports")
        report = fleet.app.tasks["fleet.report"].delay("mine")
        assert fleet.app.tasks["fleet.lead"].delay().get(timeout=30)["node"] == first.node
        assert [message["id"] for message in fleet.messages("celery.leader.reports")] == [report.id]
        assert elsewhere.resign(successor=second.node)
        seen = report.get(timeout=30)
        assert (seen["node"], seen["leads"]) == (second.node, True)
        assert fleet.leader("reports") is second
        assert fleet.leader("worker") is first
        forwarded = fleet.send("report", "forwarded", queue="w1").get(timeout=30)
        assert (forwarded["node"], forwarded["hops"]) == (second.node, 1)


def test_workers_take_part_in_the_elections_they_are_given_and_load_spreads(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet()
    first = fleet.worker("w1", "--elections", "worker").says(" ready.")
    second = fleet.worker("w2", "--elections", "reports").says(" ready.")
    assert fleet.leader("worker") is first
    assert fleet.leader("reports") is second
    # Each is given the other's, and hands it on.
    assert fleet.send("report", "a", queue="w1").get(timeout=30)["node"] == second.node
    assert fleet.send("lead", "b", queue="w2").get(timeout=30)["node"] == first.node
    assert fleet.leases.zrange(fleet.key("candidates", "reports"), 0, -1) == [second.node]


def test_the_worker_of_the_highest_priority_comes_first(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf={"leader_renew_interval": 0.5})
    leader = fleet.workers("w1", pool="solo")[0]
    fleet.workers("w2", pool="solo")
    high = fleet.worker("w3", "--pool", "solo", "--leader-priority", "3").says(" ready.")
    fleet.takes_part(high)
    assert fleet.leader() is leader
    assert leader.terminate() == 0
    assert fleet.leader() is high


def test_elections_that_no_task_names_come_from_the_settings(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf={"leader_elections": ["worker", "migrations"]})
    worker = fleet.worker("w1").says(" ready.")
    assert fleet.leader("migrations") is worker
    worker.says("consuming from celery.leader.migrations")


def test_leases_can_live_in_another_redis_than_the_broker(
    new_fleet: NewFleet, own_redis: RedisServer
) -> None:
    schedule = {"tick": {"task": "lead", "every": 0.3, "args": ["tick"]}}
    fleet = new_fleet(conf={"leader_url": own_redis.url}, schedule=schedule, probe=True)
    fleet.look_for_leases_in(own_redis.url)
    workers = fleet.workers("w1", "w2", pool="solo")
    beats = fleet.beats("b1", "b2")
    leader = fleet.leader()
    ran = fleet.saw("ran", "tick", count=3)
    assert {seen["node"] for seen in ran} == {leader.node}
    assert leader.terminate() == 0
    assert fleet.leader("beat").terminate() == 0
    assert fleet.leader() in workers
    assert fleet.leader("beat") in beats
    fleet.saw("ran", "tick", count=len(fleet.records("ran", "tick")) + 3)
    ticks = [seen["headers"]["leader_tick"] for seen in fleet.records("ran", "tick")]
    assert len(set(ticks)) == len(ticks)
    assert fleet.redis.keys("celery-leader:*:election:*") == []
    assert fleet.redis.keys("celery-leader:*:schedule:*") == []
    assert len(fleet.history("beat")) == 3
    fleet.assert_beliefs_never_overlapped()


def test_a_task_of_an_app_without_install_fails_and_says_what_to_call(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(install=False)
    fleet.worker("w1").says(" ready.")
    result = fleet.send("lead")
    with pytest.raises(Exception, match=r"celery_leader\.install\(app\)"):
        result.get(timeout=30)
    assert fleet.records("ran") == []


def test_workers_in_two_namespaces_of_one_redis_elect_apart(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    here = fleet.worker("w1", conf={"leader_namespace": "here"}).says("consuming from celery")
    there = fleet.worker("w2", conf={"leader_namespace": "there"}).says("consuming from celery")
    for process, namespace in ((here, "here"), (there, "there")):
        record = fleet.redis.hgetall(f"celery-leader:{namespace}:election:worker")
        assert record["holder"] == process.node


ALONE = """
import json, os, threading
from celery.worker import WorkController
from tests.support.fleet_app import app

app.set_default()  # in every thread
worker = WorkController(app=app, pool_cls="solo", hostname="alone@fleet")
threading.Thread(target=worker.start, daemon=True).start()
sent = [app.tasks[name].delay("alone") for name in ("fleet.lead", "fleet.report")]
seen = [result.get(timeout=30, disable_sync_subtasks=False) for result in sent]
print(json.dumps(seen), flush=True)
os._exit(0)  # a worker in a thread takes its time to stop
"""


def test_over_a_broker_in_memory_this_process_always_leads(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    ran = fleet.python(ALONE, broker="memory://", backend="cache+memory://")
    assert ran.returncode == 0, ran.stderr
    for seen in json.loads(ran.stdout):
        assert (seen["leads"], seen["term"]) == (True, 1)
    assert fleet.redis.keys("*celery-leader*") == []


def test_eager_tasks_just_run_and_lead(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    app = fleet.sender(conf={"task_always_eager": True})
    app.set_current()
    seen = app.tasks["fleet.sent_by_leader"].delay("eager").get()
    assert (seen["leads"], seen["term"]) == (True, 1)


def test_a_clean_stop_leaves_no_key_behind_but_the_record_and_its_history(fleet: Fleet) -> None:
    both = fleet.workers("w1", "w2")
    for _ in range(3):
        fleet.send("lead").get(timeout=30)
    for process in both:
        process.tell(signal.SIGTERM)
    assert [process.wait() for process in both] == [0, 0]
    left = {key.split(":")[2] for key in fleet.redis.keys("celery-leader:*")}
    assert left <= {"election", "history", "candidates"}
    assert fleet.record()["state"] == "released"
    # A list that nobody reads would be found here.
    assert [key for key in fleet.redis.keys("*") if fleet.redis.type(key) == "list"] == [
        "fleet:records"
    ]
