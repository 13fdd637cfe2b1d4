"""The private names of Celery, kombu and redis-py are there, and one that is gone is told in a sentence.

``make test-oldest`` runs this with the oldest versions that are supported.
"""

from __future__ import annotations

import ast
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, _state, current_app
from celery.app.amqp import AMQP
from celery.worker.consumer import Consumer
from kombu import Connection, Exchange, Queue
from kombu.transport import redis as redis_transport
from kombu.transport.virtual import Message
from redis import Connection as RedisConnection

import celery_leader
from celery_leader import LeaderError
from celery_leader.compat import attribute, celery_worker, imported, kombu, redis
from celery_leader.compat import celery as compat
from celery_leader.runtime.apps import current

PACKAGE = Path(celery_leader.__file__).parent
REDIS = "redis://nowhere.invalid:6379/0"


@pytest.fixture
def app() -> Celery:
    return Celery("proj", broker=REDIS, set_as_current=False)


@pytest.fixture
def channel() -> Any:
    """A Redis channel that is connected to nothing."""
    return unconnected(Connection(REDIS).transport)


def nothing() -> None:
    """A task's body."""


def unconnected(transport: Any) -> Any:
    class Unconnected(transport.Channel):  # type: ignore[name-defined, misc]
        def _create_client(self, asynchronous: bool = False) -> Any:
            return SimpleNamespace(ping=lambda: None)

    return Unconnected(transport)


# -- each name does what it is needed for --------------------------------------------------


def test_a_task_is_found_in_an_app_that_is_not_finalized(app: Celery) -> None:
    assert compat.task_named(app, "proj.none") is None
    assert not app.finalized
    app.task(name="proj.one", shared=False)(nothing)
    app.finalize()
    assert compat.task_named(app, "proj.one").name == "proj.one"


def test_a_proxy_is_told_from_what_it_stands_for(app: Celery) -> None:
    lazy = app.task(name="proj.lazy", shared=False)(nothing)
    assert type(compat.unproxied(lazy)) is not type(lazy)
    assert compat.unproxied(lazy).name == "proj.lazy"
    assert compat.unproxied(current_app) is compat.current_app()
    assert compat.unproxied(app) is app


def test_the_current_app_and_the_default_one_are_known(app: Celery) -> None:
    assert not compat.is_default_app(app)
    with current(app):
        assert compat.current_app() is app


def test_every_app_that_is_finalized_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    finalized: list[Celery] = []
    compat.on_every_finalized_app(finalized.append)
    app = Celery("proj", set_as_current=False)
    app.finalize()
    assert finalized == [app]


def test_results_are_not_awaited_while_a_beat_sends() -> None:
    before = _state.task_join_will_block()
    with compat.awaiting_no_results():
        assert _state.task_join_will_block()
    assert _state.task_join_will_block() == before


def test_a_route_is_asked_after_the_users_own_and_made_anew(app: Celery) -> None:
    app.conf.task_routes = {"proj.one": {"queue": "own"}}
    app.amqp.flush_routes()
    compat.add_last_route(app.amqp, lambda name, *_, **__: {"queue": "last"})
    assert app.amqp.router.route({}, "proj.one")["queue"].name == "own"
    assert app.amqp.router.route({}, "proj.two")["queue"].name == "last"
    compat.route_anew(app.amqp)
    assert app.amqp.router.route({}, "proj.two")["queue"].name == "celery"


def test_an_object_of_celery_takes_another_class(app: Celery) -> None:
    amqp = app.amqp
    compat.set_class(amqp, type("Other", (AMQP,), {}))
    assert type(amqp).__name__ == "Other"


def test_this_process_is_no_workers_child() -> None:
    assert compat.worker_pid() is None


def test_a_request_tells_whether_the_pool_has_it_and_its_context(app: Celery) -> None:
    task = app.task(name="proj.one", shared=False)(nothing)
    app.finalize()
    headers = {"id": "1", "task": "proj.one"}
    message = SimpleNamespace(
        headers=headers, body=b"[[], {}, {}]", properties={}, delivery_info={}, payload=[[], {}, {}]
    )
    message.content_type, message.content_encoding = "application/json", "utf-8"
    request = celery_worker.Request(
        message, app=app, task=app.tasks[task.name], headers=headers, body=message.body
    )
    assert not celery_worker.is_in_pool(request)
    assert celery_worker.context_of(request).id == "1"
    request._apply_result = lambda: None
    assert celery_worker.is_in_pool(request)


