"""Other people's tools beside a beat of ours: what they patch, and the ``apply_async`` they bring.

Real packages, a real Redis. Beats in this process where a call is judged, and real ones where
it is whether a task goes on running.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from celery import Task, signals
from celery.beat import Scheduler

from celery_leader import NotLeader, StoreUnavailable
from celery_leader.beat import LeaderMixin, LeaderScheduler
from celery_leader.core.events import Dispatched, DispatchRefused
from tests.support.counting_proxy import Command, CountingProxy, Cut, pushes
from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING
from tests.support.local_beat import Bench, LocalBeat
from tests.support.readme import acl_rules
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

with warnings.catch_warnings():
    # Of their own code, and of what they import, when it is first compiled or looked at.
    warnings.simplefilter("ignore")
    import celery_once  # noqa: F401
    import celery_singleton  # noqa: F401
    import sentry_sdk
    import sentry_sdk.integrations.celery

RECORD = "celery-leader:celery:election:beat"
TICK = {"tick": {"schedule": timedelta(seconds=10)}}


class OwnScheduler(LeaderMixin, Scheduler):
    """Any scheduler there is, made to take part."""


SCHEDULERS = pytest.mark.parametrize("scheduler", [LeaderScheduler, OwnScheduler])


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[CountingProxy]:
    with CountingProxy(redis_server.port) as proxy:
        yield proxy


def nothing() -> None:
    """The body of every task here."""


class Seen:
    """A beat whose task is of a class of its own, and what became of it."""

    def __init__(self, bench: Bench, app: Any, scheduler: Any, base: Any = Task) -> None:
        self.bench = bench
        self.app = app
        self.task = app.task(base=base, name="bench.tick", shared=False)(nothing)
        self.beat: LocalBeat = bench.started(app, scheduler).lead()
        self.beat.settle()
        self.told: list[Any] = []
        self.beat.scheduler._runtime.observers.add(self.told.append)

    def fall_due(self) -> None:
        """Have one tick fall due, and the beat do what it can."""
        self.bench.clock.advance(10)
        self.beat.settle()

    def sent(self, count: int) -> None:
        """Wait until ``count`` messages have been sent, with this beat trying on."""

        def enough() -> bool:
            self.beat.settle()
            return len(self.bench.messages()) >= count

        wait_until(enough, what=f"{count} messages")
        assert len(self.bench.messages()) == count

    def of(self, kind: type) -> list[Any]:
        """What observers were told."""
        return [event for event in self.told if isinstance(event, kind)]

    def depose(self) -> None:
        """Have another lead, without this beat hearing of it."""
        self.bench.redis.hset(RECORD, "nonce", "another")


# -- an apply_async of its own ------------------------------------------------------------------


class Watched(Task):
    """Sees what comes out of its own publish."""

    abstract = True
    raised: list[Exception]

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        try:
            return super().apply_async(args, kwargs, **options)
        except Exception as exc:
            self.raised.append(exc)
            raise


class Deaf(Watched):
    """Keeps to itself what came out of its publish."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        try:
            return super().apply_async(args, kwargs, **options)
        except Exception:
            return None


