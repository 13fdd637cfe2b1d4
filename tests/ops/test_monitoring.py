"""A real Prometheus scrapes a real fleet: every query of the dashboard, and the alerts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet, Process
from tests.support.prometheus import BINARY, Prometheus
from tests.support.redis_server import RedisServer, free_port
from tests.support.services import must_have
from tests.support.waiting import wait_until

MONITORING = ROOT / "examples" / "monitoring"
#: Not there before something happens: a forwarded task, a leader that is asked to step down.
_ONLY_IN_TROUBLE = {"celery_leader_forwarded_total", "celery_leader_seconds_stepping_down"}
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())


@pytest.fixture
def prometheus_or_skip(real: None) -> None:
    must_have(BINARY, "no prometheus on PATH (Debian: apt-get install prometheus)")


class Scraped:
    """A fleet whose processes each serve metrics, and the Prometheus that scrapes them."""

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        self.fleet = fleet
        self.ports: dict[str, int] = {}
        self.workers = [self._process(fleet.worker, name) for name in ("one", "two")]
        self.beats = [self._process(fleet.beat, name) for name in ("beat-one", "beat-two")]
        self.targets = [f"127.0.0.1:{port}" for port in self.ports.values()]
        directory.mkdir()
        self.prometheus = Prometheus(directory, self.targets, MONITORING / "alerts.yml")

    def _process(self, start: Any, name: str) -> Process:
        self.ports[name] = free_port()
        conf = {"leader_metrics_port": self.ports[name], "leader_metrics_address": "127.0.0.1"}
        process: Process = start(name, conf=conf)
        return process.says("metrics at http://127.0.0.1:")

    def value(self, expression: str, **labels: str) -> float | None:
        """The only value of ``expression`` that has these labels."""
        found = [
            value
            for has, value in self.prometheus.query(expression).items()
            if labels.items() <= dict(has).items()
        ]
        assert len(found) <= 1, found
        return found[0] if found else None


@pytest.fixture
def scraped(
    prometheus_or_skip: None, new_fleet: NewFleet, own_redis: RedisServer, tmp_path: Path
) -> Iterator[Scraped]:
    schedule = {"often": {"task": "fleet.plain", "every": 0.5}}
    with ExitStack() as stack:
        scraped = Scraped(new_fleet(own_redis.url, schedule=schedule), tmp_path / "prometheus")
        stack.enter_context(scraped.prometheus)
        yield scraped


def queries() -> list[tuple[str, str]]:
    """The queries of the dashboard, as Grafana would send them, by their panels' titles."""
    return [
        (
            panel["title"],
            target["expr"].replace("$election", ".*").replace("$__rate_interval", "1m"),
        )
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]


def test_every_query_of_the_dashboard_has_an_answer_on_a_fleet_that_has_seen_trouble(
    scraped: Scraped, own_redis: RedisServer
) -> None:
    fleet, prometheus = scraped.fleet, scraped.prometheus
    leader = fleet.leader()
    assert scraped.prometheus.wait_for("celery_leader_leading == 1")
    follower = fleet.followers()[0]
    # Forwarded and skipped: sent to the queue of a follower.
    fleet.send("lead", "astray", queue=follower.name)
    fleet.send("skippable", "astray", queue=follower.name)
    fleet.saw("ran", "astray")
    # Unanswered: a Redis that stands still until who leads has given up.
    own_redis.pause()
    try:
        wait_until(lambda: "lost contact" in leader.log, what="the leader to give up")
    finally:
        own_redis.resume()
    fleet.leader()
    # Refused: a beat whose lease another has by the time it dispatches.
    beat = fleet.leader("beat")
    beat.tell(signal.SIGSTOP)
    other = fleet.leader("beat", other_than=beat)
    beat.tell(signal.SIGCONT)
    assert other is not beat

    # A refused tick needs a beat stopped between its look at the lease and its script.
    rare = {"sum by (reason) (rate(celery_leader_dispatch_refused_total[1m]))"}
    for title, query in queries():
        if query not in rare:
            assert prometheus.wait_for(query), title


def test_who_leads_is_seen_and_a_stop_is_seen_as_a_change(scraped: Scraped) -> None:
    fleet = scraped.fleet
    leader = fleet.leader()
    assert wait_until(
        lambda: scraped.value("celery_leader_leading == 1", election="worker"),
        what="a leader to be scraped",
    )
    term = int(fleet.record()["term"])
    assert scraped.value("max(celery_leader_term{election='worker'})") == term
    leader.terminate()
    after = fleet.leader(other_than=leader)
    wait_until(
        lambda: scraped.value("celery_leader_leading", election="worker", node=after.node) == 1.0,
        what="the next leader to be scraped",
    )
    grown = wait_until(
        lambda: scraped.value(
            "celery_leader_transitions_total", election="worker", node=after.node
        ),
        what="the change to be counted",
    )
    assert grown >= 2.0
    wait_until(
        lambda: (scraped.value("sum(celery_leader_dispatched_total)") or 0.0) > 2.0,
        what="dispatched ticks to be counted",
    )


def test_an_alert_waits_while_nobody_leads_and_none_does_while_all_is_well(
    scraped: Scraped,
) -> None:
    prometheus = scraped.prometheus
    for election in ("worker", "beat"):
        scraped.fleet.leader(election)
        assert prometheus.wait_for(f"sum(celery_leader_leading{{election='{election}'}}) == 1")
    assert prometheus.firing() == set()
    groups = wait_until(lambda: prometheus.get("rules"), what="the rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules
    wait_until(
        lambda: all(
            rule["health"] == "ok"
            for group in prometheus.get("rules")["groups"]
            for rule in group["rules"]
        ),
        what="every rule to have been evaluated",
    )
    for rule in rules:  # of nothing that is not measured
        for name in set(re.findall(r"celery_leader_\w+", rule["query"])) - _ONLY_IN_TROUBLE:
            assert prometheus.wait_for(f"count({name})"), rule["name"]


def test_alerts_fire_when_they_should(prometheus_or_skip: None) -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", str(Path(__file__).with_name("alerts_test.yml"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
