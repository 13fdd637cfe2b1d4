"""The thread that stores the results of skipped tasks."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from celery.app.task import Context

from celery_leader.tasks import skipped
from celery_leader.tasks.skipped import SkippedResults, TaskSkipped, Unstored
from tests.support.waiting import wait_until

TASK = SimpleNamespace(name="proj.report", app=SimpleNamespace(set_current=lambda: None))


def test_the_thread_outlives_a_listener_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skipped, "store_skipped", lambda *_: None)
    results, told = SkippedResults(), threading.Event()

    def failing(stored: bool) -> None:
        raise RuntimeError("the consumer is gone")

    results.add(Unstored(TASK, Context(id="1"), TaskSkipped("not led"), failing))
    results.add(Unstored(TASK, Context(id="2"), TaskSkipped("not led"), lambda _: told.set()))
    wait_until(told.is_set, what="the second result to be stored")
    assert results.finish(5.0)


def test_a_result_can_be_added_while_a_database_is_slow_to_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closing, closed, stored = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        closing.set()
        closed.wait(30.0)

    monkeypatch.setattr(skipped, "_let_go_of_databases", slow)
    monkeypatch.setattr(skipped, "store_skipped", lambda *_: None)
    results = SkippedResults()
    result = Unstored(TASK, Context(id="1"), TaskSkipped("not led"), lambda _: stored.set())
    results.add(result)
    wait_until(closing.is_set, what="the thread to let go of its databases")
    adding = threading.Thread(target=results.add, args=(result,), daemon=True)
    adding.start()
    adding.join(10.0)
    free = not adding.is_alive()
    closed.set()
    assert free
