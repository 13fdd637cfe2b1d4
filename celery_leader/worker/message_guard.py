"""Lets a leader-only message in only where its election is led.

Two gates stand here: one when a worker receives a message, and one when the worker gives the
request to its pool. The third is ``GuardedTask.before_start``, in the process that runs the body.
A refused message is handed to the leader queue, or skipped if its task says so.

Guaranteed: a message is acknowledged only after it was handed over, and its content is not
changed. Not guaranteed: that it is handed over once. If the worker dies in between, the
broker delivers the message again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from celery.utils.imports import instantiate, symbol_by_name
from redis.exceptions import RedisError

from celery_leader.compat.celery import task_named
from celery_leader.compat.celery_worker import (
    EXECUTE,
    ON_SUCCESS,
    Request,
    hybrid_to_proto2,
    task_ready,
)
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.log import get_logger
from celery_leader.store.slots import Answer, Limit
from celery_leader.tasks.admission import NotLeading, admission
from celery_leader.tasks.marks import MAPS, LeaderOnly, mapped_name, options_for, options_of
from celery_leader.tasks.routing import LEADER_ONLY, installed

from .handing_over import UNKNOWN_SINCE, Stray, hand_over, hand_over_later
from .leader_channel import is_fetched
from .skipping import skip
from .slots import Slots
from .state import worker_state

logger = get_logger(__name__)


def leader_strategy(task: Any, app: Any, consumer: Any) -> Callable[..., Any]:
    """The task strategy of leader-only tasks: what a worker does with a received message."""
    own_request = symbol_by_name(task.own_request)
    if own_request is not Request:
        task.__class__.Request = type("Request", (LeaderOnlyRequest, own_request), {})
    admit: Callable[..., Any] = instantiate(task.own_strategy, task, app, consumer)
    if not installed(app):
        return admit  # the body refuses to start, and says why

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> Any:
        # Only a map is decoded, since its arguments decide. Other messages are handed over even
        # if they are damaged: the leader reports that.
        options = options_of(task) or options_for(task, *_arguments(message))
        if options is None:
            unknown = _unknown_in_map(app, message)
            if unknown is not None:
                return consumer.on_unknown_task(None, message, KeyError(unknown))
            return admit(message, body, ack, reject, callbacks)
        # A retry sends its headers again, and that task is not unknown any more.
        message.headers.pop(UNKNOWN_SINCE, None)
        here = admission(app, options.election)
        acknowledge = functools.partial(ack, logger, consumer.connection_errors)
        stray = Stray(app, options.election, task.name, message, acknowledge)
        if here.takes:
            if _may_wait_here(app, options, message):
                return admit(message, body, ack, reject, callbacks)
            return hand_over(stray)
        if not here.steps_down:
            _leave_queue_to_leader(consumer, runtime_of(app).queue(options.election))
        # If it was fetched, this worker led a moment ago.
        if options.on_follower == "skip" and here.skips and not is_fetched(message):
            request = _request_of(task, consumer, message, ack, reject)
            return skip(worker_state(app), options.election, request, acknowledge)
        return hand_over(stray)

    return on_message


def _may_wait_here(app: Any, options: LeaderOnly, message: Any) -> bool:
    """Whether a leader may keep ``message``.

    Only what was fetched can have a slot. What was fetched from the queue of another election
    would be that one's: its task was marked otherwise when it was sent.
    """
    if is_fetched(message):
        return bool(message.channel.source.queue == runtime_of(app).queue(options.election))
    return options.max_running is None or options.election not in worker_state(app).fetchers


def _leave_queue_to_leader(consumer: Any, queue: str) -> None:
    """Stop consuming from the leader queue on a worker that does not lead.

    ``celery control add_consumer`` may have started that. The worker would hand each message over
    to the very queue from which it came.
    """
    task_consumer = consumer.task_consumer
    if task_consumer is not None and task_consumer.consuming_from(queue):
        consumer.cancel_task_queue(queue)


def _unknown_in_map(app: Any, message: Any) -> str | None:
    """The leader-only task that a map runs, if this worker does not know it."""
    if LEADER_ONLY not in message.headers:
        return None
    name = mapped_name(*_arguments(message))
    return name if task_named(app, name) is None else None


def _arguments(message: Any) -> tuple[Any, Any]:
    payload = message.payload
    try:
        if "args" in payload:  # Celery's first message protocol
            return payload["args"], payload.get("kwargs")
        return payload[0], payload[1]
    except (LookupError, TypeError, AttributeError):
        return None, None  # Celery reports the damaged message


def _request_of(task: Any, consumer: Any, message: Any, ack: Any, reject: Any) -> Request:
    """The request that Celery's own strategy would have made of ``message``."""
    app = consumer.app
    body, headers, decoded, utc = message.body, message.headers, False, app.uses_utc_timezone()
    if "args" in message.payload:
        body, headers, decoded, utc = hybrid_to_proto2(message, message.payload)
    return Request(
        message,
        on_ack=ack,
        on_reject=reject,
        app=app,
        hostname=consumer.hostname,
        eventer=consumer.event_dispatcher,
        task=task,
        connection_errors=consumer.connection_errors,
        body=body,
        headers=headers,
        decoded=decoded,
        utc=utc,
    )


