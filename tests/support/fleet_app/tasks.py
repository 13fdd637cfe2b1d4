"""The tasks of the fleet's app. Each records what it saw."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import weakref
from typing import Any

from celery import Celery, shared_task

from celery_leader import (
    LeaderError,
    NotLeader,
    check_leader,
    current_term,
    is_leader,
    leader_only,
    leading,
)
from tests.support.fleet_app.recorder import GATE_PATIENCE, Recorder


def own(function: Any) -> Any:
    """A function of its own, for what is marked on it."""

    @functools.wraps(function)
    def copied(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return copied


def _checked(election: str) -> Any:
    try:
        return check_leader(election)
    except NotLeader as exc:
        return str(exc)


def _told(election: str) -> Any:
    try:
        return current_term(election)
    except LeaderError as exc:
        return f"{type(exc).__name__}: {exc}"


def define_tasks(app: Celery, recorder: Recorder) -> None:
    """Give ``app`` the tasks of the fleet."""
    recorders[app] = recorder
    saw = recorder.saw
    # Not shared: a test makes several apps with these tasks.
    task = functools.partial(app.task, bind=True, shared=False)

    @task(name="fleet.plain")
    def plain(self: Any, label: str = "") -> Any:
        return saw(self, "ran", label=label)

    @task(name="fleet.modules")
    def modules(self: Any) -> list[str]:
        return sorted(sys.modules)

    @task(name="fleet.gather")
    def gather(self: Any, results: list[Any], label: str = "") -> Any:
        saw(self, "ran", label=label)
        return len(results)

    @task(name="fleet.lead")
    @leader_only
    def lead(self: Any, label: str = "", **_: Any) -> Any:
        return saw(self, "ran", label=label)

    @task(name="fleet.lead_late", acks_late=True)
    @leader_only
    def lead_late(self: Any, label: str = "") -> Any:
        return saw(self, "ran", label=label)

    @task(name="fleet.hold")
    @leader_only
    def hold(self: Any, label: str) -> Any:
        saw(self, "started", label=label)
        recorder.wait_at_gate(label)
        return saw(self, "finished", label=label)

    @task(name="fleet.hold_late", acks_late=True)
    @leader_only
    def hold_late(self: Any, label: str) -> Any:
        saw(self, "started", label=label)
        recorder.wait_at_gate(label)
        return saw(self, "finished", label=label)

    def endure(self: Any, label: str) -> Any:
        saw(self, "started", label=label)
        try:
            recorder.wait_at_gate(label)
        except NotLeader as exc:
            saw(self, "aborted", label=label, said=str(exc))
            raise
        return saw(self, "finished", label=label)

    @task(name="fleet.abortable")
    @leader_only(on_deposed="abort")
    def abortable(self: Any, label: str) -> Any:
        return endure(self, label)

    @task(name="fleet.abortable_busy")
    @leader_only(on_deposed="abort")
    def abortable_busy(self: Any, label: str) -> Any:
        saw(self, "started", label=label)
        pause = threading.Event()
        try:
            for _ in range(6000):
                pause.wait(0.01)
        except NotLeader:
            saw(self, "aborted", label=label)
            raise

    @task(name="fleet.abortable_deaf", acks_late=True, reject_on_worker_lost=True)
    @leader_only(on_deposed="abort")
    def abortable_deaf(self: Any, label: str) -> Any:
        if self.request.delivery_info.get("redelivered"):
            return saw(self, "ran", label=label)
        pause = threading.Event()
        for _ in range(6000):
            with contextlib.suppress(NotLeader):
                saw(self, "pulse", label=label)
                pause.wait(0.01)
        return None

    @task(name="fleet.abortable_again", autoretry_for=(NotLeader,), default_retry_delay=0)
    @leader_only(on_deposed="abort")
    def abortable_again(self: Any, label: str) -> Any:
        return saw(self, "ran", label=label) if self.request.retries else endure(self, label)

    @task(name="fleet.lead_where_asked")
    def lead_where_asked(self: Any, label: str = "") -> Any:
        @leading()
        def only_here() -> None:
            saw(self, "led", label=label)

        only_here()
        with leading() as term:
            return {"led_with": term}

    def answers(election: str = "worker") -> list[Any]:
        return [is_leader(election), current_term(election), _checked(election)]

    @task(name="fleet.asks")
    def asks(self: Any) -> Any:
        return answers()

    @task(name="fleet.asks_as_leader")
    @leader_only
    def asks_as_leader(self: Any) -> Any:
        return answers()

    @task(name="fleet.hold_and_ask")
    @leader_only
    def hold_and_ask(self: Any, label: str) -> Any:
        saw(self, "started", label=label)
        recorder.wait_at_gate(label)
        told = {
            "in the body": answers(),
            "in a task it calls": asks(),
            "in a task it applies": asks.apply().result,
            "in a leader-only one": asks_as_leader.apply().result,
        }
        return saw(self, "asked", label=label, told=told, reports=current_term("reports"))

    @task(name="fleet.hold_plain")
    def hold_plain(self: Any, label: str) -> Any:
        saw(self, "started", label=label)
        recorder.wait_at_gate(label)
        return saw(self, "finished", label=label)

    @task(name="fleet.retried")
    @leader_only(send_from="leader")
    def retried(self: Any, label: str) -> Any:
        if self.request.retries:
            return saw(self, "ran", label=label)
        saw(self, "started", label=label)
        recorder.wait_at_gate(label)
        raise self.retry(countdown=0)

    @task(name="fleet.forks")
    @leader_only
    def forks(self: Any, label: str) -> Any:
        child = os.fork()
        if child == 0:
            time.sleep(1)  # and let other greenlets run
            os._exit(0)
        os.waitpid(child, 0)
        return saw(self, "ran", label=label)

    @task(name="fleet.retried_later")
    @leader_only
    def retried_later(self: Any, label: str) -> Any:
        if self.request.retries:
            return saw(self, "ran", label=label)
        raise self.retry(countdown=1)

    @task(name="fleet.hold_report")
    @leader_only(election="reports")
    def hold_report(self: Any, label: str) -> Any:
        saw(self, "started", election="reports", label=label)
        recorder.wait_at_gate(label)
        return saw(self, "finished", election="reports", label=label)

    @task(name="fleet.work_late", acks_late=True)
    @leader_only
    def work_late(self: Any, label: str) -> Any:
        saw(self, "started", label=label)
        threading.Event().wait(0.05)
        return saw(self, "finished", label=label)

    @task(name="fleet.pulse")
    @leader_only
    def pulse(self: Any, label: str) -> None:
        pause = threading.Event()
        for _ in range(3000):
            saw(self, "pulse", label=label)
            pause.wait(0.02)

    @task(name="fleet.report")
    @leader_only(election="reports")
    def report(self: Any, label: str = "") -> Any:
        return saw(self, "ran", election="reports", label=label)

    @task(name="fleet.skippable")
    @leader_only(on_follower="skip")
    def skippable(self: Any, label: str = "") -> Any:
        return saw(self, "ran", label=label)

    @task(name="fleet.sent_by_leader")
    @leader_only(send_from="leader")
    def sent_by_leader(self: Any, label: str = "") -> Any:
        return saw(self, "ran", label=label)

    @task(name="fleet.send")
    def send(self: Any, name: str, label: str = "") -> Any:
        result = app.tasks[f"fleet.{name}"].delay(label)
        return {**saw(self, "sent", label=label), "state": result.state, "sent": result.id}

    @task(name="fleet.ask")
    def ask(self: Any, elections: list[str]) -> Any:
        return {election: _told(election) for election in elections}

    @task(name="fleet.hog")
    @leader_only
    def hog(self: Any) -> Any:
        deadline = time.monotonic() + GATE_PATIENCE
        while is_leader() and time.monotonic() < deadline:
            pass  # and let no greenlet run
        leads, term = is_leader(), current_term()
        return {**saw(self, "ran"), "leads": leads, "term": term}

    @task(name="fleet.ask_often")
    def ask_often(self: Any, times: int) -> Any:
        return _ask_often(self, times)

    @task(name="fleet.lead_ask_often")
    @leader_only
    def lead_ask_often(self: Any, times: int) -> Any:
        return _ask_often(self, times)

    def _ask_often(task: Any, times: int) -> Any:
        def commands() -> int:
            return int(recorder.client.info("stats")["total_commands_processed"])

        before = commands()
        answers = {(is_leader(), current_term()) for _ in range(times)}
        return {**saw(task, "ran"), "commands": commands() - before, "answers": sorted(answers)}

    @leader_only
    @task(name="fleet.marked_above")
    def marked_above(self: Any, label: str = "") -> Any:
        return saw(self, "ran", label=label)


def define_limited_tasks(app: Celery, recorder: Recorder) -> None:
    """Give ``app`` tasks of which only so many bodies run at once."""
    saw = recorder.saw
    task = functools.partial(app.task, bind=True, shared=False)

    def hold_one(self: Any, label: str) -> Any:
        saw(self, "started", label=label)
        recorder.wait_at_gate(label)
        return saw(self, "finished", label=label)

    leader_only(max_running=1)(task(hold_one, name="fleet.one"))
    leader_only(max_running=1)(task(own(hold_one), name="fleet.one_late", acks_late=True))
    leader_only(max_running=2)(task(own(hold_one), name="fleet.two"))
    leader_only(max_running=1, on_busy="skip")(task(own(hold_one), name="fleet.one_or_none"))


# Shared tasks belong to every app of the process, so they are made once.
recorders: weakref.WeakKeyDictionary[Celery, Recorder] = weakref.WeakKeyDictionary()


@leader_only
@shared_task(bind=True, name="fleet.shared_marked_above")
def shared_marked_above(self: Any, label: str = "") -> Any:
    return recorders[self.app].saw(self, "ran", label=label)


@shared_task(bind=True, name="fleet.shared_marked_below")
@leader_only
def shared_marked_below(self: Any, label: str = "") -> Any:
    return recorders[self.app].saw(self, "ran", label=label)
