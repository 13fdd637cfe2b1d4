"""The worker's side: elections that live as long as the worker, and the leader queue.

A *consumer* step, started after ``Tasks`` at every (re)connect and shut down once,
after the pool has drained and before the broker connection is closed. Guaranteed:
a lost connection does not resign; from the beginning of a shutdown no leader-only body
starts, and each lease is kept until its last one is done, then passed on. Not
guaranteed: that no leader-only message reaches a follower; one that does is handed to
the leader queue as it came.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import os
import threading
from collections.abc import Iterable
from queue import Empty
from typing import Any

from billiard import get_start_method
from celery import bootsteps
from celery.concurrency.solo import TaskPool as SoloPool
from kombu import Consumer, Producer, Queue
from kombu.common import ignore_errors, maybe_declare

from celery_leader.core.changes import Change, Deposed, StepDownRequested
from celery_leader.core.events import Event
from celery_leader.core.watchdog import Heartbeat
from celery_leader.metrics_server import serve_metrics
from celery_leader.runtime import remote_control as control
from celery_leader.runtime.clock import now
from celery_leader.runtime.leadership import Leadership, leadership_of, refusing_clearly
from celery_leader.runtime.runner import Campaign
from celery_leader.runtime.settings import BEAT, WORKER, check_elections, check_priority
from celery_leader.tasks.leader_only import adopt_tasks, leader_queue, leader_queues, options_of

from .broker_link import link_of
from .events import WorkerEvents
from .message_guard import (
    PATIENCE,
    consumers,
    forget_fetched,
    give_all_back,
    give_back_in_order,
    give_back_the_rest,
    hand_over_kept,
    key_of,
    put,
    running_elections,
    skipped_results,
    wakers,
)

logger = logging.getLogger(__name__)

_LAST_RESULTS = 2.0  # seconds; how long the end of a worker waits for its result backend

_UNTAKEN = 60_000  # milliseconds; how long a nudge that nobody takes is kept
# Not by the command itself: kombu puts its prefix before the key in some versions only.
_EXPIRE = "return redis.call('PEXPIRE', KEYS[1], ARGV[1])"

_GLANCE = 0.01  # seconds between looks for a leader-only body that still runs


class LeaderStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Holds the worker's elections, and consumes the leader queue while leading."""

    label = "Leader"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(
        self,
        c: Any,
        no_candidate: bool = False,
        elections: str | None = None,
        leader_priority: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(c, **kwargs)
        control.register()
        adopt_tasks(c.app)
        self._leadership = leadership = leadership_of(c.app)
        with refusing_clearly():
            leadership.check()
            leadership.tell_unknown_settings()
            serve_metrics(c.app)
            settings = leadership.settings
            named = settings.elections
            if elections is not None:
                named = check_elections(filter(None, elections.split(",")), "--elections")
                _tell_new_elections(named, leadership)
            if leader_priority is not None:
                check_priority(leader_priority, "--leader-priority")
        self._priority = leader_priority
        self._eligible: list[str] = []
        if settings.candidate and not no_candidate:
            every = {WORKER, *leadership.task_elections}
            self._eligible = sorted(every if named is None else {*named})
        # Before the pool starts, so that its processes can read what is believed.
        if not forks(c.controller):
            leadership.share()
        leadership.allot(self._eligible)
        # Known, for what Celery does with all queues of an app, and consumed by leaders only.
        for queue in leader_queues(c.app):
            c.app.amqp.queues.add(queue)
        c.app.amqp.queues.deselect([leadership.queue(name) for name in leadership.elections()])
        self._campaigns: dict[str, Campaign] | None = None
        self._consumer: Any = None
        self._closing = False
        self._gone = threading.Event()
        self._nudge: Nudge | None = None
        self._heartbeat = leadership.new_heartbeat("the event loop") if _loop_tells(c) else None
        self._heartbeat_timer: Any = None
        self._link = link_of(leadership)
        self._events = WorkerEvents()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

        if self._eligible and getattr(c.pool, "is_green", False):
            _tell_what_cannot_be_aborted(c.app)

    def start(self, c: Any) -> None:
        """Connected, for the first time or again."""
        self._consumer = consumers[c.app] = c
        wakers[c.app] = functools.partial(self._have_look_around, c)
        self._keep_unknown(c)
        self._declare_queues(c)
        forget_fetched()  # of the connection before: the broker delivers them again
        self._leadership.follow(c.connection)
        self._link.connected(c)
        if self._eligible:
            self._nudge = nudge_of(c, self._leadership.settings.namespace)
        if self._campaigns is None:
            self._campaigns = {}
            self._leadership.observe(self._on_event)
            requirements = [r for r in (self._heartbeat, self._link.heartbeat) if r is not None]
            for name in self._eligible:
                listener = functools.partial(self._on_change, name)
                campaign = self._leadership.campaign(
                    name, c.hostname, listener, self._priority, requirements, role="worker"
                )
                if campaign is not None:
                    self._campaigns[name] = campaign
        # Not yet: RabbitMQ delivers at once, and what comes before the loop has begun, while
        # a later step waits for an answer, finds nobody who takes it and ends the worker.
        if c.hub is None:
            c.call_soon(self._consume_what_is_led)
        self._events.send(c)

    def _declare_queues(self, c: Any) -> None:
        """Make the leaders' queues now, and not when a message is handed to one.

        RabbitMQ delivers further messages while a declaration waits for its answer. Each would
        be handed over too, and of so many answers on one channel py-amqp loses some.
        """
        if c.connection.transport.driver_type == "amqp":
            for queue in leader_queues(c.app):
                maybe_declare(queue, c.task_consumer.channel)

    def _keep_unknown(self, c: Any) -> None:
        """Have leader-only tasks that this worker does not know put back, and not discarded.

        In a rolling deployment the leader may be older than the sender.
        """
        stock = c.__class__.on_unknown_task
        told: set[str] = set()

        def on_unknown_task(body: Any, message: Any, exc: Exception) -> Any:
            name = message.headers.get("task")
            queue = key_of(message)
            elections = {
                self._leadership.queue(each): each for each in self._leadership.elections()
            }
            if name is None or queue not in elections:
                return stock(c, body, message, exc)
            if name not in told:
                told.add(name)
                logger.error(
                    "task %s is leader-only and unknown to this worker; it is put back into %s"
                    " until a leader knows it",
                    name,
                    queue,
                )
            return c.timer.call_after(PATIENCE, self._put_back, (c, message, elections[queue]))

        c.on_unknown_task = on_unknown_task

    def _put_back(self, c: Any, message: Any, election: str) -> None:
        put(c.app, message, leader_queue(c.app, election))
        message.ack_log_error(logger, c.connection_errors)

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """The loop begins: have the election thread able to wake it, and see that it moves."""
        hub.add_reader(self._wake_read, self._on_wake)
        self._consume_what_is_led()
        heartbeat = self._heartbeat
        if heartbeat is not None and not self._closing:
            if self._heartbeat_timer is not None:
                self._heartbeat_timer.cancel()
            self._heartbeat_timer = hub.call_repeatedly(
                heartbeat.period, self._show_life, heartbeat
            )
            self._show_life(heartbeat)

    def _show_life(self, heartbeat: Heartbeat) -> None:
        heartbeat.beat(now())

    def _excuse_silence(self) -> None:
        """The event loop stands for a good reason: a lost connection, or the end."""
        if self._heartbeat_timer is not None:
            self._heartbeat_timer.cancel()
            self._heartbeat_timer = None
        if self._heartbeat is not None:
            self._heartbeat.suspend()

    def close(self, c: Any) -> None:
        """A shutdown begins: start nothing new, keep what is led while a body needs it."""
        self._excuse_silence()
        self._link.end()
        self._leadership.shut()
        if self._nudge is not None:
            ignore_errors(c, self._nudge.finish_pop)
        self._closing = True
        ignore_errors(c, self._consume_what_is_led)
        give_back_in_order(self._eligible)
        threading.Thread(target=self._resign_in_time, name="leader-farewell", daemon=True).start()
        # There may be thousands: no reason to have nobody lead meanwhile.
        give_back_the_rest(self._eligible)

    def _resign_in_time(self) -> None:
        # Nothing in Celery calls back for every end of a body while a pool drains.
        kept = dict(self._campaigns or {})
        while kept:
            needed = {name for name in running_elections() if self._leadership.term(name)}
            for name in kept.keys() - needed:
                self._leadership.resign(kept.pop(name))
            if self._gone.wait(_GLANCE):
                return

    def _give_way_in_time(self, name: str) -> None:
        """Give the lease to whom it goes to, once no leader-only body of it runs here."""
        # Between tasks, and not in the middle of one.
        while not self._gone.wait(_GLANCE):
            order = self._leadership.giving_way.get(name)
            if order is None:
                return
            if not self._consumes(name) and name not in running_elections():
                campaign = (self._campaigns or {})[name]
                self._leadership.step_down(campaign, order.successor, order.reason)
                return

    def stop(self, c: Any) -> None:
        """The connection was lost, or a shutdown goes on: no reason to resign yet."""
        self._excuse_silence()
        self._link.lost()

    def shutdown(self, c: Any) -> None:
        """The pool has drained: give everything up."""
        self._gone.set()
        if not self._leadership.resign_all():
            logger.warning("the lease could not be given up in time; it will expire")
        hand_over_kept()
        skipped_results.finish(_LAST_RESULTS)
        self._events.send_last(c)
        if self._nudge is not None:
            self._nudge.remove()

    def terminate(self, c: Any) -> None:
        """As ``stop``."""

    def info(self, c: Any) -> dict[str, Any]:
        """What ``celery inspect stats`` says of this worker's elections."""
        standings = control.standings(self._leadership)
        return {"leader": standings, "leader_unstored_skips": len(skipped_results)}

    # -- from the election thread -----------------------------------------------

    def _on_change(self, name: str, change: Change) -> None:
        match change:
            case StepDownRequested() if not self._closing:
                waits = name in self._leadership.giving_way
                self._leadership.giving_way[name] = change
                if waits:
                    return  # for another reason, or another's sake, and now for this
                threading.Thread(
                    target=self._give_way_in_time,
                    args=(name,),
                    name=f"leader-gives-way-{name}",
                    daemon=True,
                ).start()
            case Deposed():
                self._leadership.giving_way.pop(name, None)
        c = self._consumer
        if c is None:
            return
        self._have_look_around(c)
        if c.hub is None and self._nudge is not None:
            # Pools of greenlets have no event loop; what they wait in is ended like any pop.
            with contextlib.suppress(*c.connection_errors):
                self._nudge.send()

    def _on_event(self, event: Event) -> None:
        if self._events.observe(event) and self._consumer is not None:
            self._have_look_around(self._consumer)

    def _have_look_around(self, c: Any) -> None:
        if c.hub is None:
            c.call_soon(self._look_around)
            return
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"!")

    # -- in the event loop --------------------------------------------------------

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        self._look_around()

    def _look_around(self) -> None:
        self._consume_what_is_led()
        if self._consumer is not None:
            self._events.send(self._consumer)

    def _consume_what_is_led(self) -> None:
        c = self._consumer
        if c is None or c.task_consumer is None:
            return
        for name in self._eligible:
            kept = not self._closing and name not in self._leadership.giving_way
            wanted = kept and self._leadership.term(name) is not None
            if wanted == self._consumes(name):
                continue
            queue = leader_queue(c.app, name)
            if wanted:
                c.task_consumer.add_queue(queue)
                c.task_consumer.consume()
                logger.info("%s: consuming from %s", name, queue.name)
                if self._nudge is not None:
                    self._nudge.send()
            else:
                c.task_consumer.cancel_by_queue(queue.name)
                if name in self._leadership.giving_way:
                    give_all_back([name])
                logger.info("%s: no longer consuming from %s", name, queue.name)

    def _consumes(self, name: str) -> bool:
        # Asked of the consumer: others (remote control, a follower's strategy) change it too.
        task_consumer = getattr(self._consumer, "task_consumer", None)
        queue = self._leadership.queue(name)
        return task_consumer is not None and bool(task_consumer.consuming_from(queue))