def test_an_unknown_task_is_handled_here_before_celery_discards_it() -> None:
    told: list[Any] = []

    class Stock(Consumer):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

        def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
            told.append(("stock", message))

    c = Stock()
    celery_worker.keep_unknown(c, lambda stock, name, message: (told.append(name), stock()))
    c.on_unknown_task(b"", "message", KeyError("proj.new"))
    assert told == ["proj.new", ("stock", "message")]


def test_the_queue_that_a_message_came_from_is_found() -> None:
    """On RabbitMQ by the tag of its consumer, else by its exchange and routing key."""
    with Connection("memory://") as connection:
        channel = connection.channel()
        topic = Exchange("jobs", type="topic")
        queues = [Queue("plain"), Queue("all", topic, routing_key="#")]
        consumer = connection.Consumer(queues, channel=channel)
        consumer.consume()

        def found(message_channel: Any = channel, **delivery: str) -> Any:
            message = SimpleNamespace(channel=message_channel, delivery_info=delivery)
            queue = kombu.queue_of(message, consumer)
            return queue and queue.name

        assert found(exchange="", routing_key="plain") == "plain"
        assert found(exchange="jobs", routing_key="a.b") == "all"
        assert found(exchange="", routing_key="of-others") is None
        tag = consumer._active_tags["all"]
        assert found(object(), consumer_tag=tag, exchange="x", routing_key="y") == "all"


def test_a_pool_is_found_without_connecting() -> None:
    pool = kombu.connection_pool(Connection("redis://:secret@nowhere.invalid:7777/3"))
    options = pool.connection_kwargs
    assert (options["host"], options["port"], options["db"]) == ("nowhere.invalid", 7777, 3)


def test_a_redis_channel_tells_where_it_keeps_its_messages(channel: Any) -> None:
    message = Message(
        {"body": "", "properties": {"delivery_tag": "1", "delivery_info": {}}}, channel=channel
    )
    assert kombu.restores_by_tag(channel)
    assert kombu.raw_message(message)["properties"]["delivery_tag"] == "1"
    assert kombu.unacked_keys(channel) == ["unacked", "unacked_index"]
    assert kombu.list_key(channel, "jobs", {"properties": {"priority": 0}}) == "jobs"
    assert kombu.list_key(channel, "jobs", {"properties": {"priority": 9}}).startswith("jobs")
    assert not kombu.is_popping(channel)
    acknowledged = channel.qos._dirty
    kombu.forget_delivery(channel, "1")
    assert acknowledged == {"1"}, "in this process only: the channel is connected to nothing"


def test_what_a_pop_has_taken_is_taken_in(channel: Any) -> None:
    read: list[str] = []
    channel._brpop_read = lambda: read.append("read")
    kombu.take_popped(channel)
    assert read == ["read"]


def test_a_redis_channel_has_what_is_overridden_to_hold_a_message_back() -> None:
    kombu.check_publishing(redis_transport.Channel)


def test_a_connection_of_redis_py_has_a_socket_once_it_is_connected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connection = RedisConnection("127.0.0.1", listening.getsockname()[1])
        assert redis.socket_of(connection) is None
        connection._sock = connection._connect()
        assert redis.socket_of(connection).getpeername() == listening.getsockname()
        connection.disconnect()


def test_the_kind_of_greenlets_is_known() -> None:
    assert kombu.detect_environment() == "default"
    assert isinstance(kombu.MAX_NUMBER_OF_BITS_TO_USE, int)
    assert kombu.CELERY_DELAYED_DELIVERY_EXCHANGE == "celery_delayed_delivery"


# -- a name that is gone ---------------------------------------------------------------------


class Empty:
    """An object of another version, which has none of the names."""

    __module__ = "kombu.transport.redis"


def lacking(name: str) -> Any:
    return type("Lacking", (Empty,), {"name": name})()


