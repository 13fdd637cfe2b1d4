"""The fetcher of one leader queue and its channel: step by step, in this process, on a real Redis.

Celery's part is played by a kombu consumer that notes what it receives, and by a timer that the
test turns.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from queue import Empty
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue
from kombu.transport.virtual import Message

from celery_leader import install
from celery_leader.compat.celery_worker import SoloPool
from celery_leader.compat.kombu import credit_left, leave_out, share_credit
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.store.in_flight import FETCH, InFlight
from celery_leader.worker.fetching import Fetcher
from celery_leader.worker.giving_back import give_back_fetched
from celery_leader.worker.state import WorkerState
from tests.support.fixtures import MakeApp
from tests.support.waiting import wait_until

QUEUE = "celery.leader"


class Timer:
    """Calls nothing until the test says that the time has come."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []

    def call_after(self, seconds: float, act: Callable[[], object]) -> None:
        self.waiting.append(act)

    def turn(self) -> None:
        """All that was to be called by now."""
        due, self.waiting = self.waiting, []
        for act in due:
            act()


class Bench:
    """A worker that is nothing but its fetcher."""

    def __init__(self, app: Any, url: str) -> None:
        self.url = url
        self.redis: Any = redis.Redis.from_url(url)
        self.redis.script_load(FETCH.by_text([], [])[1])
        self.runtime = runtime_of(app)
        candidate = self.runtime.participation.enter("worker", "bench@here")
        assert candidate is not None
        self.candidate = candidate
        wait_until(lambda: candidate.term() is not None, what="the lease")
        self.timer = Timer()
        self.state = WorkerState()
        self.pool: object = object()
        self.room: int | None = None
        self.running: set[str] = set()
        self.received: list[Message] = []
        self.fetcher = Fetcher(
            self.runtime,
            "worker",
            {"worker": candidate},
            self.state,
            lambda: self.room,
            lambda: self.running,
        )
        self.state.fetchers["worker"] = self.fetcher
        self.connection: Connection
        self.connect()

    def connect(self) -> None:
        """A new connection, as after a loss."""
        if hasattr(self, "connection"):
            self.connection.collect()
        self.connection = Connection(self.url)
        channel = self.connection.default_channel
        leave_out(channel, {QUEUE})
        consumer = Consumer(channel, [Queue(QUEUE)], on_message=self.received.append)
        consumer.consume()
        self.timer.waiting.clear()
        self.state.consumer = SimpleNamespace(
            hub=None, timer=self.timer, pool=self.pool, task_consumer=consumer
        )
        self.fetcher.connected(consumer)
        give_back_fetched(self.state, "worker")

    def close(self) -> None:
        self.connection.collect()
        self.redis.close()

    @property
    def channel(self) -> Any:
        """The channel that fetches."""
        channel = self.fetcher._channel
        assert channel is not None
        return channel

    def send(self, *names: str, step: str = "") -> None:
        for name in names:
            self.redis.lpush(f"{QUEUE}{step}", message(name))

    def ask(self) -> None:
        """Have a fetch be under way, as kombu does it."""
        self.connection.transport.cycle._register_BRPOP(self.channel)

    def answered(self) -> list[str]:
        """Take in the answer; the names of what came."""
        before = len(self.received)
        with contextlib.suppress(Empty):
            self.channel._brpop_read()
        return [name_of(each) for each in self.received[before:]]

    def fetch(self, *names: str) -> list[Message]:
        """Send these, and fetch them; what came."""
        self.send(*names)
        before = len(self.received)
        self.ask()
        assert self.answered() == list(names)
        return self.received[before:]

    @property
    def channel_beside(self) -> Any:
        return self.state.task_consumer.channel

    @property
    def waiting(self) -> list[str]:
        """The names of the messages in the queue, the next one first."""
        raw = self.redis.lrange(QUEUE, 0, -1)
        return [json.loads(text)["properties"]["correlation_id"] for text in reversed(raw)]

    @property
    def in_flight(self) -> set[str]:
        """The tags of the messages in flight."""
        tags = {tag.decode() for tag in self.redis.hkeys(self.fetcher._keys.in_flight)}
        assert tags == {tag.decode() for tag in self.redis.hkeys("unacked")}
        return tags


def message(name: str) -> str:
    properties = {
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        "delivery_tag": f"tag of {name}",
        "correlation_id": name,
        "body_encoding": "base64",
    }
    encoding = {"content-encoding": "utf-8", "content-type": "application/json"}
    return json.dumps({"body": "W10=", **encoding, "headers": {}, "properties": properties})