def _tell_new_elections(named: Iterable[str], leadership: Leadership) -> None:
    """Log elections that this worker would be the first to know, as one misspelt."""
    known = leadership.elections() - {BEAT}
    for name in named:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        logger.warning(
            "--elections: no leader-only task and no setting names the election %s, which this"
            " worker now takes part in%s",
            name,
            f"; did you mean {close[0]}?" if close else " (put it into leader_elections)",
        )


def forks(worker: Any) -> bool:
    """Whether the pool's processes will be forked; spawned ones inherit no memory."""
    chosen = getattr(worker, "pool_start_method", "fork")  # of Celery 5.7
    return chosen == "fork" and get_start_method() == "fork"


def _loop_tells(c: Any) -> bool:
    """Whether an event loop that stands still means that nothing is consumed.

    With ``solo`` it stands while a body runs. Pools of greenlets have none: there a hub that
    stands renews no lease either.
    """
    return c.hub is not None and not isinstance(c.pool, SoloPool)


class Nudge:
    """Ends a blocking pop that is under way, so that the next one knows of a new queue.

    On Redis kombu waits in one ``BRPOP`` on all queues for a second. An empty message
    to a queue that only this worker consumes ends it at once, and needs no second
    connection. Its key is ``celery-leader:{namespace}:nudge:{node}``, removed at
    shutdown; a killed worker's expires.
    """

    def __init__(self, channel: Any, name: str) -> None:
        self._name = name
        self._channel = channel
        self._consumer = Consumer(
            channel, [Queue(name, durable=False)], no_ack=True, on_message=lambda _: None
        )
        self._consumer.consume()
        self._producer = Producer(channel, auto_declare=False)

    def send(self) -> None:
        """End the pop that is under way."""
        self._producer.publish(
            b"", routing_key=self._name, content_type="application/data", content_encoding="binary"
        )
        # Nobody else would ever take it, should this worker be killed before it does.
        key = self._channel.global_keyprefix + self._name
        with self._channel.conn_or_acquire() as client:
            client.eval(_EXPIRE, 1, key, _UNTAKEN)

    def finish_pop(self) -> None:
        """End the pop that is under way for good, and take in what it has popped already.

        In a shutdown nobody reads from it until the pool has drained.
        """
        if getattr(self._channel, "_in_poll", None):
            self.send()
            with contextlib.suppress(Empty):
                self._channel._brpop_read()  # as kombu does when it closes the channel

    def remove(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(Exception):
            # Or what it pops after the queue was deleted would make that anew.
            self.finish_pop()
            self._consumer.cancel()
            self._channel.queue_purge(self._name)  # it is bound to nothing that a delete would find


def nudge_of(c: Any, namespace: str) -> Nudge | None:
    """The nudge of a worker that consumes from Redis; other brokers deliver at once."""
    if c.connection.transport.driver_type != "redis":
        return None
    return Nudge(c.task_consumer.channel, f"celery-leader:{namespace}:nudge:{c.hostname}")


def _tell_what_cannot_be_aborted(app: Any) -> None:
    names = [name for name, task in sorted(app.tasks.items()) if _may_abort(task)]
    if names:
        logger.warning(
            "on_deposed='abort' has no effect in a gevent or eventlet pool: %s will finish;"
            " have them call check_leader(), or use another pool",
            ", ".join(names),
        )


def _may_abort(task: Any) -> bool:
    options = options_of(task)
    return options is not None and options.on_deposed == "abort"
