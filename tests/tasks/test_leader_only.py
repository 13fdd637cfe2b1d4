"""What a task is after it was marked: bound to its leader, and otherwise what it was."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, _state, signature
from pydantic import BaseModel

from celery_leader import LeaderError, LeaderTask, TaskSkipped, install, leader_only
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.tasks.marks import options_of


@pytest.fixture
def app() -> Iterator[Celery]:
    """An installed app that is not connected to anything."""
    app = Celery("proj", broker="redis://127.0.0.1:1/0", set_as_current=False)
    install(app)
    yield app
    app.close()


Define = Callable[..., Any]


def above(app: Celery, function: Any, **options: Any) -> Any:
    return leader_only(app.task(function, shared=False, **options))


def below(app: Celery, function: Any, **options: Any) -> Any:
    return app.task(leader_only(function), shared=False, **options)


def based(app: Celery, function: Any, **options: Any) -> Any:
    return app.task(function, shared=False, base=LeaderTask, **options)


def takes_nothing() -> Any:
    """A function of its own, for what is marked on it; Celery takes no lambda."""

    def function() -> None: ...

    return function


def takes_one() -> Any:
    def function(first: Any) -> Any:
        return first

    return function


WAYS = pytest.mark.parametrize("define", [above, below, based])


def queue_of(app: Celery, name: str, kwargs: Any = None) -> str:
    app.finalize()
    return str(app.amqp.router.route({}, name, (), kwargs or {}, app.tasks.get(name))["queue"].name)


@WAYS
def test_a_marked_task_keeps_its_name_and_the_facts_of_its_function(
    app: Celery, define: Define
) -> None:
    def work(first: int, second: str = "two") -> str:
        """Works."""
        return f"{first} {second}"

    plain = Celery("plain", set_as_current=False).task(work, shared=False)
    task = define(app, work)
    assert queue_of(app, task.name) == "celery.leader"
    for fact in ("name", "__name__", "__qualname__", "__module__", "__doc__", "__wrapped__"):
        assert getattr(task, fact) == getattr(plain, fact), fact
    assert inspect.signature(task) == inspect.signature(plain)
    assert type(task._get_current_object()).__name__ == "work"
    assert task(1) == "1 two"
    assert task.apply((1, "b")).get() == "1 b"
    assert isinstance(task, Task)


@WAYS
def test_a_bound_task_gets_itself(app: Celery, define: Define) -> None:
    def own_name(self: Any) -> str:
        return str(self.name)

    task = define(app, own_name, bind=True, name="mine")
    assert task.apply().get() == task() == "mine"


@WAYS
def test_arguments_are_checked_before_anything_is_sent(app: Celery, define: Define) -> None:
    task = define(app, takes_one(), name="checked")
    with pytest.raises(TypeError):
        task.delay()
    with pytest.raises(TypeError):
        task.s(1, 2, 3).apply_async()


@WAYS
def test_the_options_of_a_task_are_those_it_was_given(app: Celery, define: Define) -> None:
    task = define(
        app, takes_nothing(), name="kept", max_retries=7, rate_limit="3/m", acks_late=True
    )
    assert (task.max_retries, task.rate_limit, task.acks_late) == (7, "3/m", True)


class Order(BaseModel):
    number: int


def doubles() -> Any:
    def double(order: Order) -> Order:
        return Order(number=order.number * 2)

    # Celery before 5.6 does not resolve annotations that are text.
    double.__annotations__ = {"order": Order, "return": Order}
    return double


@WAYS
def test_a_pydantic_task_is_given_its_model_and_returns_one(app: Celery, define: Define) -> None:
    task = define(app, doubles(), pydantic=True, name="double")
    assert queue_of(app, "double") == "celery.leader"
    assert task.apply(({"number": 4},)).get() == {"number": 8}


@WAYS
def test_autoretry_leaves_a_task_leader_only(app: Celery, define: Define) -> None:
    def flaky() -> None:
        raise KeyError

    define(app, flaky, name="flaky", autoretry_for=(KeyError,), max_retries=1)
    assert queue_of(app, "flaky") == "celery.leader"
    assert app.tasks["flaky"].apply().state == "FAILURE"


@WAYS
def test_eager_mode_runs_it_here(app: Celery, define: Define) -> None:
    app.conf.task_always_eager = True
    task = define(app, takes_one(), name="eager")
    assert task.delay("ran").get() == "ran"


@WAYS
def test_a_users_own_base_and_its_hooks_stay(app: Celery, define: Define) -> None:
    hooks: list[str] = []

    class Hooked(LeaderTask if define is based else Task):  # type: ignore[misc]
        abstract = True

        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            hooks.append("before_start")

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            hooks.append(f"on_success {retval}")

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            hooks.append("__call__")
            return super().__call__(*args, **kwargs)

    decorate = functools.partial(app.task, shared=False)
    if define is not based:
        decorate = functools.partial(define, app)
    task = decorate(takes_one(), name="hooked", base=Hooked)
    assert queue_of(app, "hooked") == "celery.leader"
    assert isinstance(task, Hooked)
    assert task.apply((1,)).get() == 1
    assert hooks == ["before_start", "__call__", "on_success 1"]


def test_the_options_of_a_leader_task_are_class_attributes(app: Celery) -> None:
    class Reports(LeaderTask):
        abstract = True
        election = "reports"

    class Skipped(Reports):
        abstract = True
        on_follower = "skip"

    app.task(takes_nothing(), name="inherits", base=Reports, shared=False)
    app.task(takes_nothing(), name="adds", base=Skipped, shared=False, send_from="leader")
    app.task(takes_nothing(), name="overrides", base=Reports, shared=False, election="other")
    assert queue_of(app, "inherits") == queue_of(app, "adds") == "celery.leader.reports"
    assert queue_of(app, "overrides") == "celery.leader.other"
    adds = options_of(app.tasks["adds"])
    assert adds == leader_options(election="reports", on_follower="skip", send_from="leader")
    assert runtime_of(app).task_elections >= {"reports", "other"}


def leader_options(**options: Any) -> Any:
    """What ``leader_only`` with these options binds a task with."""

    @leader_only(**options)
    def function() -> None: ...

    return options_of(type("Holder", (), {"run": staticmethod(function)}))


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("send_from", "nowhere", "send_from='nowhere'"),
        ("on_follower", "drop", "on_follower='drop'"),
        ("election", "beat", "election='beat'"),
    ],
)
def test_a_wrong_option_of_a_leader_task_is_refused_by_its_name(
    app: Celery, option: str, value: str, says: str
) -> None:
    app.finalize()
    with pytest.raises(LeaderError, match=says):
        app.task(takes_nothing(), name="wrong", base=LeaderTask, shared=False, **{option: value})


def test_a_class_based_task_that_is_registered_is_leader_only(app: Celery) -> None:
    class Sweep(LeaderTask):
        name = "sweep"

        def run(self) -> str:
            return self.name

    task = app.register_task(Sweep())
    assert queue_of(app, "sweep") == "celery.leader"
    assert task.apply().get() == task() == "sweep"
    assert isinstance(task, Sweep)
    assert type(task).__qualname__ == Sweep.__qualname__


def test_marking_a_class_based_task_does_not_mark_those_that_inherit_its_method(
    app: Celery,
) -> None:
    class First(Task):
        name = "first"

        def run(self) -> str:
            return self.name

    class Second(First):
        name = "second"

    leader_only(app.register_task(First()))
    app.register_task(Second())
    assert queue_of(app, "first") == "celery.leader"
    assert queue_of(app, "second") == "celery"


def test_a_class_is_not_marked_but_told_what_to_derive_from() -> None:
    with pytest.raises(LeaderError, match="LeaderTask"):
        leader_only(type("Wrong", (Task,), {}))


def test_autodiscovered_shared_tasks_keep_their_names_and_are_leader_only(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shared with this app, and with none of the tests that come later.
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    app.autodiscover_tasks(["tests.tasks.discovered"], force=True)
    queues = {
        name: queue_of(app, f"tests.tasks.discovered.tasks.{name}")
        for name in ("above", "below", "based", "ordinary")
    }
    assert queues == {
        "above": "celery.leader",
        "below": "celery.leader.reports",
        "based": "celery.leader.reports",
        "ordinary": "celery",
    }


@pytest.mark.parametrize("name", ["celery.map", "celery.starmap"])
def test_a_map_goes_where_the_task_it_maps_goes(app: Celery, name: str) -> None:
    based(app, takes_one(), name="led", election="reports")
    app.task(takes_one(), name="plain", shared=False)
    for inner in (signature("led"), dict(signature("led")), "led"):
        assert queue_of(app, name, {"task": inner, "it": []}) == "celery.leader.reports"
    assert queue_of(app, name, {"task": signature("plain"), "it": []}) == "celery"
    assert queue_of(app, name) == "celery"


@WAYS
def test_a_users_own_apply_async_is_given_what_the_sender_gave(app: Celery, define: Define) -> None:
    given: list[Any] = []

    class Sends(LeaderTask if define is based else Task):  # type: ignore[misc]
        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            given.append((args, kwargs, options))

    decorate = functools.partial(app.task, shared=False)
    if define is not based:
        decorate = functools.partial(define, app)
    task = decorate(takes_one(), name="sends", base=Sends)
    task.delay(1)
    task.s(2).set(priority=3).apply_async(task_id="an-id")
    assert given == [((1,), {}, {}), ((2,), {}, {"priority": 3, "task_id": "an-id"})]


@pytest.mark.parametrize("given", ["by name", "in order"])
def test_a_send_that_is_held_back_has_the_id_it_was_given(app: Celery, given: str) -> None:
    task = above_from_leader(app)
    runtime_of(app).beliefs.reserve(["worker"])
    rest, named = (("an-id",), {}) if given == "in order" else ((), {"task_id": "an-id"})
    assert task.apply_async((1,), {}, *rest, **named).id == "an-id"


def test_a_send_that_is_held_back_is_revoked_says_who_did_not_lead_and_checks_its_arguments(
    app: Celery,
) -> None:
    task = above_from_leader(app)
    runtime_of(app).beliefs.reserve(["worker"])  # a candidate that does not lead
    result = task.delay(1)
    assert (result.state, result.ready(), result.failed()) == ("REVOKED", True, False)
    with pytest.raises(TaskSkipped, match=r"does not lead 'worker' and did not send held"):
        result.get()
    with pytest.raises(TypeError):
        task.delay()


def above_from_leader(app: Celery) -> Any:
    mark = leader_only(send_from="leader")
    return mark(app.task(takes_one(), name="held", shared=False))