def name_of(received: Message) -> str:
    return str(received.properties["correlation_id"])


def tags(*names: str) -> set[str]:
    return {f"tag of {name}" for name in names}


@pytest.fixture
def bench(make_app: MakeApp, redis_url: str) -> Iterator[Bench]:
    bench = Bench(install(make_app()), redis_url)
    yield bench
    bench.close()


@pytest.fixture
def begun(bench: Bench) -> Bench:
    """It fetches."""
    bench.fetcher.begin()
    return bench


class Outage:
    """While open, Redis does not answer the task consumer's channel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
        self._patch = monkeypatch
        self._error = error

    def __enter__(self) -> None:
        self._context = self._patch.context()
        patch = self._context.__enter__()

        def run_command(*_: Any) -> Any:
            raise self._error("away")

        patch.setattr("celery_leader.worker.fetching.run_command", run_command)

    def __exit__(self, *exc: Any) -> None:
        self._context.__exit__(*exc)


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch, redis.exceptions.ConnectionError)


# -- acknowledgements ------------------------------------------------------------------------


def test_what_was_fetched_is_in_flight_until_it_is_acknowledged(begun: Bench) -> None:
    first, second = begun.fetch("1", "2")
    assert begun.in_flight == tags("1", "2")
    assert begun.fetcher.held == 2
    assert not begun.channel.awaits_answer
    first.ack()
    assert begun.in_flight == tags("2")
    second.reject()
    assert begun.in_flight == set()
    assert begun.waiting == []
    assert begun.fetcher.held == 0


def test_a_message_that_is_requeued_goes_behind_the_others(begun: Bench) -> None:
    first, _ = begun.fetch("1", "2")
    begun.send("3")
    first.requeue()
    assert begun.waiting == ["3", "1"]
    assert begun.in_flight == tags("2")


def test_an_acknowledgement_of_what_came_earlier_takes_nothing_from_what_came_again(
    begun: Bench,
) -> None:
    """Both have one tag."""
    (earlier,) = begun.fetch("1")
    begun.connect()
    assert begun.waiting == ["1"]
    begun.fetcher.begin()
    begun.ask()
    assert begun.answered() == ["1"]
    earlier.ack()
    earlier.channel.basic_reject(earlier.delivery_tag)
    earlier.channel.basic_reject(earlier.delivery_tag, requeue=True)
    assert not begun.fetcher.give_back(earlier)
    begun.fetcher.owe(earlier)
    assert begun.in_flight == tags("1")
    begun.fetcher.give_back_but_running()
    assert begun.waiting == ["1"]


def test_an_acknowledgement_that_an_outage_swallows_is_told_when_the_time_has_come(
    begun: Bench, outage: Outage
) -> None:
    first, second = begun.fetch("1", "2")
    with outage:
        first.ack()
        second.ack()
        begun.timer.turn()
    assert begun.in_flight == tags("1", "2")
    assert len(begun.timer.waiting) == 1
    begun.timer.turn()
    assert begun.in_flight == set()


def test_an_acknowledgement_that_an_outage_swallows_is_told_at_the_next_connection(
    begun: Bench, outage: Outage
) -> None:
    (first,) = begun.fetch("1")
    with outage:
        first.ack()
    begun.connect()
    assert begun.in_flight == set()
    assert begun.waiting == []


def test_what_comes_again_after_its_acknowledgement_is_not_taken_for_done(begun: Bench) -> None:
    """A sender may publish one message twice; both have one tag."""
    (first,) = begun.fetch("1")
    first.ack()
    begun.fetch("1")
    begun.connect()
    assert begun.waiting == ["1"]


def test_an_acknowledgement_that_two_outages_swallow_is_told_when_the_time_has_come(
    begun: Bench, outage: Outage
) -> None:
    (first,) = begun.fetch("1")
    with outage:
        first.ack()
        begun.connect()
    begun.fetcher.begin()
    begun.timer.turn()
    assert begun.in_flight == set()


def test_what_is_owed_is_not_given_back_though_it_cannot_be_told(
    begun: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = begun.fetch("1", "2")
    begun.fetcher.owe(first)

    def refused(*_: Any) -> Any:
        raise redis.exceptions.ResponseError("no SETTLE now")

    with monkeypatch.context() as patch:
        patch.setattr("celery_leader.store.in_flight.InFlight.settle", refused)
        begun.fetcher.give_back_but_running()
    assert begun.waiting == ["2"]
    assert begun.in_flight == tags("1")
    begun.timer.turn()
    assert begun.in_flight == set()


def test_what_another_had_when_it_was_acknowledged_is_not_put_back(begun: Bench) -> None:
    first, second = begun.fetch("1", "2")
    for key in ("unacked", begun.fetcher._keys.in_flight):
        begun.redis.hdel(key, first.delivery_tag)  # another worker has taken it over
    first.ack()
    second.ack()
    assert begun.fetcher.give_back(first)
    assert not begun.fetcher.give_back(second)
    assert begun.waiting == []


# -- what is given back ------------------------------------------------------------------------


def test_what_does_not_run_goes_back_at_the_next_connection(begun: Bench) -> None:
    begun.fetch("1", "2", "3")
    begun.running = tags("2")
    begun.connect()
    assert begun.waiting == ["1", "3"]
    assert begun.in_flight == tags("2")
    assert begun.fetcher.held == 1


def test_who_fetches_no_more_gives_back_what_does_not_run(begun: Bench) -> None:
    begun.fetch("1", "2", "3")
    begun.running = tags("2")
    begun.fetcher.end()
    begun.fetcher.give_back_but_running()
    assert begun.waiting == ["1", "3"]
    assert begun.in_flight == tags("2")


def test_an_answer_that_is_never_read_is_given_back_by_who_fetches_no_more(begun: Bench) -> None:
    begun.send("1")
    begun.ask()
    wait_until(lambda: begun.in_flight, what="the fetch")
    begun.fetcher.end()
    begun.fetcher.give_back_but_running()
    assert begun.in_flight == set()
    assert begun.waiting == ["1"]


def test_what_cannot_be_given_back_is_once_redis_answers_again(
    begun: Bench, outage: Outage
) -> None:
    begun.fetch("1")
    begun.send("2")
    begun.ask()
    wait_until(lambda: len(begun.in_flight) == 2, what="the fetch")
    begun.fetcher.end()
    with outage:
        give_back_fetched(begun.state, "worker")
        begun.timer.turn()
    assert begun.in_flight == tags("1", "2")
    begun.timer.turn()
    assert begun.waiting == ["1", "2"]
    assert begun.timer.waiting == []


def test_what_could_not_be_given_back_is_given_back_later(begun: Bench, outage: Outage) -> None:
    begun.fetch("1", "2")
    begun.fetcher.end()
    with outage:
        give_back_fetched(begun.state, "worker")
    begun.timer.turn()
    assert begun.waiting == ["1", "2"]


def test_who_fetches_again_first_gives_back_what_it_could_not(begun: Bench, outage: Outage) -> None:
    begun.fetch("1", "2")
    begun.running = tags("1")
    begun.send("3")
    begun.ask()
    wait_until(lambda: len(begun.in_flight) == 3, what="the fetch")
    begun.fetcher.end()
    with outage:
        give_back_fetched(begun.state, "worker")
    begun.fetcher.begin()
    begun.timer.turn()
    assert begun.in_flight == tags("1", "2", "3")
    begun.ask()
    assert begun.answered() == ["2", "3"]
    assert begun.in_flight == tags("1", "2", "3")


def test_what_may_be_in_its_queue_again_is_not_this_workers(
    begun: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis gave it back, and the answer was lost: another may have it by now."""
    (first,) = begun.fetch("1")
    give_back_but = InFlight.give_back_but

    def answer_lost(*arguments: Any) -> Any:
        give_back_but(*arguments)
        raise redis.exceptions.ConnectionError("the answer was lost")

    begun.fetcher.end()
    with monkeypatch.context() as patch:
        patch.setattr(InFlight, "give_back_but", answer_lost)
        give_back_fetched(begun.state, "worker")
    assert begun.fetcher.held == 0
    begun.fetcher.begin()
    begun.ask()
    assert begun.answered() == ["1"]
    first.ack()
    begun.timer.turn()
    assert begun.in_flight == tags("1")