class Silent(Task):
    """Never sends anything."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return None


def watched(base: Any) -> Any:
    return type(base.__name__, (base,), {"abstract": True, "raised": []})


@SCHEDULERS
@pytest.mark.parametrize("base", [Watched, Deaf])
def test_a_refusal_comes_out_of_the_publish(bench: Bench, scheduler: Any, base: Any) -> None:
    seen = Seen(bench, bench.app(TICK), scheduler, watched(base))
    seen.fall_due()
    assert len(bench.messages()) == 1
    published: list[Any] = []

    def note(**_: Any) -> None:
        published.append(None)

    signals.after_task_publish.connect(note)
    try:
        seen.depose()
        bench.clock.advance(10)
        seen.beat.scheduler.tick()
    finally:
        signals.after_task_publish.disconnect(note)
    assert [type(exc) for exc in seen.task.raised] == [NotLeader]
    assert len(bench.messages()) == 1
    assert not published
    assert len(seen.of(Dispatched)) == 1
    assert len(seen.of(DispatchRefused)) == 1


@SCHEDULERS
@pytest.mark.parametrize("base", [Watched, Deaf])
@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.AFTER])
def test_a_failure_comes_out_of_the_publish_and_the_same_tick_is_tried_again_under_its_id(
    bench: Bench, proxy: CountingProxy, scheduler: Any, base: Any, cut: Cut
) -> None:
    app = bench.app(TICK, broker=proxy.url)
    seen = Seen(bench, app, scheduler, watched(base))
    ids: list[str] = []

    def note(headers: Any, **_: Any) -> None:
        ids.append(headers["id"])

    signals.before_task_publish.connect(note)
    try:
        # The second time is its own try at once, with the same message.
        proxy.cut(cut, 1, of=pushes, times=2)
        bench.clock.advance(10)
        seen.sent(1)
    finally:
        signals.before_task_publish.disconnect(note)
    assert proxy.cuts == 2
    assert [type(exc) for exc in seen.task.raised] == [StoreUnavailable]
    # Where the first attempt went through, it is found out before the task is asked again.
    assert len(ids) == (1 if cut is Cut.AFTER else 2)
    assert {message["headers"]["id"] for message in bench.messages()} == set(ids)
    assert len(seen.of(Dispatched)) == 1


@SCHEDULERS
def test_one_cut_connection_is_not_even_noticed(
    bench: Bench, proxy: CountingProxy, scheduler: Any
) -> None:
    seen = Seen(bench, bench.app(TICK, broker=proxy.url), scheduler, watched(Watched))
    proxy.cut(Cut.AFTER, 1, of=pushes)
    seen.fall_due()
    assert proxy.cuts == 1
    assert len(bench.messages()) == 1
    assert seen.task.raised == []


@SCHEDULERS
def test_what_sends_nothing_is_not_said_to_be_sent_and_its_ticks_go_on(
    bench: Bench, scheduler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen = Seen(bench, bench.app(TICK), scheduler, Silent)
    for count in (1, 2):
        seen.fall_due()
        assert caplog.text.count("nothing was sent of tick") == count
        assert bench.states()["tick"]["total_run_count"] == count
    assert bench.messages() == []
    assert seen.of(Dispatched) == []


class Twofold(Task):
    """Sends a message of its own after the one it is asked for."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        result = super().apply_async(args, kwargs, **options)
        options["producer"].publish({}, routing_key="audit", exchange="", retry=False)
        return result


@SCHEDULERS
def test_what_is_published_after_the_message_goes_straight_to_its_queue(
    bench: Bench, scheduler: Any
) -> None:
    seen = Seen(bench, bench.app(TICK), scheduler, Twofold)
    seen.fall_due()
    assert len(bench.messages()) == len(bench.messages("audit")) == 1


