"""Dispatch is fenced whatever way a message takes to its queue.

Beats in this process, each over a Redis of its own kind. Fenced means: the message comes
with the claim of its tick, and neither comes once the record names another leader.
"""

from __future__ import annotations

import base64
import json
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import schedules, signature
from celery.beat import Scheduler
from kombu import Exchange, Queue

from celery_leader.beat import LeaderMixin
from tests.support.local_beat import KEY, NOON, Bench, LocalBeat
from tests.support.redis_server import RedisServer, free_port
from tests.support.tls import tls_redis
from tests.support.waiting import wait_until

RECORD = "celery-leader:celery:election:beat"
NewBench = Callable[[RedisServer], Bench]


@pytest.fixture
def new_bench(redis_binary_or_skip: str) -> Iterator[NewBench]:
    with ExitStack() as stack:

        def new(server: RedisServer) -> Bench:
            bench = Bench(server.url)
            stack.callback(bench.close)
            return bench

        yield new


@pytest.fixture
def servers(redis_binary_or_skip: str) -> Iterator[ExitStack]:
    """Servers that are entered here end with the test, after its beats."""
    with ExitStack() as stack:
        yield stack


def tick(**options: Any) -> dict[str, Any]:
    return {"tick": {"schedule": timedelta(seconds=10), "options": options}}


def send_one(bench: Bench, beat: LocalBeat) -> None:
    bench.clock.advance(10)
    beat.settle()


def assert_refused_for_another(bench: Bench, beat: LocalBeat, prefix: str = "") -> None:
    """Nothing is sent, and nothing is claimed, once another leads; whatever this beat believes."""
    left = snapshot(bench, prefix)
    bench.redis.hset(prefix + RECORD, "nonce", "another")
    assert beat.scheduler.leading_term() is not None
    bench.clock.advance(10)
    beat.scheduler.tick()
    assert snapshot(bench, prefix) == left


def snapshot(bench: Bench, prefix: str) -> dict[str, Any]:
    """Every queue and every state."""
    lists = [key for key in bench.redis.scan_iter("*") if bench.redis.type(key) == "list"]
    queues: dict[str, Any] = {key: bench.redis.lrange(key, 0, -1) for key in lists}
    return {**queues, "states": bench.redis.hgetall(prefix + KEY)}


# -- ways to a Redis ----------------------------------------------------------------------


def test_over_tcp(bench: Bench) -> None:
    beat = bench.beat(tick())
    send_one(bench, beat)
    assert bench.seconds() == [10]
    assert_refused_for_another(bench, beat)