def test_a_fetch_that_is_under_way_takes_nothing_once_all_was_given_back(begun: Bench) -> None:
    begun.fetch("1")
    keys, arguments = begun.fetcher.fetch_arguments(10)
    begun.fetcher.end()
    begun.fetcher.give_back_but_running()
    begun.fetcher.begin()
    answer = begun.redis.execute_command(*FETCH.by_text(keys, arguments))
    assert answer == [b"replaced"]
    assert begun.waiting == ["1"]


def test_when_kombu_drops_a_silent_connection_what_came_over_it_is_given_back(
    begun: Bench,
) -> None:
    (kept,) = begun.fetch("1")
    begun.send("2")
    begun.ask()
    wait_until(lambda: len(begun.in_flight) == 2, what="the fetch")
    begun.channel.client.connection.disconnect()
    begun.channel._in_poll = None
    begun.ask()
    assert begun.answered() == ["2"]
    assert begun.in_flight == tags("1", "2")
    kept.ack()
    assert begun.in_flight == tags("2")


def test_a_worker_that_ends_gives_everything_back(begun: Bench) -> None:
    begun.fetch("1", "2")
    begun.running = tags("1")
    begun.fetcher.finish()
    assert begun.waiting == ["1", "2"]
    assert begun.in_flight == set()


