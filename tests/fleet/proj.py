"""The Celery app of the fleet tests: what its workers, beats and senders run.

A worker or beat reads its configuration, JSON, from the variable ``FLEET``; a test calls
``build()`` with the same values to be a sender. Every task writes what it saw to a
Redis list, which the tests then judge. See ``Fleet`` for the keys of a configuration.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
import weakref
from typing import Any

import redis
from celery import Celery, shared_task, signals, signature
from celery.beat import PersistentScheduler
from celery.schedules import schedule

from celery_leader import (
    LeaderError,
    LeaderTask,
    NotLeader,
    check_leader,
    current_term,
    install,
    is_leader,
    leader_only,
    leading,
)
from celery_leader.beat import LeaderMixin

RECORDS = "fleet:records"
BELIEFS = "fleet:beliefs"
VARIABLE = "FLEET"

DATABASE_VARIABLE = "FLEET_DJANGO_DATABASE"

_PROBE_STEP = 0.01
_GATE_PATIENCE = 60


class Recorder:
    """Writes what happened in this process to Redis, in the order of Redis."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: redis.Redis | None = None
        self._pid = 0

    @property
    def client(self) -> redis.Redis:
        """A client of this process, not of the one it was forked from."""
        if self._client is None or self._pid != os.getpid():
            self._client = redis.Redis.from_url(self._url, socket_timeout=None)
            self._pid = os.getpid()
        return self._client

    def saw(self, task: Any, event: str, election: str = "worker", **more: Any) -> dict[str, Any]:
        """Record that ``event`` happened in the body of ``task``, and what was believed."""
        term = current_term(election)
        at = self.moment()
        request = task.request
        seen = {
            "event": event,
            "task": task.name,
            "id": request.id,
            "node": request.hostname,
            "pid": os.getpid(),
            "leads": is_leader(election),
            "term": term,
            "term_after": current_term(election),
            "at": at,
            "hops": int((request.headers or {}).get("leader_hops") or 0),
            "headers": {k: v for k, v in (request.headers or {}).items() if _plain(v)},
            "argsrepr": request.get("argsrepr"),
            "kwargsrepr": request.get("kwargsrepr"),
            "eta": request.eta,
            "delivery": {k: v for k, v in (request.delivery_info or {}).items() if _plain(v)},
            **more,
        }
        self.client.rpush(RECORDS, json.dumps(seen))
        return seen

    def moment(self) -> int:
        """Microseconds, on the clock of Redis."""
        seconds, micros = self.client.time()
        return seconds * 1_000_000 + micros

    def wait_at_gate(self, gate: str) -> None:
        """Wait until the test opens ``gate``."""
        self.client.blpop([f"fleet:gate:{gate}"], timeout=_GATE_PATIENCE)

    def believe_for_ever(self, app: Celery, election: str, node: str) -> None:
        """Record, again and again, that this process believes it leads, while it does."""
        app.set_current()  # in this thread
        pause = threading.Event()
        while not pause.wait(_PROBE_STEP):
            with contextlib.suppress(redis.RedisError):
                before = current_term(election)
                at = self.moment()
                # Led before and after with one term: led when Redis said what time it was.
                if before is not None and current_term(election) == before:
                    belief = {"election": election, "node": node, "term": before, "at": at}
                    self.client.rpush(BELIEFS, json.dumps(belief))


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


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | type(None))


def build(config: dict[str, Any], *, current: bool = False) -> Celery:
    """The app that ``config`` asks for."""
    broker = config["broker"]
    if "django" in config:
        _set_up_django(config["django"])
    app = Celery(
        "fleet",
        broker=broker,
        backend=config.get("backend", broker),
        set_as_current=current,
    )
    app.conf.update(worker_hijack_root_logger=True, broker_connection_retry_on_startup=True)
    # Celery kills a spawned pool process that takes longer, as it may on a busy machine.
    app.conf.update(worker_proc_alive_timeout=60.0)
    app.conf.update(config.get("conf", {}))
    app.conf.beat_schedule = {
        name: _entry(entry) for name, entry in config.get("schedule", {}).items()
    }
    if config.get("install", True):
        install(app)
    recorder = _recorders[app] = Recorder(config["record"])
    define_tasks(app, recorder)
    define_steps(app, recorder)
    for name in config.get("unknown", ()):
        app.tasks.unregister(f"fleet.{name}")
    app.conf.update(config.get("conf_after_install", {}))
    return app


def _set_up_django(database: dict[str, Any]) -> None:
    """What a Django project's ``celery.py`` does before it makes its app."""
    os.environ[DATABASE_VARIABLE] = json.dumps(database)
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.support.django_settings"


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": f"fleet.{entry['task']}",
        "schedule": schedule(entry["every"]),
        "args": [object()] if entry.get("unsendable") else entry.get("args", []),
        "options": entry.get("options", {}),
    }


def define_tasks(app: Celery, recorder: Recorder) -> None:
    """Give ``app`` the tasks of the fleet."""
    saw = recorder.saw
    # Not shared: a test makes several apps with these tasks.
    task = functools.partial(app.task, bind=True, shared=False)

    @task(name="fleet.plain")
    def plain(self: Any, label: str = "") -> Any:
        return saw(self, "ran", label=label)

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
        deadline = time.monotonic() + _GATE_PATIENCE
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


