"""What the message of a leader-only task says of itself, however it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, signals
from celery.app.task import Context

from celery_leader import install, leader_only


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("proj", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(name="plain", shared=False)
    def plain(*_: Any) -> None: ...

    @leader_only(election="nightly")
    @app.task(name="report", shared=False)
    def report(*_: Any) -> None: ...

    yield app
    app.close()


@pytest.fixture
def sent() -> Iterator[list[tuple[str, Any]]]:
    """The tasks that are sent, each with the election that its message names."""
    seen: list[tuple[str, Any]] = []

    def on_publish(sender: str, headers: dict[str, Any], **_: Any) -> None:
        seen.append((sender, headers.get("leader_only")))

    signals.before_task_publish.connect(on_publish)
    yield seen
    signals.before_task_publish.disconnect(on_publish)


def retry(task: Any) -> None:
    """Send ``task`` again, as its body does."""
    request = Context(id="1", task=task.name, args=(), kwargs={}, headers={"mine": 1}, retries=1)
    task.signature_from_request(request, countdown=5, retries=1).apply_async()


MARKED: dict[str, Callable[[Celery, Any], object]] = {
    "delay": lambda app, task: task.delay(),
    "with a queue": lambda app, task: task.apply_async(queue="elsewhere"),
    "with an ETA": lambda app, task: task.apply_async(countdown=60),
    "with headers": lambda app, task: task.apply_async(headers={"mine": 1}),
    "by name": lambda app, task: app.send_task("report"),
    "as a signature": lambda app, task: task.si().apply_async(),
    "in a chain": lambda app, task: chain(task.si(), task.si()).apply_async(),
    "in the header of a chord": lambda app, task: chord([task.si()], app.tasks["plain"].s())(),
    "as a retry": lambda app, task: retry(task),
}


@pytest.mark.parametrize("way", MARKED)
@pytest.mark.parametrize("protocol", [1, 2])
def test_the_message_names_its_election(
    app: Celery, sent: list[tuple[str, Any]], way: str, protocol: int
) -> None:
    app.conf.task_protocol = protocol
    install(app)
    MARKED[way](app, app.tasks["report"])
    assert sent == [("report", "nightly")]


@pytest.mark.parametrize("kind", ["map", "starmap"])
def test_a_map_names_the_election_of_what_it_maps(
    app: Celery, sent: list[tuple[str, Any]], kind: str
) -> None:
    install(app)
    getattr(app.tasks["report"], kind)([(1,)]).delay()
    getattr(app.tasks["plain"], kind)([(1,)]).delay()
    assert sent == [(f"celery.{kind}", "nightly"), (f"celery.{kind}", None)]


def test_an_ordinary_message_names_none(app: Celery, sent: list[tuple[str, Any]]) -> None:
    install(app)
    app.tasks["plain"].delay()
    app.send_task("nobody.knows.it")
    assert sent == [("plain", None), ("nobody.knows.it", None)]


def test_so_it_is_in_an_app_that_had_sent_before_it_was_installed(
    app: Celery, sent: list[tuple[str, Any]]
) -> None:
    app.tasks["plain"].delay()
    install(app)
    app.tasks["report"].delay()
    assert sent == [("plain", None), ("report", "nightly")]
