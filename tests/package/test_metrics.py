"""What is scraped of elections, and that a scrape asks nobody but this process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from celery import Celery
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from celery_leader import LeaderElection, LeaderError
from celery_leader.core.events import (
    Deposed,
    Dispatched,
    DispatchRefused,
    Elected,
    Event,
    Followed,
    Forwarded,
    Renewed,
    Skipped,
    Unanswered,
)
from celery_leader.metrics import LeaderMetrics
from celery_leader.metrics_server import serve_metrics
from celery_leader.runtime.app_runtime import runtime_of
from tests.support.fixtures import RunPython
from tests.support.waiting import wait_until

NODE = {"election": "worker", "node": "a"}
BEAT = {"election": "beat", "node": "b"}


@pytest.fixture
def app() -> Celery:
    return Celery("measured", broker="memory://", set_as_current=False)


@pytest.mark.parametrize(
    ("event", "name", "labels"),
    [
        (Followed("worker", "a", 7, "b"), "transitions_total", NODE),
        (
            Deposed("worker", "a", 7, "expired", 2.0),
            "depositions_total",
            {**NODE, "reason": "expired"},
        ),
        (Renewed("worker", "a", 7, 0.002), "renewal_seconds_count", NODE),
        (Unanswered("worker", "a", 7), "failed_renewals_total", NODE),
        (Unanswered("worker", "a", None), "unanswered_total", NODE),
        (Dispatched("beat", "b", 7, "sweep"), "dispatched_total", BEAT),
        (
            DispatchRefused("beat", "b", 7, "sweep", "refused"),
            "dispatch_refused_total",
            {**BEAT, "reason": "refused"},
        ),
        (
            Forwarded("worker", "a", "proj.sweep", "id", "celery.leader"),
            "forwarded_total",
            {**NODE, "task": "proj.sweep"},
        ),
        (
            Skipped("worker", "a", "proj.sweep", "id", "sender"),
            "skipped_total",
            {**NODE, "task": "proj.sweep", "by": "sender"},
        ),
    ],
)
def test_each_event_is_counted_once(
    app: Celery, event: Event, name: str, labels: dict[str, str]
) -> None:
    registry = CollectorRegistry()
    LeaderMetrics(app, registry)
    runtime_of(app).observers.tell(event)
    assert registry.get_sample_value(f"celery_leader_{name}", labels) == 1.0


def test_a_first_failure_is_a_rise_from_nought(app: Celery) -> None:
    registry = CollectorRegistry()
    LeaderMetrics(app, registry)
    runtime_of(app).observers.tell(Followed("worker", "a", 7, "b"))
    assert registry.get_sample_value("celery_leader_failed_renewals_total", NODE) == 0.0
    runtime_of(app).observers.tell(Elected("beat", "b", 7))
    assert registry.get_sample_value("celery_leader_dispatched_total", BEAT) == 0.0


def test_an_unanswered_campaign_is_no_failed_renewal(app: Celery) -> None:
    registry = CollectorRegistry()
    LeaderMetrics(app, registry)
    runtime_of(app).observers.tell(Unanswered("worker", "a", None))
    assert registry.get_sample_value("celery_leader_failed_renewals_total", NODE) is None


def test_who_leads_is_scraped_as_it_stands(redis_url: str) -> None:
    app = Celery("measured", broker=redis_url, set_as_current=False)
    registry = CollectorRegistry()
    LeaderMetrics(app, registry)
    with LeaderElection(app, "reports") as first, LeaderElection(app, "reports") as second:
        assert first.wait_until_leader(30) or second.wait_until_leader(30)
        leader, follower = (first, second) if first.is_leader() else (second, first)

        def value(name: str, election: LeaderElection) -> float | None:
            labels = {"election": "reports", "node": election.node}
            return registry.get_sample_value(f"celery_leader_{name}", labels)

        assert value("leading", leader) == 1.0
        assert value("leading", follower) == 0.0
        assert value("term", leader) == leader.term()
        assert value("seconds_since_renewal", follower) is None
        renewed = value("seconds_since_renewal", leader)
        assert renewed is not None
        assert renewed >= 0.0
        contact = value("seconds_since_contact", leader)
        assert contact is not None
        assert contact >= 0.0
        leader.resign()
        assert value("leading", leader) != 1.0


def test_a_registry_takes_the_metrics_of_one_app(app: Celery) -> None:
    registry = CollectorRegistry()
    LeaderMetrics(app, registry)
    other = Celery("other", broker="memory://", set_as_current=False)
    with pytest.raises(LeaderError, match="registry"):
        LeaderMetrics(other, registry)
    assert b"celery_leader_leading" in generate_latest(registry)


@pytest.mark.parametrize("port", [-1, 1.5, 65536, "9808", True])
def test_a_port_that_is_none_is_refused_by_name(app: Celery, port: object) -> None:
    app.conf.leader_metrics_port = port
    with pytest.raises(LeaderError, match="leader_metrics_port"):
        runtime_of(app).check()


def test_nothing_is_imported_or_served_unless_a_port_is_set(python: RunPython) -> None:
    code = (
        "import sys, celery_leader; from celery import Celery;"
        "from celery_leader.metrics_server import serve_metrics;"
        "serve_metrics(Celery('app', broker='memory://'));"
        "print('prometheus_client' in sys.modules)"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "False", done.stderr


def test_without_its_package_metrics_say_what_to_install(python: RunPython) -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None;"
        "from celery import Celery; from celery_leader.metrics_server import serve_metrics;"
        "app = Celery('app', broker='memory://'); app.conf.leader_metrics_port = 0;"
        "serve_metrics(app)"
    )
    done = python("-c", code)
    assert "LeaderError: metrics need prometheus-client: pip install" in done.stderr


def test_a_port_that_is_taken_is_an_error_in_the_log_and_is_served_once_it_is_free(
    app: Celery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_leader.metrics_server._RETRY", 0.1)
    holder = socket.create_server(("127.0.0.1", 0))
    port = holder.getsockname()[1]
    app.conf.update(leader_metrics_port=port, leader_metrics_address="127.0.0.1")
    caplog.set_level("INFO", logger="celery_leader.metrics_server")
    with _empty_registry():
        serve_metrics(app)
        assert "leader_metrics_port: no metrics while" in caplog.messages[-1]
        holder.close()
        wait_until(lambda: "metrics at" in caplog.messages[-1], what="the port to be tried again")
        assert len(caplog.messages) == 2
        told = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read()
        assert b"celery_leader_leading" in told


def test_who_sets_only_a_port_is_reached_from_this_machine_alone(app: Celery) -> None:
    app.conf.leader_metrics_port = 9808
    assert runtime_of(app).settings.metrics_address == "127.0.0.1"


def test_a_second_app_of_a_process_is_told_that_the_port_is_taken(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.update(leader_metrics_port=0, leader_metrics_address="127.0.0.1")
    caplog.set_level("INFO", logger="celery_leader.metrics_server")
    with _empty_registry():
        serve_metrics(app)
        url = caplog.messages[-1].removeprefix("metrics at ")
        assert b"celery_leader_leading" in urllib.request.urlopen(url, timeout=30).read()
        serve_metrics(app)  # a second time it does nothing
    assert len(caplog.messages) == 1
    port = int(url.rpartition(":")[2].partition("/")[0])
    second = Celery("second", broker="memory://", set_as_current=False)
    second.conf.update(leader_metrics_port=port, leader_metrics_address="127.0.0.1")
    with _empty_registry():
        serve_metrics(second)
    assert "leader_metrics_port: no metrics" in caplog.messages[-1]


@contextlib.contextmanager
def _empty_registry() -> Iterator[None]:
    """What is registered for the whole process meanwhile is removed afterwards."""
    before = set(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


@pytest.mark.usefixtures("real")
def test_what_is_forked_off_does_not_keep_the_port_of_who_has_ended() -> None:
    code = """if True:
        import logging, os, signal, sys
        from celery import Celery
        from celery_leader.metrics_server import serve_metrics
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
        app = Celery("app", broker="memory://")
        app.conf.update(leader_metrics_port=0, leader_metrics_address="127.0.0.1")
        serve_metrics(app)
        sys.stdout.flush()
        if os.fork():
            os._exit(0)
        print(os.getpid(), flush=True)
        signal.pause()
    """
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    url, child = done.stdout.readline().split()[-1], int(done.stdout.readline())
    try:
        assert done.wait(30) == 0
        os.kill(child, 0)  # it lives
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(url, timeout=30)
    finally:
        os.kill(child, signal.SIGKILL)
        done.stdout.close()