def test_over_a_unix_socket(new_bench: NewBench, servers: ExitStack, tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    server = servers.enter_context(RedisServer(("--unixsocket", str(socket))))
    bench = new_bench(server)
    beat = bench.beat(tick(), broker=f"redis+socket://{socket}")
    send_one(bench, beat)
    assert bench.seconds() == [10]
    assert_refused_for_another(bench, beat)


def test_over_tls(
    new_bench: NewBench, servers: ExitStack, tmp_path: Path, redis_binary_or_skip: str
) -> None:
    server, url, trust = tls_redis(servers, tmp_path, redis_binary_or_skip)
    bench = new_bench(server)
    beat = bench.beat(
        tick(),
        broker=url,
        broker_use_ssl=trust,
    )
    send_one(bench, beat)
    assert bench.seconds() == [10]
    assert_refused_for_another(bench, beat)


def test_under_a_key_prefix(bench: Bench) -> None:
    prefix = "project:"
    beat = bench.beat(tick(), broker_transport_options={"global_keyprefix": prefix})
    send_one(bench, beat)
    assert bench.seconds("tick") == []
    assert [due.second for due in bench.sent(queue="project:celery")] == [10]
    assert_refused_for_another(bench, beat, prefix)
    keys = set(bench.redis.scan_iter("*"))
    assert {key for key in keys if not key.startswith(prefix)} == set()


def test_in_another_database_with_a_password(new_bench: NewBench, servers: ExitStack) -> None:
    server = RedisServer(("--requirepass", "secret"), password="secret")
    bench = new_bench(servers.enter_context(server))
    bench.redis.select(3)
    beat = bench.beat(tick(), broker=server.url.replace("/0", "/3"))
    send_one(bench, beat)
    assert bench.seconds() == [10]
    assert_refused_for_another(bench, beat)


def test_where_only_messages_are_written_elsewhere(
    bench: Bench, new_bench: NewBench, servers: ExitStack
) -> None:
    reading = new_bench(servers.enter_context(RedisServer()))
    beat = bench.beat(tick(), broker_read_url=reading.url, broker_write_url=bench.url)
    send_one(bench, beat)
    assert bench.seconds() == [10]
    assert reading.redis.keys("*") == []
    assert_refused_for_another(bench, beat)


def test_at_the_second_of_two_urls_when_the_first_is_dead(bench: Bench) -> None:
    dead = f"redis://127.0.0.1:{free_port()}/0"
    beat = bench.beat(tick(), broker=f"{dead};{bench.url}")
    for _ in range(3):
        send_one(bench, beat)
    assert bench.seconds() == [10, 20, 30]
    assert_refused_for_another(bench, beat)


def test_at_the_last_of_many_urls_when_the_others_are_dead(bench: Bench) -> None:
    dead = [f"redis://127.0.0.1:{free_port()}/0" for _ in range(3)]
    beat = bench.beat(tick(), broker=";".join([*dead, bench.url]))
    send_one(bench, beat)
    assert bench.seconds() == [10]
    assert_refused_for_another(bench, beat)


def test_at_the_second_of_two_urls_once_the_first_has_died(
    bench: Bench, new_bench: NewBench, servers: ExitStack
) -> None:
    server = servers.enter_context(RedisServer())
    first = new_bench(server)
    first.clock = bench.clock
    both = f"{server.url};{bench.url}"
    beat = first.beat(tick(), broker=both, leader_lease_duration=2.0)
    send_one(first, beat)
    assert first.seconds() == [10]
    server.kill()
    first.redis.close()
    bench.clock.advance(10)

    def went_on() -> bool:
        beat.scheduler.tick()
        return bool(bench.sent())

    wait_until(went_on, what="a message at the second Redis")
    beat.lead()
    beat.settle()
    assert bench.states()["tick"]["total_run_count"] == 1 + len(bench.sent())
    assert_refused_for_another(bench, beat)


# -- ways to a queue ----------------------------------------------------------------------


def test_a_priority_goes_to_the_list_of_its_step(bench: Bench) -> None:
    conf = {
        "broker_transport_options": {"priority_steps": [0, 3, 6, 9]},
        "task_queue_max_priority": 10,
    }
    high = {"schedule": timedelta(seconds=10), "options": {"priority": 9}}
    schedule = tick(priority=4) | {"high": high}
    beat = bench.beat(schedule, **conf)
    send_one(bench, beat)
    assert seconds_in(bench, "tick", "celery\x06\x163") == [10]
    assert seconds_in(bench, "high", "celery\x06\x169") == [10]
    assert_refused_for_another(bench, beat)


def seconds_in(bench: Bench, entry: str, queue: str) -> list[int]:
    return [due.second for due in bench.sent(entry, queue)]


def test_a_queue_that_expires_is_given_its_time_with_the_message(bench: Bench) -> None:
    beat = bench.beat(tick(queue="brief"), task_queues=[Queue("brief", expires=300)])
    send_one(bench, beat)
    assert seconds_in(bench, "tick", "brief") == [10]
    assert 0 < bench.redis.pttl("brief") <= 300_000
    assert_refused_for_another(bench, beat)


def declare(beat: LocalBeat, *queues: Queue) -> None:
    """What a worker that consumes them does."""
    for queue in queues:
        queue(beat.scheduler.producer.channel).declare()


def test_a_topic_puts_one_tick_into_all_its_queues_at_once(bench: Bench) -> None:
    news = Exchange("news", type="topic")
    queues = [
        Queue("sport", news, routing_key="news.sport.#"),
        Queue("everything", news, routing_key="news.#"),
        Queue("weather", news, routing_key="news.weather"),
    ]
    options = {"exchange": "news", "routing_key": "news.sport.tennis"}
    beat = bench.beat(tick(**options), task_queues=queues)
    declare(beat, *queues)
    send_one(bench, beat)
    assert [seconds_in(bench, "tick", q.name) for q in queues] == [[10], [10], []]
    ids = {bench.messages(name)[0]["headers"]["id"] for name in ("sport", "everything")}
    assert len(ids) == 1
    assert bench.states()["tick"]["total_run_count"] == 1
    assert_refused_for_another(bench, beat)


def test_a_fanout_is_published_once(bench: Bench) -> None:
    loud = Exchange("loud", type="fanout")
    listener = Queue("listener", loud)
    beat = bench.beat(tick(exchange="loud", routing_key="any"), task_queues=[listener])
    declare(beat, listener)
    with bench.redis.pubsub(ignore_subscribe_messages=True) as heard:
        heard.psubscribe("*loud*")
        send_one(bench, beat)
        assert_refused_for_another(bench, beat)
        texts = everything(bench, heard)
    assert [json.loads(text)["headers"]["leader_tick"] for text in texts] == [
        "2026-06-01T12:00:10.000000+00:00"
    ]


def everything(bench: Bench, heard: Any) -> list[str]:
    """What a subscriber has got until now."""
    bench.redis.publish("loud.celeryev.end", "end")
    found: list[str] = []

    def ended() -> bool:
        message = heard.get_message()
        if message is not None:
            found.append(message["data"])
        return found[-1:] == ["end"]

    wait_until(ended, what="the last message")
    return found[:-1]


def test_the_event_of_a_sent_task_goes_with_it(bench: Bench) -> None:
    beat = bench.beat(tick(), task_send_sent_event=True)
    with bench.redis.pubsub(ignore_subscribe_messages=True) as heard:
        heard.psubscribe("*celeryev*")
        send_one(bench, beat)
        assert_refused_for_another(bench, beat)
        (event,) = [json.loads(text) for text in everything(bench, heard)]
    (message,) = bench.messages()
    assert event["properties"]["delivery_info"]["routing_key"] == "task.sent"
    assert json.loads(base64.b64decode(event["body"]))["uuid"] == message["headers"]["id"]


def test_a_router_of_the_users_own_is_asked(bench: Bench) -> None:
    asked = []

    def route(name: str, args: Any, kwargs: Any, options: Any, **_: Any) -> Any:
        asked.append((name, options.get("headers", {}).get("leader_tick")))
        return {"queue": "routed"}

    beat = bench.beat(tick(), task_routes=[route])
    send_one(bench, beat)
    assert seconds_in(bench, "tick", "routed") == [10]
    assert asked == [("bench.tick", "2026-06-01T12:00:10.000000+00:00")]
    assert_refused_for_another(bench, beat)


def test_what_an_entry_says_of_its_message_stays_as_it_is(bench: Bench) -> None:
    callback = signature("bench.after", args=(1,), immutable=True)
    options = {
        "headers": {"mine": 1},
        "expires": 3600,
        "link": callback,
        "compression": "gzip",
        "serializer": "json",
        "queue": "own",
    }
    schedule = {
        "tick": {
            "schedule": timedelta(seconds=10),
            "args": (1, 2),
            "kwargs": {"c": 3},
            "options": options,
        }
    }
    beat = bench.beat(schedule)
    for _ in range(2):
        send_one(bench, beat)
    first, second = bench.messages("own")
    assert first["headers"]["id"] != second["headers"]["id"]
    for message in (first, second):
        headers = message["headers"]
        assert headers["mine"] == 1
        assert headers["celery_beat_task"] is True
        assert headers["leader_term"] == beat.scheduler.leading_term()
        assert headers["expires"] is not None
        assert headers["compression"] == "application/x-gzip"
        assert headers["argsrepr"] == "[1, 2]"
        assert headers["kwargsrepr"] == "{'c': 3}"
    # The entry's own options are as the user left them.
    kept = beat.scheduler.schedule["tick"].options
    assert set(kept) == set(options)
    assert "leader_tick" not in kept["headers"]


def test_a_tick_that_cannot_be_sent_moves_on_and_the_next_is_tried(bench: Bench) -> None:
    schedule = tick(queue="unknown") | {"other": {"schedule": timedelta(seconds=10)}}
    beat = bench.beat(schedule, task_create_missing_queues=False, task_queues=[Queue("celery")])
    send_one(bench, beat)
    send_one(bench, beat)
    assert bench.seconds("other") == [10, 20]
    assert bench.states()["tick"]["sequence"] == 3
    assert bench.redis.keys("unknown*") == []


def test_one_queue_that_refuses_its_message_does_not_hold_up_the_others(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bench.redis.set("taken", "by somebody's string")
    schedule = tick(queue="taken") | {"other": {"schedule": timedelta(seconds=10)}}
    beat = bench.beat(schedule)
    for number in (1, 2, 3):
        bench.clock.advance(10)
        until(beat, lambda number=number: len(bench.sent("other")) == number)
    assert bench.seconds("other") == [10, 20, 30]
    assert caplog.text.count("tick stays due") == 1
    assert caplog.text.count("Sending due task tick") == 1
    bench.redis.delete("taken")
    bench.clock.advance(40)
    until(beat, lambda: len(bench.sent("tick", "taken")) == 1)
    beat.settle()
    # What it missed is sent once, as after any gap, and the next is due ten seconds later.
    assert bench.sent("tick", "taken") == [NOON + timedelta(seconds=10)]
    assert "tick can be sent again" in caplog.text


def test_many_that_cannot_be_sent_do_not_hold_up_the_others_either(bench: Bench) -> None:
    bench.redis.set("taken", "by somebody's string")
    bad = {"schedule": timedelta(seconds=10), "options": {"queue": "taken"}}
    schedule = {f"bad{i}": bad for i in range(60)} | {"good": {"schedule": timedelta(seconds=10)}}
    beat = bench.beat(schedule)
    bench.clock.advance(10)
    rested = 0.0
    while not bench.sent("good"):
        rested += beat.scheduler.tick()
    assert rested == 0


def test_with_another_scheduler_one_that_cannot_be_sent_is_given_up_and_the_others_go_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.redis.set("taken", "by somebody's string")
    schedule = tick(queue="taken") | {"other": {"schedule": timedelta(seconds=10)}}
    beat = bench.started(bench.app(schedule), Mixed).lead()
    beat.scheduler.tick()
    for _ in range(2):
        bench.clock.advance(10.5)
        for _ in range(4):
            beat.scheduler.tick()
    assert len(bench.sent("other")) == 2
    assert caplog.text.count("tick cannot be sent as others are, this tick is given up") == 2
    bench.redis.delete("taken")
    bench.clock.advance(10.5)
    until(beat, lambda: len(bench.sent("tick", "taken")) == 1)


class Mixed(LeaderMixin, Scheduler):  # type: ignore[misc]
    """Celery's own scheduler without a file."""


@pytest.mark.parametrize("answer", [(False, math.inf), (True, math.inf), (False, math.nan)])
def test_a_schedule_that_answers_what_is_no_time_does_not_end_the_beat(
    bench: Bench, answer: tuple[bool, float]
) -> None:
    class Odd(schedules.schedule):
        def is_due(self, last_run_at: datetime) -> Any:
            return answer

    beat = bench.beat({"odd": {"schedule": Odd(10)}, "other": {"schedule": timedelta(seconds=10)}})
    for _ in range(2):
        send_one(bench, beat)
    assert bench.seconds("other") == [10, 20]


@pytest.mark.parametrize("options", [{"headers": 5}, {"headers": [("a", 1)]}, 5])
def test_options_that_make_no_sense_give_up_that_entry_alone(bench: Bench, options: Any) -> None:
    entry = {"schedule": timedelta(seconds=10), "options": options}
    beat = bench.beat({"odd": entry, "other": {"schedule": timedelta(seconds=10)}})
    for _ in range(2):
        send_one(bench, beat)
    assert bench.seconds("other") == [10, 20]
    assert bench.sent("odd") == []


def test_a_router_whose_own_service_is_away_does_not_hold_up_the_others(bench: Bench) -> None:
    def asks_somewhere(name: str, *_: Any, **__: Any) -> None:
        if name == "bench.tick":
            raise ConnectionRefusedError("the service of the router")

    beat = bench.beat(
        tick() | {"other": {"schedule": timedelta(seconds=10)}}, task_routes=[asks_somewhere]
    )
    for _ in range(2):
        send_one(bench, beat)
    assert bench.seconds("other") == [10, 20]


def test_a_redis_that_is_full_when_a_queue_is_declared_loses_no_tick(
    new_bench: NewBench, servers: ExitStack
) -> None:
    server = servers.enter_context(RedisServer())
    bench = new_bench(server)
    beat = bench.beat(tick(queue="new"))
    bench.redis.config_set("maxmemory", "1")
    bench.clock.advance(10)
    for _ in range(3):
        assert beat.scheduler.tick() > 0, "it waits before it tries again"
    assert bench.redis.keys("new*") == []
    bench.redis.config_set("maxmemory", "0")
    bench.clock.advance(1)
    until(beat, lambda: len(bench.sent("tick", "new")) == 1)
    assert bench.sent("tick", "new") == [NOON + timedelta(seconds=10)]


def test_a_broker_that_accepts_and_never_answers_is_given_up_and_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        broker = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        beat = bench.started(bench.app(tick(), broker=broker, leader_url=bench.url)).lead()
        beat.settle()
        bench.clock.advance(10)
        assert beat.scheduler.tick() > 0
    assert "tick stays due and is tried again" in caplog.text


def test_a_beat_that_is_stopped_in_the_middle_of_a_publish_ends_it_and_sends_nothing_twice(
    bench: Bench,
) -> None:
    beats: list[LocalBeat] = []
    kept: list[bool] = []

    def stopped_here(name: str, *_: Any, **__: Any) -> None:
        for beat in beats:
            connection = beat.scheduler.producer.connection
            beat.scheduler.close()  # as the signal handler does, on top of the publish
            kept.append(connection.connected)

    beats.append(bench.beat(tick(), task_routes=[stopped_here]))
    bench.clock.advance(10)
    beats[0].scheduler.tick()
    beats.pop().stop()
    bench.beat(tick())
    assert bench.seconds() == [10]
    assert kept == [True]


def until(beat: LocalBeat, condition: Callable[[], bool]) -> None:
    """Have ``beat`` do its turns, as the service does, until ``condition`` holds."""

    def turn() -> bool:
        beat.scheduler.tick()
        return condition()

    wait_until(turn, what="what beat was to do")