def test_what_ended_without_an_acknowledgement_goes_back_at_the_second_look(begun: Bench) -> None:
    begun.fetch("1", "2")
    begun.running = tags("1", "2")
    begun.connect()
    begun.running = tags("2")
    begun.timer.turn()
    # An acknowledgement may be under way at the first look.
    assert begun.in_flight == tags("1", "2")
    begun.timer.turn()
    assert begun.in_flight == tags("2")
    assert begun.waiting == ["1"]
    begun.running = set()
    begun.timer.turn()
    begun.timer.turn()
    assert begun.in_flight == set()
    begun.timer.turn()
    assert begun.timer.waiting == []


def test_what_is_owed_is_not_taken_for_ended_without_an_acknowledgement(begun: Bench) -> None:
    (first,) = begun.fetch("1")
    begun.running = tags("1")
    begun.connect()
    begun.running = set()
    begun.fetcher.owe(first)
    for _ in range(3):
        begun.timer.turn()
    assert begun.waiting == []
    first.ack()
    assert begun.in_flight == set()


def test_what_came_over_this_connection_is_not_watched(begun: Bench) -> None:
    begun.fetch("1")
    begun.running = tags("1")
    begun.connect()
    begun.fetcher.begin()
    begun.fetch("2")
    for _ in range(3):
        begun.timer.turn()
    assert begun.in_flight == tags("1", "2")


# -- what may be fetched -----------------------------------------------------------------------


def test_nothing_is_fetched_before_it_begins_nor_after_its_end(bench: Bench) -> None:
    assert not bench.fetcher.may_fetch()
    bench.fetcher.begin()
    channel = bench.channel
    assert channel.active_queues == [QUEUE]
    bench.fetcher.end()
    assert channel.active_queues == []
    assert channel.closed


