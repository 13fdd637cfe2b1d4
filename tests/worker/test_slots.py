"""Of a task with ``max_running`` so many bodies run at once in the whole fleet, and no more."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery import group
from celery.exceptions import TimeLimitExceeded
from redis.exceptions import ConnectionError as RedisConnectionError

from celery_leader import LeaderElection, LeaderError, leader_only
from celery_leader.store.slots import Answer, Limit
from celery_leader.tasks.skipped import TaskSkipped
from celery_leader.worker.slots import Slots
from celery_leader.worker.state import WorkerState
from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.worker.test_fetching import POOLS, leading_worker


def parked(fleet: Fleet) -> int:
    return int(fleet.redis.zcard(fleet.key("parked", "worker")))


def is_idle(fleet: Fleet) -> bool:
    """Whether nothing waits, runs or has a slot."""
    kinds = ("in-flight", "slots", "parked")
    return not any(fleet.redis.exists(fleet.key(kind, "worker")) for kind in kinds)


def intervals(fleet: Fleet, label: str, node: str = "") -> list[tuple[int, int]]:
    """When each body began and ended; ``node``: those on this worker only."""
    began, ended = (
        {each["id"]: each["at"] for each in fleet.records(event, label) if node in each["node"]}
        for event in ("started", "finished")
    )
    return sorted((at, ended[task_id]) for task_id, at in began.items())


def assert_none_overlap(ran: list[tuple[int, int]]) -> None:
    """Each body ended before the next one began."""
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(ran)), ran


@pytest.mark.parametrize("pool", POOLS)
def test_one_at_a_time_in_order_and_others_meanwhile(new_fleet: NewFleet, pool: str) -> None:
    fleet = new_fleet(conf=LASTING, limited=True)
    leading_worker(fleet, "-P", pool, "-c", "4")
    sent = [fleet.app.tasks["fleet.one"].delay("a") for _ in range(4)]
    fleet.saw("started", "a")
    if pool != "solo":  # which runs one body at a time anyway
        wait_until(lambda: parked(fleet) == 3, what="three to wait")
        assert fleet.app.tasks["fleet.lead"].delay("other").get(timeout=30)
    for count in range(1, 5):
        assert len(fleet.saw("started", "a", count=count)) == count
        fleet.open("a")
    for result in sent:
        result.get(timeout=30)
    assert_none_overlap(intervals(fleet, "a"))
    assert [each["id"] for each in fleet.records("started", "a")] == [each.id for each in sent]
    wait_until(lambda: is_idle(fleet), what="all slots to be free")


def test_two_at_a_time(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING, limited=True)
    leading_worker(fleet, "-c", "4")
    sent = [fleet.app.tasks["fleet.two"].delay("a") for _ in range(6)]
    fleet.saw("started", "a", count=2)
    wait_until(lambda: parked(fleet) == 4, what="four to wait")
    for _ in sent:
        fleet.open("a")
    for result in sent:
        result.get(timeout=30)
    moments = [(at, 1) for at, _ in intervals(fleet, "a")]
    moments += [(at, -1) for _, at in intervals(fleet, "a")]
    running = most = 0
    for _, step in sorted(moments):
        running += step
        most = max(most, running)
    assert most == 2
    wait_until(lambda: is_idle(fleet), what="all slots to be free")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_while_one_runs_another_is_skipped_where_that_is_asked(
    new_fleet: NewFleet, pool: str
) -> None:
    fleet = new_fleet(conf=LASTING, limited=True)
    leader = leading_worker(fleet, "-P", pool, "-c", "4")
    first = fleet.app.tasks["fleet.one_or_none"].delay("a")
    fleet.saw("started", "a")
    second = fleet.app.tasks["fleet.one_or_none"].delay("a")
    with pytest.raises(TaskSkipped, match="max_running=1 and so many run"):
        second.get(timeout=30)
    assert second.state == "REVOKED"
    leader.says(f"fleet.one_or_none[{second.id}] skipped, max_running=1")
    fleet.open("a")
    first.get(timeout=30)
    wait_until(lambda: is_idle(fleet), what="all slots to be free")
    third = fleet.app.tasks["fleet.one_or_none"].delay("a")
    fleet.open("a")
    third.get(timeout=30)
    assert len(fleet.records("started", "a")) == 2


@pytest.mark.parametrize("task", ["one", "one_late"])
def test_a_killed_leader_blocks_nobody(new_fleet: NewFleet, task: str) -> None:
    """With early acknowledgement its body is gone; with late, it comes first."""
    fleet = new_fleet(limited=True)
    leader = leading_worker(fleet, "-c", "2")
    follower = fleet.worker("w2", "-c", "2").says(" ready.")
    fleet.takes_part(follower)
    sent = [fleet.app.tasks[f"fleet.{task}"].delay("a") for _ in range(3)]
    fleet.saw("started", "a")
    wait_until(lambda: parked(fleet) == 2, what="two to wait")
    leader.kill()
    for _ in range(3):
        fleet.open("a")
    for result in sent[1 if task == "one" else 0 :]:
        assert result.get(timeout=30)["node"] == follower.node
    assert_none_overlap(intervals(fleet, "a", follower.node))
    wait_until(lambda: is_idle(fleet), what="all slots to be free")


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_deposed_leader_that_is_heard_of_keeps_its_slot(new_fleet: NewFleet, pool: str) -> None:
    fleet = new_fleet(limited=True)
    leader = leading_worker(fleet, "-P", pool, "-c", "2")
    first = fleet.app.tasks["fleet.one"].delay("a")
    fleet.saw("started", "a")
    leader.freeze()
    with LeaderElection(fleet.app, "worker", node="other@here") as election:
        assert election.wait_until_leader(timeout=30)
        leader.thaw()
        leader.says("deposed, term")
        follower = fleet.worker("w2", "-P", pool, "-c", "2").says(" ready.")
        fleet.takes_part(follower)
        fleet.run("leader", "hold", leader.node, "--election", "worker")
    assert fleet.leader() is follower
    second = fleet.app.tasks["fleet.one"].delay("a")
    wait_until(lambda: parked(fleet) == 1, what="the second to wait")
    fleet.outlives_its_lease()
    assert len(fleet.records("started", "a")) == 1
    fleet.open("a")
    assert first.get(timeout=30)["node"] == leader.node
    fleet.open("a")
    assert second.get(timeout=30)["node"] == follower.node
    wait_until(lambda: is_idle(fleet), what="all slots to be free")


def test_a_message_that_waits_for_its_eta_has_no_slot(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING, limited=True)
    leader = leading_worker(fleet, "-c", "2")
    eta = datetime.now(timezone.utc) + timedelta(seconds=4)
    later = fleet.app.tasks["fleet.one"].apply_async(("later",), eta=eta)
    leader.says(f"[{later.id}] received")
    now = fleet.app.tasks["fleet.one"].delay("now")
    fleet.saw("started", "now")
    wait_until(lambda: parked(fleet) == 1, what="the ETA to come")
    fleet.open("later")
    fleet.open("now")
    now.get(timeout=30)
    later.get(timeout=30)
    wait_until(lambda: is_idle(fleet), what="all slots to be free")


def test_ways_to_end_that_nobody_calls_back_for(new_fleet: NewFleet) -> None:
    """A time limit, a terminated and a revoked task, one that expired: the next one goes on."""
    fleet = new_fleet(conf=LASTING, limited=True)
    leading_worker(fleet, "-c", "2")
    one = fleet.app.tasks["fleet.one"]
    limited = one.apply_async(("a",), time_limit=2)
    fleet.saw("started", "a")
    terminated = one.delay("b")
    revoked = one.delay("c")
    expired = one.apply_async(("d",), expires=1)
    last = one.delay("last")
    with pytest.raises(TimeLimitExceeded):
        limited.get(timeout=30)
    fleet.app.control.revoke(revoked.id)
    fleet.saw("started", "b")
    fleet.app.control.revoke(terminated.id, terminate=True)
    fleet.saw("started", "last")
    fleet.open("last")
    last.get(timeout=30)
    for result in (terminated, revoked, expired):
        assert result.state == "REVOKED"
    wait_until(lambda: is_idle(fleet), what="all slots to be free")


def test_a_killed_pool_process_frees_its_slot(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING, limited=True)
    leader = leading_worker(fleet, "-c", "2")
    first = fleet.app.tasks["fleet.one_late"].delay("a")
    second = fleet.app.tasks["fleet.one_late"].delay("b")
    (began,) = fleet.saw("started", "a")
    leader.kill_child(began["pid"])
    fleet.saw("started", "b")
    fleet.open("b")
    second.get(timeout=30)
    assert first.get(timeout=30, propagate=False)
    wait_until(lambda: is_idle(fleet), what="all slots to be free")


def test_a_message_that_went_astray_waits_its_turn_in_the_leader_queue(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING, limited=True)
    leading_worker(fleet, "-c", "4")
    sent = [fleet.send("one", "a") for _ in range(3)]
    fleet.saw("started", "a")
    wait_until(lambda: parked(fleet) == 2, what="two to wait")
    for _ in sent:
        fleet.open("a")
    for result in sent:
        result.get(timeout=30)
    wait_until(lambda: is_idle(fleet), what="all slots to be free")


def test_the_items_of_a_map_are_one_body_with_one_slot(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING, limited=True)
    leading_worker(fleet, "-c", "4")
    mapped = group(fleet.app.tasks["fleet.one"].map(["a"]), fleet.app.tasks["fleet.one"].s("a"))
    result = mapped.apply_async()
    fleet.saw("started", "a")
    wait_until(lambda: parked(fleet) == 1, what="the other to wait")
    for _ in range(2):
        fleet.open("a")
    result.get(timeout=30)
    wait_until(lambda: is_idle(fleet), what="all slots to be free")


def test_a_step_down_gives_back_what_waits_for_a_slot(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING, limited=True)
    leader = leading_worker(fleet, "-c", "2")
    follower = fleet.worker("w2", "-c", "2").says(" ready.")
    fleet.takes_part(follower)
    sent = [fleet.app.tasks["fleet.one"].delay("a") for _ in range(3)]
    fleet.saw("started", "a")
    wait_until(lambda: parked(fleet) == 2, what="two to wait")
    fleet.app.control.broadcast("leader_resign", destination=[leader.node])
    for _ in sent:
        fleet.open("a")
    seen = [result.get(timeout=30)["node"] for result in sent]
    assert seen[0] == leader.node
    assert_none_overlap(intervals(fleet, "a"))
    wait_until(lambda: is_idle(fleet), what="all slots to be free")


@pytest.mark.parametrize(
    "options", [{"max_running": 0}, {"max_running": True}, {"on_busy": "skip"}, {"on_busy": "no"}]
)
def test_what_the_options_cannot_be_is_said(options: dict[str, Any]) -> None:
    with pytest.raises(LeaderError, match=r"leader_only\((max_running|on_busy)="):
        leader_only(**options)


def test_a_worker_that_cannot_keep_a_limit_says_so_and_does_not_start(
    new_fleet: NewFleet, own_redis: RedisServer
) -> None:
    fleet = new_fleet(limited=True)
    worker = fleet.worker("w1", conf={"leader_url": own_redis.url})
    assert worker.wait() == 1
    worker.says("leader_only(max_running=...) of fleet.one, fleet.one_late, fleet.one_or_none")
    assert "Traceback" not in worker.log


class Bookkeeping:
    """``Slots`` of a worker whose Redis, timer and pool are this test."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.running: set[str] = set()
        self.answers = True
        self.later: list[Callable[[], None]] = []
        state: Any = WorkerState()
        timer = SimpleNamespace(call_after=lambda _, act: self.later.append(act))
        state.consumer = SimpleNamespace(hub=None, timer=timer)
        self.slots = Slots(state, lambda *_: Answer.TAKEN, self._end, lambda: self.running)

    def _end(self, tag: str, limit: Limit) -> None:
        if not self.answers:
            raise RedisConnectionError("away")
        self.told.append(tag)

    def look(self) -> None:
        """Let a second pass."""
        due, self.later = self.later, []
        for act in due:
            act()


