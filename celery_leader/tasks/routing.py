"""The leader queues, and the route of leader-only tasks to them.

Guaranteed: the user's own routes come first, whatever ``task_routes`` is set to and when.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.utils.imports import symbol_by_name
from celery.utils.quorum_queues import detect_quorum_queues
from kombu import Exchange, Queue
from kombu.common import maybe_declare

from celery_leader.compat.celery import add_last_route, task_named
from celery_leader.compat.kombu import CELERY_DELAYED_DELIVERY_EXCHANGE
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.settings import BEAT

from .marks import MAPS, mapped_name, options_of

#: The header of a leader-only message: the election whose leader runs it.
LEADER_ONLY = "leader_only"


def leader_queue(app: Celery, election: str) -> Queue:
    """The leader queue of ``election``: from ``task_queues``, or made as Celery makes a new one."""
    name = runtime_of(app).queue(election)
    queues = app.amqp.queues
    if name in queues:
        return queues[name]
    queue = queues.new_missing(name)
    if queue.max_priority is None:
        queue.max_priority = queues.max_priority
    if queue.exchange.type != "direct" and detect_quorum_queues(app, "amqp")[0]:
        queue = DelayedQueue(**queue.as_dict())
    return queue


def leader_queues(app: Celery) -> list[Queue]:
    """The leader queues of all elections that run tasks."""
    return [leader_queue(app, name) for name in sorted(runtime_of(app).elections() - {BEAT})]


class DelayedQueue(Queue):  # type: ignore[misc]
    """A queue that receives delayed messages from RabbitMQ as soon as it is declared.

    Celery's workers bind only the queues that they know when they start. A sender may be there
    before all workers, and may know an election that no running worker knows.
    """

    def declare(self, nowait: bool = False, channel: Any = None) -> Any:
        """Declare the queue, and bind it to the exchange in which Celery's delays end."""
        name = super().declare(nowait=nowait, channel=channel)
        channel = channel or self.channel
        if channel.connection.client.transport.driver_type == "amqp":
            Exchange(CELERY_DELAYED_DELIVERY_EXCHANGE, type="topic").declare(channel=channel)
            self.bind_to(CELERY_DELAYED_DELIVERY_EXCHANGE, f"#.{self.routing_key}", channel=channel)
        return name


class LeaderRouting:
    """Routes leader-only tasks to their leader queue; stands before an app's own ``AMQP`` class.

    ``Task.queue`` would overrule the user's ``task_routes``; a last route does not. Also marks the
    messages, for workers that receive one and do not know its task.
    """

    app: Celery

    def flush_routes(self) -> None:
        """Prepare the routing table, with the route of leader-only tasks as the last."""
        super().flush_routes()  # type: ignore[misc]
        add_last_route(self, self._route)

    def _route(
        self, name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Any = None, **_: Any
    ) -> dict[str, Any] | None:
        if options.get("queue") or options.get("exchange"):
            return None
        if getattr(task, "name", name) in MAPS:  # then Celery routes by the mapped name
            name, task = mapped_name(args, kwargs) or "", None
        bound = options_of(task or task_named(self.app, name))
        if bound is None:
            return None
        queue = leader_queue(self.app, bound.election)
        # Also in ``declare``: Celery drops the ``queue`` of a message that it delays in RabbitMQ.
        return {"queue": queue, "declare": [queue]}

    @property
    def create_task_message(self) -> Callable[..., Any]:
        """Celery's maker of messages, with a header for leader-only ones."""
        create = super().create_task_message  # type: ignore[misc]

        def create_marked(
            task_id: str, name: str, args: Any = None, kwargs: Any = None, *more: Any, **rest: Any
        ) -> Any:
            message = create(task_id, name, args, kwargs, *more, **rest)
            run = mapped_name(args, kwargs) if name in MAPS else name
            bound = options_of(task_named(self.app, run))
            if bound is not None:
                message.headers[LEADER_ONLY] = bound.election
            return message

        return create_marked

    def TaskConsumer(self, channel: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        """Make a task consumer, and declare the leader queues.

        Celery's delayed delivery binds every queue that the app knows, and fails for a queue
        that does not exist.
        """
        consumer = super().TaskConsumer(channel, *args, **kwargs)  # type: ignore[misc]
        if detect_quorum_queues(self.app, consumer.connection.transport.driver_type)[0]:
            for queue in leader_queues(self.app):
                maybe_declare(queue, consumer.channel)
        return consumer


class RoutedAMQP:
    """Makes an app's ``AMQP`` object. Can be pickled, for pool processes that are spawned.

    Args:
        base: the app's own ``AMQP`` class, or its name.
    """

    def __init__(self, base: Any) -> None:
        self.base = base

    def __call__(self, app: Celery) -> Any:
        """Make an ``AMQP`` object of the app's own class that also routes leader-only tasks."""
        return routing_class(symbol_by_name(self.base))(app=app)


def routing_class(base: Any) -> Any:
    """A subclass of ``base``, an ``AMQP`` class, that also routes leader-only tasks."""
    if issubclass(base, LeaderRouting):
        return base
    return type(base.__name__, (LeaderRouting, base), {"__module__": base.__module__})


def installed(app: Celery) -> bool:
    """Whether ``install(app)`` was called, here or in the worker that spawned this process."""
    return isinstance(app.amqp_cls, RoutedAMQP)