def test_who_does_not_lead_does_not_ask(begun: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun.fetcher._refused_term = 1
    assert begun.channel.active_queues == [QUEUE]
    monkeypatch.setattr(type(begun.candidate), "term", lambda self: None)
    assert begun.channel.active_queues == []


def test_a_refused_term_is_not_asked_with_again(begun: Bench) -> None:
    begun.redis.hset(begun.fetcher._keys.all[0], "nonce", "another")
    term = begun.candidate.term()
    begun.ask()
    assert begun.answered() == []
    assert begun.fetcher._refused_term == term
    wait_until(lambda: begun.candidate.term() != term, what="the deposition")


def test_a_missing_record_is_waited_for(begun: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader writes it anew at once, with a higher term."""
    told = []
    monkeypatch.setattr(
        begun.runtime.participation, "lease_rejected", lambda *_, gone: told.append(gone)
    )
    begun.redis.delete(begun.fetcher._keys.all[0])
    begun.ask()
    assert begun.answered() == []
    assert told == [True]
    assert not begun.fetcher.may_fetch()
    begun.timer.turn()
    assert begun.fetcher.may_fetch()


def test_after_a_refusal_of_redis_it_waits_for_a_moment(
    begun: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    begun.redis.set(QUEUE, "no list")
    for _ in range(2):
        begun.ask()
        assert begun.answered() == []
        assert not begun.fetcher.may_fetch()
        begun.timer.turn()
        assert begun.fetcher.may_fetch()
    assert caplog.text.count("celery.leader cannot be fetched from") == 1
    begun.redis.delete(QUEUE)
    begun.fetch("1")
    assert begun.in_flight == tags("1")


def test_a_script_that_redis_has_forgotten_is_sent_again(begun: Bench) -> None:
    begun.fetch("1")
    begun.redis.script_flush()
    begun.send("2")
    begun.ask()
    assert begun.answered() == []
    assert begun.waiting == ["2"]
    begun.ask()
    assert begun.answered() == ["2"]
    begun.redis.script_flush()
    begun.received[-1].ack()
    assert begun.in_flight == tags("1")


@pytest.mark.parametrize(("room", "came"), [(3, 3), (0, 1), (None, 10)])
def test_as_much_is_fetched_as_there_is_room(begun: Bench, room: int | None, came: int) -> None:
    begun.send(*map(str, range(12)))
    begun.room = room
    begun.ask()
    assert len(begun.answered()) == came


def test_one_is_fetched_where_nothing_may_be_fetched_ahead(begun: Bench) -> None:
    begun.send("1", "2")
    begun.runtime.app.conf.worker_disable_prefetch = True
    begun.ask()
    assert begun.answered() == ["1"]


def test_a_worker_without_a_pool_fetches_one_at_a_time(begun: Bench) -> None:
    begun.send("1", "2")
    begun.state.consumer.pool = SoloPool()
    begun.ask()
    assert begun.answered() == ["1"]


def test_what_is_fetched_uses_up_the_credit_of_all_channels(begun: Bench) -> None:
    beside = begun.channel_beside
    share_credit(beside, lambda: begun.fetcher.held)
    beside.basic_qos(0, 2, False)
    assert begun.channel.qos.can_consume()
    first, _ = begun.fetch("1", "2")
    assert not begun.channel.qos.can_consume()
    assert not beside.qos.can_consume()
    assert credit_left(beside, begun.fetcher.held) == 0
    first.ack()
    assert begun.channel.qos.can_consume()


def test_messages_of_other_workers_are_delivered_again_by_any_channel(begun: Bench) -> None:
    begun.redis.hset("unacked", "tag", json.dumps([json.loads(message("p")), "", "plain"]))
    begun.redis.zadd("unacked_index", {"tag": 1})
    begun.redis.sadd("_kombu.binding.plain", "plain\x06\x16\x06\x16plain")
    begun.channel_beside.qos._vrestore_count = 0
    begun.channel.qos.restore_visible(interval=1)
    assert begun.redis.llen("plain") == 1


def test_a_channel_that_closes_delivers_nothing_again(begun: Bench) -> None:
    begun.fetch("1")
    begun.channel.close()
    assert begun.in_flight == tags("1")
    assert begun.waiting == []


def test_what_cannot_be_read_is_set_aside_and_settled(begun: Bench) -> None:
    bad = json.loads(message("1"))
    bad["headers"] = 7
    begun.redis.lpush(QUEUE, json.dumps(bad))
    begun.send("2")
    begun.ask()
    assert begun.answered() == ["2"]
    assert begun.in_flight == tags("2")
    assert begun.redis.llen(begun.fetcher._keys.unreadable) == 1


def test_lives_that_nobody_knows_are_looked_for_once_a_term(begun: Bench) -> None:
    asked = []
    for _ in range(2):
        asked.append(begun.fetcher.fetch_arguments(1)[1][-1])
        begun.fetch("x")
    assert asked == [1, 0]


def test_it_waits_for_the_list_that_the_last_message_came_from(begun: Bench) -> None:
    begun.send("low", step="\x06\x166")
    begun.ask()
    assert begun.answered() == ["low"]
    assert begun.channel._waits
    assert begun.fetcher.lists[begun.channel._wait_for].endswith("6")


def test_it_does_not_wait_while_there_may_be_more(begun: Bench) -> None:
    begun.room = 1
    begun.send("1", "2")
    waits = []
    for name in ("1", "2"):
        begun.ask()
        assert begun.answered() == [name]
        waits.append(begun.channel._waits)
    assert waits == [False, False]


def test_a_channel_that_closes_is_polled_no_more(begun: Bench) -> None:
    """Another channel may be given its file descriptor in the next moment."""
    begun.ask()
    cycle = begun.connection.transport.cycle
    channel, sock = begun.channel, begun.channel.client.connection._sock
    fileno = sock.fileno()
    assert fileno in cycle._fd_to_chan
    begun.fetcher.end()
    assert fileno not in cycle._fd_to_chan
    assert channel not in [key[0] for key in cycle._chan_to_sock]