class LeaderOnlyRequest(Request):  # type: ignore[misc]
    """A request that may have to be handed over, or given back, instead of being run."""

    given_back = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        worker_state(self.app).waiting[id(self)] = self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Celery makes a subclass for each worker. Its method does not call the one here.
        own = vars(cls)
        if EXECUTE in own:
            cls.execute_using_pool = _where_led(own[EXECUTE])
        if ON_SUCCESS in own:
            cls.on_success = _then_end_slot(own[ON_SUCCESS])

    @property
    def options(self) -> LeaderOnly | None:
        """The leader-only options of the call; ``None`` for a map of an ordinary task."""
        return options_for(self.task, self.args, self.kwargs)

    @property
    def election(self) -> str | None:
        """The election whose leader runs it; ``None`` for a map of an ordinary task."""
        options = self.options
        return None if options is None else options.election

    def on_accepted(self, *args: Any, **kwargs: Any) -> None:
        """The body begins."""
        super().on_accepted(*args, **kwargs)
        self._waits_no_more()

    def acknowledge(self) -> None:
        """The broker may forget the message."""
        if is_fetched(self.message) and not self.acknowledged:
            self.message.channel.source.owe(self.message)
        super().acknowledge()
        self._is_settled()

    def reject(self, requeue: bool = False) -> None:
        """The broker may give the message to another worker, or drop it."""
        super().reject(requeue=requeue)
        self._is_settled()

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Hand the message over if its body did not start because this worker does not lead."""
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        if not isinstance(exc, NotLeading):
            try:
                return super().on_failure(exc_info, *args, **kwargs)
            finally:
                # The process of a body that has run out of time is killed only after this call.
                if not isinstance(exc, TimeLimitExceeded):
                    self.end_slot()
        if self.given_back:
            return task_ready(self)
        return self.leave_to_leader()

    def was_given_back(self) -> None:
        """The message is in its queue again: do not run it here, and do not acknowledge it."""
        self.given_back = self.acknowledged = True
        task_ready(self)
        self._waits_no_more()

    def leave_to_leader(self) -> None:
        """Hand the message over, or skip it; its body has not begun."""
        task_ready(self)
        self._waits_no_more()
        options = self.options
        assert options is not None
        election = options.election
        skips = options.on_follower == "skip" and not is_fetched(self.message)
        if skips and admission(self.app, election).skips:
            skip(worker_state(self.app), election, self, self.acknowledge)
        else:
            hand_over(self._stray())

    def take_slot(self) -> bool:
        """Whether the body may begin, as far as it is for ``max_running`` to say.

        If not, the message waits for a slot, was skipped, or went back.
        """
        limit = self._limit
        if limit is None:
            return True
        try:
            answer = self._slots.take(self.message.delivery_tag, limit, self)
        except (RedisError, OSError) as exc:
            logger.warning("%s[%s] cannot begin yet: %s", self.name, self.id, exc)
            task_ready(self)
            self._waits_no_more()
            hand_over_later(self._stray())
            return False
        match answer:
            case Answer.TAKEN:
                # In a pool of greenlets another one may have given it back meanwhile.
                return not self.given_back
            case Answer.BUSY:
                task_ready(self)
                self._waits_no_more()
                why = f"max_running={limit.slots} and so many run"
                skip(worker_state(self.app), self._stray().election, self, self.acknowledge, why)
            case Answer.PARKED | Answer.LOST:
                self.was_given_back()
            case _:
                self.leave_to_leader()
        return False

    def _is_settled(self) -> None:
        self._waits_no_more()
        limit = self._limit
        if limit is None or self.given_back:
            return
        # Without a slot it expired, say, before its turn came: the next one may go on.
        tag = self.message.delivery_tag
        if tag not in self._slots:
            self._slots.end(tag, limit)

    def end_slot(self) -> None:
        """The body has ended, or will not begin."""
        limit, tag = self._limit, self.message.delivery_tag
        if limit is not None and self._slots.holds(tag, self):
            self._slots.end(tag, limit)

    @property
    def _slots(self) -> Slots:
        """Those of the queue that the message was fetched from."""
        slots: Slots = self.message.channel.source.slots
        return slots

    @property
    def _limit(self) -> Limit | None:
        """How many bodies of this task may run at once; ``None``: any number."""
        options = self.options
        if options is None or options.max_running is None or not is_fetched(self.message):
            return None
        name = self.name if self.name not in MAPS else mapped_name(self.args, self.kwargs)
        return Limit(name or self.name, options.max_running, options.on_busy == "wait")

    def _stray(self) -> Stray:
        election = self.election
        assert election is not None
        return Stray(self.app, election, self.name, self.message, self.acknowledge, request=self)

    def _waits_no_more(self) -> None:
        worker_state(self.app).waiting.pop(id(self), None)


def _where_led(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``execute_using_pool``: ask for admission before the message can be acknowledged.

    A pool process asks again. By then an early acknowledgement may be on its way, and a
    message that is handed over after that is lost if the connection breaks.
    """

    @functools.wraps(execute)
    def execute_using_pool(self: LeaderOnlyRequest, pool: Any, **kwargs: Any) -> Any:
        if not self.given_back:
            election = self.election
            if election is None or not installed(self.app):
                return execute(self, pool, **kwargs)
            if not admission(self.app, election).starts:
                self.leave_to_leader()
            elif self.take_slot():
                try:
                    return execute(self, pool, **kwargs)
                except BaseException:  # it was revoked, say
                    self.end_slot()
                    raise
        raise TaskRevokedError(self.id)  # Celery then takes the next request

    return execute_using_pool


def _then_end_slot(end: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``on_success``, which Celery calls at most ends of a body, also of one that failed."""

    @functools.wraps(end)
    def on_success(self: LeaderOnlyRequest, *args: Any, **kwargs: Any) -> Any:
        try:
            return end(self, *args, **kwargs)
        finally:
            self.end_slot()

    return on_success