GONE: dict[str, Callable[[], object]] = {
    "_tasks": lambda: compat.task_named(lacking("_tasks"), "proj.one"),
    "_rtable": lambda: compat.add_last_route(lacking("_rtable"), print),
    "Lacking._rtable": lambda: compat.route_anew(lacking("_rtable")),
    "_apply_result": lambda: celery_worker.is_in_pool(lacking("_apply_result")),
    "_context": lambda: celery_worker.context_of(lacking("_context")),
    "on_unknown_task": lambda: celery_worker.keep_unknown(lacking("on_unknown_task"), print),
    "_active_tags": lambda: kombu.queue_of(
        SimpleNamespace(delivery_info={}), lacking("_active_tags")
    ),
    "_raw": lambda: kombu.raw_message(lacking("_raw")),
    "_get_message_priority": lambda: kombu.list_key(lacking("_get_message_priority"), "q", {}),
    "_in_poll": lambda: kombu.is_popping(lacking("_in_poll")),
    "_brpop_read": lambda: kombu.take_popped(lacking("_brpop_read")),
    "_sock": lambda: redis.socket_of(lacking("_sock")),
    "_connparams": lambda: kombu.check_publishing(Empty),
    "celery.worker.state:gone": lambda: imported("celery.worker.state:gone", "test"),
    "celery.nowhere:gone": lambda: imported("celery.nowhere:gone", "test"),
}


@pytest.mark.parametrize("name", GONE)
def test_a_name_that_is_gone_is_told_in_one_sentence(name: str) -> None:
    with pytest.raises(LeaderError) as told:
        GONE[name]()
    sentence = str(told.value)
    assert f"{name}, which celery_leader needs to " in sentence
    assert sentence.endswith(", or a later celery_leader")


@pytest.mark.parametrize(
    "name",
    ["get_current_app", "connect_on_app_finalize", "_set_task_join_will_block", "default_app"],
)
def test_a_name_of_celerys_state_that_is_gone_is_told_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(_state, name)
    with pytest.raises(LeaderError, match=f"has no .*{name}, which celery_leader needs to"):
        {
            "get_current_app": compat.current_app,
            "connect_on_app_finalize": lambda: compat.on_every_finalized_app(print),
            "_set_task_join_will_block": lambda: compat.awaiting_no_results().__enter__(),
            "default_app": lambda: compat.is_default_app(Celery("proj", set_as_current=False)),
        }[name]()


def test_an_attribute_of_a_class_or_an_object_is_found() -> None:
    assert attribute(threading.Event(), "is_set", "test")() is False
    assert attribute(threading.Event, "is_set", "test") is threading.Event.is_set


# -- nothing else reaches for them -----------------------------------------------------------

_INTERNALS = ("celery._state", "celery.worker", "celery.concurrency", "kombu.transport", "billiard")
#: ``get_start_method`` is public; the decorators of remote control are what the guide tells.
_DOCUMENTED = {("billiard", "get_start_method"), ("celery.worker.control", "*")}
#: Django's managers, and what other packages document for subclasses of their schedulers.
_OF_OTHERS = {"_default_manager", "_dirty"}


def _modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "compat"]


def test_no_other_module_imports_an_internal_module() -> None:
    found = []
    for path in _modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level:
                continue
            module = node.module or ""
            for each in (f"{module}.{name.name}" for name in node.names):
                name = each.rpartition(".")[2]
                documented = {(module, name), (module, "*")} & _DOCUMENTED
                if each.startswith(_INTERNALS) and not documented:
                    found.append(f"{path.relative_to(PACKAGE)}: {each}")
    assert not found


def test_no_other_module_reads_a_private_name_that_is_not_this_packages() -> None:
    trees = {path: ast.parse(path.read_text()) for path in _modules()}
    own = {name for tree in trees.values() for name in _defined(tree)}
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in own | _OF_OTHERS
    ]
    assert not found


def _defined(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def test_a_pool_that_connects_again_forgets_what_has_not_begun_and_that_only() -> None:
    """As the pool of forked processes of Celery 5.5 does, which forgets everything."""
    jobs = {1: SimpleNamespace(accepted=lambda: True), 2: SimpleNamespace(accepted=lambda: False)}
    pool = SimpleNamespace(_pool=SimpleNamespace(_cache=jobs), flush=jobs.clear)
    for _ in range(2):
        celery_worker.keep_running_jobs(pool)
    pool.flush()
    assert jobs.keys() == {1}
    with pytest.raises(LeaderError, match="bodies that run in the pool"):
        celery_worker.keep_running_jobs(SimpleNamespace(_pool=object(), flush=jobs.clear))
    celery_worker.keep_running_jobs(other := object.__new__(celery_worker.SoloPool))
    assert "flush" not in vars(other)