@SCHEDULERS
def test_what_cannot_be_published_after_the_message_is_said_once_and_repeats_nothing(
    bench: Bench, scheduler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(bench, bench.app(TICK), scheduler, Twofold)
    bench.redis.set("audit", "no list")
    for count in (1, 2, 3):
        seen.fall_due()
        assert len(bench.messages()) == count
    assert len(seen.of(Dispatched)) == 3
    assert caplog.text.count("not all that goes with it") == 1
    assert "LPUSH audit" in caplog.text


class Failing(Task):
    """Raises once its message is out."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        super().apply_async(args, kwargs, **options)
        raise ValueError("this channel needs another permission")


@SCHEDULERS
def test_what_a_task_raises_after_its_message_is_not_taken_for_a_missing_right(
    bench: Bench, scheduler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(bench, bench.app(TICK), scheduler, Failing)
    for count in (1, 2):
        seen.fall_due()
        assert len(bench.messages()) == count
    assert caplog.text.count("not all that goes with it: apply_async") == 1
    assert "give the Redis user" not in caplog.text


@SCHEDULERS
def test_a_batch_of_kombus_own_goes_through_the_fence_too(bench: Bench, scheduler: Any) -> None:
    class Batched(Task):
        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            with options["producer"].batch():
                return super().apply_async(args, kwargs, **options)

    seen = Seen(bench, bench.app(TICK), scheduler, Batched)
    if not hasattr(seen.app.amqp.Producer, "batch"):
        pytest.skip("this kombu has no batches")
    seen.fall_due()
    seen.depose()
    bench.clock.advance(10)
    seen.beat.scheduler.tick()
    assert len(bench.messages()) == 1


# -- celery-singleton, celery-once ---------------------------------------------------------------


def singleton(bench: Bench, app: Any) -> Any:
    from celery_singleton import Singleton

    app.conf.singleton_backend_url = bench.url
    return Singleton


def once(bench: Bench, app: Any) -> Any:
    from celery_once import QueueOnce

    app.conf.ONCE = {
        "backend": "celery_once.backends.Redis",
        "settings": {"url": bench.url, "default_timeout": 3600},
    }
    return type("Graceful", (QueueOnce,), {"abstract": True, "once": {"graceful": True}})


LOCKS = ("SINGLETONLOCK_*", "qo_*")


def locks(bench: Bench) -> list[str]:
    return [key for pattern in LOCKS for key in bench.redis.keys(pattern)]


@SCHEDULERS
@pytest.mark.parametrize("of", [singleton, once])
def test_a_refused_message_of_a_locking_task_leaves_no_lock(
    bench: Bench, scheduler: Any, of: Any
) -> None:
    app = bench.app(TICK)
    seen = Seen(bench, app, scheduler, of(bench, app))
    seen.depose()
    bench.clock.advance(10)
    seen.beat.scheduler.tick()
    assert bench.messages() == []
    if of is singleton:
        assert locks(bench) == []


@SCHEDULERS
@pytest.mark.parametrize("of", [singleton, once])
def test_while_its_lock_is_held_a_locking_task_is_not_sent_and_not_said_to_be(
    bench: Bench, scheduler: Any, of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = bench.app(TICK)
    seen = Seen(bench, app, scheduler, of(bench, app))
    seen.fall_due()
    assert len(locks(bench)) == 1
    seen.fall_due()
    assert len(bench.messages()) == 1
    assert len(seen.of(Dispatched)) == 1
    assert "nothing was sent of tick" in caplog.text
    bench.redis.delete(*locks(bench))
    seen.fall_due()
    assert len(bench.messages()) == 2


@SCHEDULERS
@pytest.mark.parametrize("of", [singleton, once])
@pytest.mark.parametrize("cut", list(Cut))
def test_after_a_cut_at_its_dispatch_a_locking_task_goes_on(
    bench: Bench, proxy: CountingProxy, scheduler: Any, of: Any, cut: Cut
) -> None:
    app = bench.app(TICK, broker=proxy.url, leader_lease_duration=5.0)
    seen = Seen(bench, app, scheduler, of(bench, app))
    proxy.cut(cut, 1, of=pushes)
    bench.clock.advance(10)
    seen.sent(1)
    assert proxy.cuts == 1
    assert len(locks(bench)) == 1
    bench.redis.delete(*locks(bench))  # as its run does
    seen.fall_due()
    assert len(bench.messages()) == 2


@pytest.mark.parametrize("scheduler", ["leader", "leader-persistent"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_real_beat_whose_connection_is_reset_at_a_dispatch_goes_on_sending_a_singleton(
    new_fleet: NewFleet, proxy: CountingProxy, redis_url: str, scheduler: str, times: int
) -> None:
    schedule = {"singleton": {"task": "singleton", "every": 1.0}}
    fleet = new_fleet(conf=LASTING, schedule=schedule, singleton=redis_url)
    fleet.worker("runner", "-P", "solo").says(" ready.")
    (beat,) = fleet.beats_of(scheduler, "beat", broker=proxy.url)

    def ran(count: int) -> None:
        goal = int(fleet.redis.get("singleton:runs") or 0) + count
        wait_until(lambda: int(fleet.redis.get("singleton:runs") or 0) >= goal, what="more runs")

    ran(2)
    proxy.cut(Cut.BEFORE, 1, of=pushes, times=times)
    wait_until(lambda: proxy.cuts == times, what="the cut")
    ran(3)
    assert "Traceback" not in beat.log


# -- where a message does not travel with its claim -------------------------------------------------


@SCHEDULERS
def test_a_claimed_tick_that_sends_nothing_goes_on_and_is_not_said_to_be_sent(
    bench: Bench, redis_server: RedisServer, scheduler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    elsewhere = f"redis://127.0.0.1:{redis_server.port}/1"
    seen = Seen(bench, bench.app(TICK, leader_url=elsewhere), scheduler, Silent)
    seen.fall_due()
    seen.fall_due()
    assert caplog.text.count("nothing was sent of tick") == 2
    assert seen.of(Dispatched) == []


@SCHEDULERS
def test_a_claim_that_is_refused_asks_no_task(
    bench: Bench, redis_server: RedisServer, scheduler: Any
) -> None:
    elsewhere = f"redis://127.0.0.1:{redis_server.port}/1"
    app = bench.app(TICK, leader_url=elsewhere)
    seen = Seen(bench, app, scheduler, watched(Watched))
    with redis.Redis.from_url(elsewhere) as leases:
        leases.hset(RECORD, "nonce", "another")
    bench.clock.advance(10)
    seen.beat.scheduler.tick()
    assert seen.task.raised == []
    assert bench.messages() == []
    assert len(seen.of(DispatchRefused)) == 1


@SCHEDULERS
def test_a_confirmation_whose_reply_is_lost_publishes_nothing_again(
    bench: Bench, proxy: CountingProxy, scheduler: Any
) -> None:
    leases = f"redis://127.0.0.1:{proxy.port}/1"
    seen = Seen(bench, bench.app(TICK, leader_url=leases), scheduler)
    with redis.Redis.from_url(leases) as client:
        client.script_flush()

    def confirms(command: Command) -> bool:
        wanted = b'"claimed": true'
        old_and_new = command.args[-2:]
        return command.name in ("EVAL", "EVALSHA") and wanted in old_and_new[0]

    proxy.cut(Cut.AFTER, 1, of=confirms, times=2)
    bench.clock.advance(10)
    seen.sent(1)
    seen.beat.settle()
    assert proxy.cuts == 2
    assert len(seen.of(Dispatched)) == 1
    assert seen.of(DispatchRefused) == []


@SCHEDULERS
def test_a_broker_that_is_away_when_the_first_message_falls_due_ends_no_beat(
    bench: Bench, scheduler: Any
) -> None:
    with RedisServer() as broker:
        app = bench.app(TICK, broker=broker.url, leader_url=bench.url)
        seen = Seen(bench, app, scheduler)
        broker.kill()
        bench.clock.advance(10)
        back = threading.Timer(1.0, broker.start)
        back.start()

        def sent() -> int:
            seen.beat.scheduler.tick()
            return len(seen.of(Dispatched))

        try:
            wait_until(sent, what="the tick to be sent")
        finally:
            back.join()
        with broker.client() as client:
            assert client.llen("celery") == 1


# -- events and rights -----------------------------------------------------------------------------


@pytest.fixture
def least(redis_binary_or_skip: str) -> Iterator[tuple[Bench, str]]:
    """A bench, and the URL of its broker for a user who may publish to no channel."""
    with RedisServer() as server:
        rules = [rule for rule in acl_rules("celery") if rule != "&*"]
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "celery", "reset", "on", ">pw", *rules)
            client.execute_command("ACL", "SETUSER", "celery", "resetchannels")
        bench = Bench(server.url)
        try:
            yield bench, f"redis://celery:pw@127.0.0.1:{server.port}/0"
        finally:
            bench.close()


@SCHEDULERS
def test_without_rights_to_its_event_a_task_is_sent_once_and_the_right_is_named_once(
    least: tuple[Bench, str], scheduler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bench, url = least
    seen = Seen(bench, bench.app(TICK, broker=url, task_send_sent_event=True), scheduler)
    for count in (1, 2, 3):
        seen.fall_due()
        seen.beat.settle()
        assert len(bench.messages()) == count
    assert len(seen.of(Dispatched)) == 3
    told = [line for line in caplog.text.splitlines() if "not all that goes with it" in line]
    assert len(told) == 1, told
    assert "task_send_sent_event" in told[0]
    assert "&/0.celeryev" in told[0]


@SCHEDULERS
def test_a_sent_event_goes_out_after_its_message(bench: Bench, scheduler: Any) -> None:
    heard = bench.redis.pubsub(ignore_subscribe_messages=True)
    heard.psubscribe("/0.celeryev*")
    heard.get_message(timeout=5)
    seen = Seen(bench, bench.app(TICK, task_send_sent_event=True), scheduler)
    seen.fall_due()
    assert len(bench.messages()) == 1
    event = heard.get_message(timeout=5)
    assert event is not None
    assert event["channel"] == "/0.celeryev/task.sent"
    heard.close()


# -- what tools patch --------------------------------------------------------------------------------


@SCHEDULERS
def test_apply_entry_is_called_once_for_each_tick_whatever_becomes_of_its_attempts(
    bench: Bench, proxy: CountingProxy, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []
    stock = Scheduler.apply_entry

    def patched(self: Any, entry: Any, producer: Any = None) -> Any:
        entered.append(entry.name)
        entry.options["headers"] = {**entry.options.get("headers", {}), "monitor": len(entered)}
        return stock(self, entry, producer=producer)

    monkeypatch.setattr(Scheduler, "apply_entry", patched)
    seen = Seen(bench, bench.app(TICK, broker=proxy.url), scheduler)
    seen.fall_due()
    proxy.cut(Cut.BEFORE, 1, of=pushes, times=2)
    bench.clock.advance(10)
    seen.sent(2)
    assert proxy.cuts == 2
    assert entered == ["tick", "tick"]
    assert [message["headers"]["monitor"] for message in bench.messages()] == [1, 2]


class Service:
    """The beat that a scheduler belongs to, as its signals name it."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.app = scheduler.app


@SCHEDULERS
def test_celery_redbeat_may_be_imported_beside_another_scheduler(
    bench: Bench, scheduler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import redbeat.schedulers

    beat = bench.started(bench.app(TICK), scheduler)
    receiver = redbeat.schedulers.acquire_distributed_beat_lock
    told = signals.beat_init.send(sender=Service(beat.scheduler))
    assert receiver in [each for each, _ in told]
    assert "lock_key" not in caplog.text
    assert [answer for each, answer in told if each is receiver] == [None]


class Recording(sentry_sdk.Transport):
    """Keeps what Sentry's client would send."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.items: list[tuple[str, Any]] = []

    def capture_envelope(self, envelope: Any) -> None:
        self.items += [(item.type, item.payload.json) for item in envelope.items]


@pytest.fixture
def sentry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    """Sentry as ``sentry_sdk.init`` sets it up for a beat, and taken back afterwards."""
    import redbeat
    from sentry_sdk.integrations.celery import CeleryIntegration

    for owner, name in ((Scheduler, "apply_entry"), (redbeat.RedBeatScheduler, "apply_async")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    transport = Recording()
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        transport=transport,
        default_integrations=False,
        integrations=[CeleryIntegration(monitor_beat_tasks=True)],
    )
    yield transport
    sentry_sdk.init()


@SCHEDULERS
def test_sentrys_crons_hear_of_each_tick_once(
    bench: Bench, proxy: CountingProxy, sentry: Recording, scheduler: Any
) -> None:
    schedule = {"tick": {"schedule": timedelta(minutes=1)}}
    seen = Seen(bench, bench.app(schedule, broker=proxy.url), scheduler)
    bench.clock.advance(60)
    seen.sent(1)
    proxy.cut(Cut.BEFORE, 1, of=pushes, times=2)
    bench.clock.advance(60)
    seen.sent(2)
    assert proxy.cuts == 2
    begun = [item for kind, item in sentry.items if kind == "check_in"]
    assert [(each["monitor_slug"], each["status"]) for each in begun] == [
        ("tick", "in_progress")
    ] * 2
    headers = [message["headers"] for message in bench.messages()]
    assert [each["check_in_id"] for each in begun] == [
        each["sentry-monitor-check-in-id"] for each in headers
    ]