def define_steps(app: Celery, recorder: Recorder) -> None:
    """Give ``app`` tasks to make canvases of: each says where it ran and adds one."""
    saw = recorder.saw
    task = functools.partial(app.task, bind=True, shared=False)

    def step(self: Any, value: Any = 0, label: str = "") -> int:
        if isinstance(value, list):  # a map gives one argument
            value, label = value
        saw(self, "ran", label=label, value=value, request=_facts(self.request))
        return value + 1

    def total(self: Any, values: list[int], label: str = "") -> int:
        saw(self, "ran", label=label, value=values)
        return sum(values)

    task(name="fleet.step")(step)
    task(name="fleet.total")(total)
    leader_only(task(_copy(step), name="fleet.lead_step"))
    leader_only(task(_copy(total), name="fleet.lead_total"))
    leader_only(on_follower="skip")(task(_copy(step), name="fleet.skip_step"))
    leader_only(on_follower="skip")(task(_copy(total), name="fleet.skip_total"))
    leader_only(send_from="leader")(task(_copy(step), name="fleet.own_step"))
    leader_only(send_from="leader")(task(_copy(total), name="fleet.own_total"))
    leader_only(on_follower="skip")(
        task(_copy(step), name="fleet.skip_silent_step", ignore_result=True)
    )
    task(_copy(step), name="fleet.based_step", base=LeaderTask)
    task(_copy(step), name="fleet.based_skip_step", base=LeaderTask, on_follower="skip")

    class ClassStep(LeaderTask):
        name = "fleet.class_step"

        def run(self, value: Any = 0, label: str = "") -> int:
            return step(self, value, label)

    app.register_task(ClassStep())

    @task(name="fleet.plain_fails")
    def plain_fails(self: Any, label: str = "") -> None:
        raise ValueError(label)

    @task(name="fleet.lead_errback")
    @leader_only
    def lead_errback(self: Any, failed: str, label: str = "") -> None:
        saw(self, "ran", label=label, failed=failed)

    @task(name="fleet.plain_errback")
    def plain_errback(self: Any, failed: str, label: str = "") -> None:
        saw(self, "ran", label=label, failed=failed)

    @task(name="fleet.lead_autoretry", autoretry_for=(ValueError,), retry_kwargs={"countdown": 0})
    @leader_only
    def lead_autoretry(self: Any, label: str = "") -> int:
        saw(self, "ran", label=label)
        if not self.request.retries:
            raise ValueError(label)
        return int(self.request.retries)

    @task(name="fleet.replaced")
    def replaced(self: Any, by: dict[str, Any]) -> Any:
        return self.replace(signature(by, app=app))

    @task(name="fleet.lead_replaced")
    @leader_only
    def lead_replaced(self: Any, by: dict[str, Any]) -> Any:
        return self.replace(signature(by, app=app))

    @task(name="fleet.lead_calls")
    @leader_only
    def lead_calls(self: Any, label: str = "") -> list[int]:
        other = app.tasks["fleet.lead_step"]
        return [other(1, label), other.apply((2, label)).result]

    @task(name="fleet.apply")
    def apply(self: Any, canvas: dict[str, Any], label: str = "") -> Any:
        result = signature(canvas, app=app).apply_async()
        return result.as_tuple()


def _copy(function: Any) -> Any:
    """A function of its own, for what is marked on it."""

    @functools.wraps(function)
    def copied(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return copied


def _facts(request: Any) -> Any:
    """Everything a task request says, as far as JSON can."""
    facts = {k: v for k, v in vars(request).items() if not k.startswith("_")}
    return json.loads(json.dumps(facts, default=repr))


# Shared tasks belong to every app of the process, so they are made once.
_recorders: weakref.WeakKeyDictionary[Celery, Recorder] = weakref.WeakKeyDictionary()


@leader_only
@shared_task(bind=True, name="fleet.shared_marked_above")
def shared_marked_above(self: Any, label: str = "") -> Any:
    return _recorders[self.app].saw(self, "ran", label=label)


@shared_task(bind=True, name="fleet.shared_marked_below")
@leader_only
def shared_marked_below(self: Any, label: str = "") -> Any:
    return _recorders[self.app].saw(self, "ran", label=label)


class MixedScheduler(LeaderMixin, PersistentScheduler):  # type: ignore[misc]
    """What a user writes to have a scheduler class of his own take part."""


def _probe(app: Celery, recorder: Recorder) -> None:
    def start(election: str, node: str) -> None:
        threading.Thread(
            target=recorder.believe_for_ever, args=(app, election, node), daemon=True
        ).start()

    # After the pool has forked: a child must not inherit a half-done import of ours.
    @signals.worker_ready.connect(weak=False)
    def with_the_worker(sender: Any, **_: Any) -> None:
        start("worker", sender.hostname)

    @signals.beat_init.connect(weak=False)
    def with_the_beat(**_: Any) -> None:
        start("beat", f"beat:{os.getpid()}")


def _rest(seconds: float) -> None:
    threading.Event().wait(seconds)


if "FAKETIME_DONT_FAKE_MONOTONIC" in os.environ:
    # libfaketime moves the deadline of time.sleep although its clock is not faked.
    time.sleep = _rest

if VARIABLE in os.environ:
    _config = json.loads(os.environ[VARIABLE])
    app = build(_config, current=True)
    if _config.get("probe"):
        _probe(app, Recorder(_config["record"]))