LIMIT = Limit("proj.one", 1, parks=True)


def test_a_body_that_ends_without_a_word_frees_its_slot_at_the_second_look() -> None:
    kept = Bookkeeping()
    kept.running = {"1"}
    kept.slots.take("1", LIMIT, "request")
    kept.look()
    kept.running = set()
    kept.look()
    assert kept.told == []
    kept.look()
    assert kept.told == ["1"]
    assert kept.later == [], "nothing is left to watch"


def test_an_end_that_an_outage_swallows_is_told_again() -> None:
    kept = Bookkeeping()
    kept.answers = False
    kept.slots.take("1", LIMIT, "request")
    kept.slots.end("1", LIMIT)
    assert kept.told == []
    kept.answers = True
    kept.look()
    assert kept.told == ["1"]


@pytest.mark.parametrize("goes_back", [True, False])
def test_the_end_of_an_earlier_body_does_not_free_the_slot_of_the_same_message(
    goes_back: bool,
) -> None:
    kept = Bookkeeping()
    kept.running, kept.answers = {"1"}, False
    kept.slots.take("1", LIMIT, "earlier")
    kept.slots.end("1", LIMIT)
    if goes_back:
        kept.slots.gone("1")
    kept.slots.take("1", LIMIT, "later")
    kept.answers = True
    for _ in range(3):
        kept.look()
    assert kept.told == []
    assert not kept.slots.holds("1", "earlier")
    assert kept.slots.holds("1", "later")


def test_at_its_end_a_worker_frees_all_that_it_has() -> None:
    kept = Bookkeeping()
    kept.slots.take("1", LIMIT, "request")
    kept.slots.finish()
    assert kept.told == ["1"]
