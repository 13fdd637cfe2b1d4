"""The thread that stores the results of skipped tasks."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from celery.app.task import Context

from celery_leader.tasks.skipped import TaskSkipped
from celery_leader.worker import skipping
from celery_leader.worker.skipping import SkippedResults, Unstored
from tests.support.waiting import wait_until

TASK = SimpleNamespace(name="proj.report", app=SimpleNamespace(set_current=lambda: None))


def test_the_thread_outlives_a_listener_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skipping, "store_skipped", lambda *_: None)
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

    monkeypatch.setattr(skipping, "_close_databases", slow)
    monkeypatch.setattr(skipping, "store_skipped", lambda *_: None)
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


def test_a_result_that_was_given_up_while_it_was_tried_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []
    trying, full = threading.Event(), threading.Event()

    def store(task: object, context: Context, reason: object) -> None:
        if context.id not in ("given up", "next"):
            return  # of another test, whose thread still tries
        tried.append(context.id)
        if context.id == "given up":
            trying.set()
            full.wait(30.0)
            raise ConnectionError("away")

    monkeypatch.setattr(skipping, "_MOST", 1)
    monkeypatch.setattr(skipping, "_PAUSE", 0.0)
    monkeypatch.setattr(skipping, "store_skipped", store)
    results, stored = SkippedResults(), threading.Event()
    results.add(Unstored(TASK, Context(id="given up"), TaskSkipped("not led"), lambda _: None))
    wait_until(trying.is_set, what="the first result to be tried")
    results.add(
        Unstored(
            TASK, Context(id="next"), TaskSkipped("not led"), lambda done: done and stored.set()
        )
    )
    full.set()
    wait_until(stored.is_set, what="the second result to be stored")
    assert results.finish(5.0)
    assert tried == ["given up", "next"]


def test_when_everything_is_stored_everybody_has_been_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skipping, "store_skipped", lambda *_: None)
    results, told = SkippedResults(), threading.Event()

    def tell(stored: bool) -> None:
        threading.Event().wait(0.2)
        told.set()

    results.add(Unstored(TASK, Context(id="1"), TaskSkipped("not led"), tell))
    assert results.finish(30.0)
    assert told.is_set()
