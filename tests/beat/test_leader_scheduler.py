"""Several beats, one schedule: who dispatches, and that each due time is sent once.

No worker runs here: what was dispatched waits in the queue, where it can be counted.
"""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from celery_leader import LeaderElection
from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet, Process
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

OFTEN = {"tick": {"task": "plain", "every": 0.2}}
HOUR = 3600.0

# Silence does not depose before a dispatch has been tried, also on a slow machine.
PATIENT = {"leader_operation_timeout": 0.4}


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    """A network between a beat and Redis that the test can break."""
    with Proxy(redis_server.port) as proxy:
        yield proxy


def states(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """The stored state of every entry."""
    stored = fleet.leases.hgetall(fleet.key("schedule", "beat"))
    return {name: json.loads(text) for name, text in stored.items()}


def assert_sent_once(fleet: Fleet, entry: str = "tick", queue: str = "celery") -> list[str]:
    """As many messages as ticks were claimed, each with a due time of its own, in order."""
    with fleet.redis.pipeline() as at_one_moment:
        at_one_moment.hget(fleet.key("schedule", "beat"), entry)
        at_one_moment.lrange(queue, 0, -1)
        text, raw = at_one_moment.execute()
    messages = [json.loads(each)["headers"] for each in reversed(raw)]
    ticks = [message["leader_tick"] for message in messages]
    # The first sequence number is that of the tick planned when the entry was first seen.
    assert len(ticks) == json.loads(text)["sequence"] - 1
    assert ticks == sorted(set(ticks))
    assert json.loads(text)["total_run_count"] == len(ticks)
    terms = [message["leader_term"] for message in messages]
    assert terms == sorted(terms)
    return ticks


def senders(fleet: Fleet, queue: str = "celery") -> list[int]:
    """The pids of the beats that sent what waits in ``queue``, in order."""
    return [int(m["origin"].removeprefix("gen").split("@")[0]) for m in fleet.messages(queue)]


def more(fleet: Fleet, count: int, queue: str = "celery") -> None:
    """Wait until ``count`` further messages were dispatched."""
    fleet.arrived(len(fleet.messages(queue)) + count, queue)


def now_of(fleet: Fleet) -> float:
    """What time it is in Redis."""
    seconds, micros = fleet.redis.time()
    return float(seconds + micros / 1e6)


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_of_three_beats_one_dispatches_and_a_stop_passes_the_lead_on_at_once(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(schedule=OFTEN, probe=True, conf=LASTING)
    beats = fleet.beats("b1", "b2", "b3")
    stopped = []
    for _ in range(2):
        leader = fleet.leader("beat")
        more(fleet, 4)
        assert leader.terminate() == 0
        assert "Traceback" not in leader.log
        stopped.append(leader)
    last = fleet.leader("beat")
    more(fleet, 4)
    ticks = assert_sent_once(fleet)
    in_order = list(dict.fromkeys(senders(fleet)))
    assert in_order == [process.pid for process in (*stopped, last)]
    assert {process.pid for process in beats} == set(in_order)
    kinds = [line.kind for line in fleet.history("beat")]
    assert kinds == ["elected", "resigned", "elected", "resigned", "elected"]
    # Nothing fell out in between: each is due one interval after the last was sent.
    assert len(ticks) >= 12
    fleet.assert_beliefs_never_overlapped()


def test_after_a_kill_the_next_beat_goes_on_and_sends_once_what_fell_due(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(schedule=OFTEN, probe=True)
    fleet.beats("b1", "b2")
    leader = fleet.leader("beat")
    more(fleet, 3)
    leader.kill()
    left, record = states(fleet)["tick"], fleet.record("beat")
    sent = len(fleet.messages())
    assert fleet.leader("beat", other_than=leader)
    more(fleet, 3)
    ticks = assert_sent_once(fleet)
    # Fifteen intervals or so passed without a leader: one message, for the first of them.
    assert ticks[sent] == left["due"]
    elected = fleet.history("beat")[-1]
    assert elected.at // 1000 >= int(record["expires_at"])
    assert moment(ticks[sent + 1]) * 1e6 > elected.at
    fleet.assert_beliefs_never_overlapped()


def test_every_tick_of_a_gap_is_sent_in_order_where_that_is_asked_for(
    new_fleet: NewFleet,
) -> None:
    every = {"tick": {"task": "plain", "every": 0.2, "options": {"leader_catch_up": "all"}}}
    fleet = new_fleet(schedule=every)
    first = fleet.beats("b1")[0]
    more(fleet, 2)
    first.kill()
    fleet.beats("b2")
    more(fleet, 20)
    ticks = [moment(tick) for tick in assert_sent_once(fleet)]
    gaps = [after - before for before, after in itertools.pairwise(ticks)]
    assert gaps == pytest.approx([0.2] * len(gaps), abs=0.05)


def test_beats_frozen_longer_than_their_lease_send_nothing_twice(new_fleet: NewFleet) -> None:
    fleet = new_fleet(
        schedule={"tick": {"task": "plain", "every": 0.05}},
        probe=True,
    )
    fleet.beats("b1", "b2")
    for _ in range(2):
        leader = fleet.leader("beat")
        more(fleet, 5)
        leader.freeze()
        other = fleet.leader("beat", other_than=leader)
        more(fleet, 3)
        leader.thaw()
        leader.says("deposed")
        assert other.alive
        assert leader.alive
    more(fleet, 5)
    assert_sent_once(fleet)
    fleet.assert_beliefs_never_overlapped()
    assert all("Traceback" not in process.log for process in fleet.processes)


def test_a_dispatch_that_arrives_after_the_lease_has_passed_on_is_refused(
    new_fleet: NewFleet, proxy: Proxy
) -> None:
    fleet = new_fleet(schedule=OFTEN, conf=PATIENT)
    far = fleet.beats("far", broker=proxy.url)[0]
    more(fleet, 2)
    # What the far beat sends from here on is on its way, and gets there in the end.
    proxy.stall()
    far.says("stays due and is tried again")
    near = fleet.beat("near")
    assert fleet.leader("beat", other_than=far) is near
    more(fleet, 2)
    proxy.restore()
    far.says("Redis answers again")
    more(fleet, 3)
    assert_sent_once(fleet)
    assert set(senders(fleet)[-3:]) == {near.pid}
    assert far.alive


def test_a_late_dispatch_is_refused_even_if_nobody_has_sent_that_tick_since(
    new_fleet: NewFleet, proxy: Proxy
) -> None:
    fleet = new_fleet(schedule=OFTEN, conf=PATIENT)
    far = fleet.beats("far", broker=proxy.url)[0]
    more(fleet, 2)
    # Holds the lease next and dispatches nothing, so only the lease is in the way.
    with LeaderElection(fleet.app, "beat", node="silent") as silent:
        proxy.stall()
        far.says("stays due and is tried again")
        assert silent.wait_until_leader(timeout=30)
        sent, left = fleet.messages(), states(fleet)
        proxy.restore()
        far.says("Redis answers again")
        fleet.outlives_its_lease("beat")
        assert fleet.record("beat")["holder"] == "silent"
        assert (fleet.messages(), states(fleet)) == (sent, left)
    assert fleet.leader("beat") is far
    more(fleet, 2)
    assert_sent_once(fleet)


def test_followers_never_write_the_schedule(new_fleet: NewFleet) -> None:
    fleet = new_fleet(schedule={"tick": {"task": "plain", "every": HOUR}})
    leader = fleet.beats("leader")[0]
    wait_until(lambda: states(fleet), what="the schedule to be anchored")
    key = fleet.key("schedule", "beat")
    before = fleet.redis.hgetall(key)
    # A follower with another schedule would forget the one entry and anchor its own.
    other = fleet.beat("other", schedule={"else": {"task": "plain", "every": 0.2}})
    fleet.takes_part(other, "beat")
    with fleet.redis.monitor() as monitor:
        seen: list[str] = []
        renewals = 0
        for command in monitor.listen():
            if key in command["command"]:
                seen.append(command["command"])
            # Each renewal of the leader is long enough for several ticks of the other.
            renewals += fleet.key("election", "beat") in command["command"] and (
                command["client_type"] != "lua"
            )
            if renewals >= 3:
                break
    assert seen == []
    assert fleet.redis.hgetall(key) == before
    assert fleet.messages() == []
    assert fleet.leader("beat") is leader


def test_an_entry_that_is_gone_is_kept_for_a_while_and_one_that_changed_does_not_fire_at_once(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet()
    before = {
        "kept": {"task": "plain", "every": HOUR},
        "gone": {"task": "plain", "every": HOUR},
        "changed": {"task": "plain", "every": HOUR},
    }
    first = fleet.beats("b1", schedule=before)[0]
    wait_until(lambda: len(states(fleet)) == 3, what="three entries")
    old = states(fleet)
    first.terminate()
    after = {
        "kept": {"task": "plain", "every": HOUR},
        "changed": {"task": "plain", "every": HOUR / 2},
        "new": {"task": "plain", "every": HOUR},
    }
    fleet.beats("b2", schedule=after)
    wait_until(lambda: "new" in states(fleet), what="the new entry")
    new = states(fleet)
    since = new["gone"].pop("unknown_since")
    assert new["gone"] == old["gone"]
    assert abs(since / 1000 - now_of(fleet)) < 60
    assert new["kept"] == old["kept"]
    assert moment(new["changed"]["due"]) < moment(old["changed"]["due"])
    now = datetime.now(timezone.utc).timestamp()
    assert moment(new["changed"]["due"]) > now + HOUR / 4
    assert moment(new["new"]["due"]) > now + HOUR / 4
    assert fleet.messages() == []


def test_what_fell_due_while_no_beat_ran_is_sent_once_at_the_start(new_fleet: NewFleet) -> None:
    fleet = new_fleet(schedule={"tick": {"task": "plain", "every": HOUR}})
    first = fleet.beats("b1")[0]
    wait_until(lambda: states(fleet), what="the schedule to be anchored")
    first.terminate()
    key = fleet.key("schedule", "beat")
    state = states(fleet)["tick"]
    for part in ("due", "last_run_at"):
        earlier = datetime.fromtimestamp(moment(state[part]) - 10 * HOUR, timezone.utc)
        state[part] = earlier.isoformat(timespec="microseconds")
    fleet.redis.hset(key, "tick", json.dumps(state))
    fleet.beats("b2", "b3")
    (message,) = fleet.arrived(1)
    assert message["leader_tick"] == state["due"]
    second = fleet.leader("beat")
    second.terminate()
    assert fleet.leader("beat", other_than=second)
    fleet.renewed(1, "beat")
    assert len(fleet.messages()) == 1
    assert moment(states(fleet)["tick"]["due"]) > datetime.now(timezone.utc).timestamp() + HOUR / 2


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_beat_whose_record_is_tampered_with_lives_and_sends_nothing_twice(
    new_fleet: NewFleet, how: str
) -> None:
    fleet = new_fleet(schedule=OFTEN)
    beat = fleet.beats("b1")[0]
    more(fleet, 3)
    term = int(fleet.record("beat")["term"])
    key = fleet.key("election", "beat")
    if how == "deleted":
        fleet.redis.delete(key)
    else:
        seconds, micros = fleet.redis.time()
        fleet.redis.hset(
            key,
            mapping={
                "holder": "another",
                "nonce": "another",
                "term": term + 1,
                "renewals": 0,
                "expires_at": (seconds + 2) * 1000 + micros // 1000,
                "lease": 2000,
            },
        )
        beat.says(f"deposed, term {term}")
    wait_until(lambda: int(fleet.record("beat").get("term", 0)) > term + 1, what="a higher term")
    assert fleet.leader("beat") is beat
    more(fleet, 3)
    assert_sent_once(fleet)
    assert beat.alive
    assert "Traceback" not in beat.log
    if how == "deleted":
        assert "deposed" not in beat.log


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_what_falls_due_while_redis_is_away_is_sent_once_when_it_is_back(
    new_fleet: NewFleet, proxy: Proxy, how: str
) -> None:
    fleet = new_fleet(schedule=OFTEN)
    beat = fleet.beats("b1", broker=proxy.url)[0]
    more(fleet, 2)
    term = int(fleet.record("beat")["term"])
    if how == "refused":
        proxy.refuse()
    else:
        proxy.stall()
    # Whether a tick fell due before leading was given up is a matter of moments.
    beat.says(f"deposed, term {term}")
    left, sent = states(fleet)["tick"], len(fleet.messages())
    wait_until(lambda: now_of(fleet) > moment(left["due"]), what="a tick to fall due")
    assert len(fleet.messages()) == sent
    proxy.restore()
    more(fleet, 3)
    ticks = assert_sent_once(fleet)
    # What waited on the way was claimed by then, or it is claimed now: once.
    assert left["due"] in ticks
    assert beat.alive
    assert beat.log.count("stays due and is tried again") <= 2
    assert "Traceback" not in beat.log


def test_a_result_backend_that_is_away_holds_no_tick_up_and_loses_none(
    new_fleet: NewFleet, proxy: Proxy
) -> None:
    fleet = new_fleet(schedule=OFTEN, backend=proxy.url)
    proxy.refuse()
    beat = fleet.beats("b1")[0]
    more(fleet, 10)
    assert_sent_once(fleet)
    assert "ERROR" not in beat.log
    assert "Traceback" not in beat.log


def test_a_short_outage_does_not_depose_and_loses_no_tick(
    new_fleet: NewFleet, proxy: Proxy
) -> None:
    fleet = new_fleet(schedule=OFTEN)
    beat = fleet.beats("b1", broker=proxy.url)[0]
    for _ in range(3):
        more(fleet, 2)
        proxy.reset()
    more(fleet, 2)
    assert_sent_once(fleet)
    assert len(fleet.history("beat")) == 1
    assert "Traceback" not in beat.log


def test_a_beat_finds_no_redis_at_its_start_says_so_once_and_leads_when_there_is_one(
    new_fleet: NewFleet, proxy: Proxy
) -> None:
    fleet = new_fleet(schedule=OFTEN)
    proxy.refuse()
    beat = fleet.beat("b1", broker=proxy.url)
    beat.says("trying on: the Redis in broker_url cannot be reached")
    assert fleet.record("beat") == {}
    proxy.restore()
    assert fleet.leader("beat") is beat
    more(fleet, 2)
    assert_sent_once(fleet)
    assert beat.log.count("trying on") == 1
    assert "Traceback" not in beat.log


def test_a_beat_with_a_wrong_password_names_the_setting_and_does_not_lead(
    redis_binary_or_skip: str, new_fleet: NewFleet
) -> None:
    with RedisServer(("--requirepass", "secret"), password="secret") as guarded:
        fleet = new_fleet(guarded.url, schedule=OFTEN)
        beat = fleet.beat("b1", broker=guarded.url.replace("secret", "guess"))
        beat.says("Redis refused the user name or password in broker_url")
        right = fleet.beats("b2")[0]
        more(fleet, 2)
        assert fleet.leader("beat") is right
        assert beat.alive
        assert "guess" not in beat.log
        assert "Traceback" not in beat.log
        assert beat.node not in fleet.redis.zrange(fleet.key("candidates", "beat"), 0, -1)


def test_a_beat_at_a_read_only_replica_names_the_setting_and_does_not_lead(
    redis_server: RedisServer, new_fleet: NewFleet
) -> None:
    with RedisServer(("--replicaof", "127.0.0.1", str(redis_server.port))) as replica:
        fleet = new_fleet(schedule=OFTEN)
        beat = fleet.beat("b1", broker=replica.url)
        beat.says("broker_url names a read-only replica")
        right = fleet.beats("b2")[0]
        more(fleet, 2)
        assert fleet.leader("beat") is right
        assert set(senders(fleet)) == {right.pid}
        assert beat.alive
        assert "Traceback" not in beat.log


def test_an_entry_that_can_never_be_sent_does_not_stop_the_others(new_fleet: NewFleet) -> None:
    schedule = {
        "broken": {"task": "plain", "every": 0.2, "unsendable": True},
        **OFTEN,
    }
    fleet = new_fleet(schedule=schedule)
    beat = fleet.beats("b1")[0]
    more(fleet, 5)
    beat.says("broken cannot be sent")
    assert_sent_once(fleet)
    assert beat.alive
    assert len(fleet.history("beat")) == 1


def test_a_following_beat_of_celerys_own_sends_plain_tasks_and_no_leader_only_ones(
    new_fleet: NewFleet,
) -> None:
    quiet = {"rare": {"task": "plain", "every": HOUR}}
    both = {
        "plain": {"task": "plain", "every": 0.2},
        "leader-only": {"task": "lead", "every": 0.2},
    }
    fleet = new_fleet()
    leader = fleet.beats("leader", schedule=quiet)[0]
    stock = fleet.beat("stock", "-S", "celery.beat:PersistentScheduler", schedule=both)
    fleet.takes_part(stock, "beat")
    fleet.arrived(4)
    assert set(senders(fleet)) == {stock.pid}
    assert fleet.messages("celery.leader") == []
    assert {message["task"] for message in fleet.messages()} == {"fleet.plain"}
    leader.terminate()
    assert fleet.leader("beat") is stock
    fleet.arrived(2, "celery.leader")
    assert {message["task"] for message in fleet.messages("celery.leader")} == {"fleet.lead"}
    assert {message["leader_only"] for message in fleet.messages("celery.leader")} == {"worker"}
    # Celery's own closes its file in the signal handler, also while a tick reads it: the exit
    # code then says so.
    stock.terminate()
    assert fleet.history("beat")[-1].kind == "resigned"


def test_two_beats_with_the_mixin_before_celerys_own_scheduler_dispatch_once(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(schedule=OFTEN, probe=True)
    mixed = ("-S", "tests.support.fleet_app.schedulers:MixedScheduler")
    first, second = fleet.beat("b1", *mixed), fleet.beat("b2", *mixed)
    for process in (first, second):
        fleet.takes_part(process, "beat")
    leader = fleet.leader("beat")
    follower = second if leader is first else first
    more(fleet, 4)
    assert set(senders(fleet)) == {leader.pid}
    sent = len(fleet.messages())
    leader.freeze()
    assert fleet.leader("beat", other_than=leader) is follower
    frozen_at = len(fleet.messages())
    more(fleet, 3)
    leader.thaw()
    leader.says("deposed")
    more(fleet, 3)
    assert follower.terminate() == 0
    assert fleet.leader("beat") is leader
    more(fleet, 3)
    by = senders(fleet)
    assert set(by[:sent]) == {leader.pid}
    # Whoever was thawed sent nothing until it was elected again.
    assert _runs(by) == [leader.pid, follower.pid, leader.pid]
    assert frozen_at >= sent
    ticks = [message["leader_tick"] for message in fleet.messages()]
    assert len(set(ticks)) == len(ticks)
    fleet.assert_beliefs_never_overlapped()
    assert all("Traceback" not in process.log for process in fleet.processes)


def _runs(values: list[int]) -> list[int]:
    return [v for i, v in enumerate(values) if i == 0 or values[i - 1] != v]


def test_a_beat_that_follows_is_idle_and_ends_at_once(new_fleet: NewFleet) -> None:
    fleet = new_fleet(schedule=OFTEN)
    fleet.beats("b1", "b2")
    leader = fleet.leader("beat")
    (follower,) = fleet.followers("beat")
    assert follower.terminate(signal.SIGINT) == 0
    assert "Traceback" not in follower.log
    assert leader.terminate(signal.SIGINT) == 0
    assert [line.kind for line in fleet.history("beat")] == ["elected", "resigned"]
    assert fleet.record("beat")["state"] == "released"


def test_the_banner_says_who_elects_where(new_fleet: NewFleet) -> None:
    fleet = new_fleet(schedule=OFTEN)
    beat: Process = fleet.beats("b1")[0]
    beat.says("leader election -> beat @ redis://")
    assert len(fleet.history("beat")) == 1


def test_the_beat_of_the_highest_priority_comes_first_and_none_is_pre_empted_unasked(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(schedule=OFTEN, conf={**LASTING, "leader_renew_interval": 0.5})
    first = fleet.beat("low", conf={"leader_priority": -1})
    assert fleet.leader("beat") is first
    fleet.beats("zero")
    high = fleet.beat("high", conf={"leader_priority": 5})
    fleet.takes_part(high, "beat")
    fleet.renewed(3, "beat")
    assert fleet.leader("beat") is first
    assert first.terminate() == 0
    assert fleet.leader("beat") is high


def test_a_beat_steps_down_for_one_of_higher_priority_where_that_is_asked_for(
    new_fleet: NewFleet,
) -> None:
    conf = {**LASTING, "leader_renew_interval": 0.5, "leader_preempt": True}
    fleet = new_fleet(schedule=OFTEN, conf=conf)
    low = fleet.beats("low")[0]
    more(fleet, 2)
    high = fleet.beat("high", conf={"leader_priority": 1})
    assert fleet.leader("beat", other_than=low) is high
    assert "has a higher priority" in low.log
    more(fleet, 2)
    assert_sent_once(fleet)
    assert high.terminate() == 0
    assert fleet.leader("beat") is low, "it is still a candidate"
