"""Each link of a leader broken by itself: somebody who can do a leader's work leads all the same.

A process talks to the Redis of its elections, to its broker and to its result backend. Each
is a proxy of its own here, and is cut, silent or slow while the others are well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet, Process
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

LEASE = 3.0
LEASES, BROKER, BACKEND = "leases", "broker", "backend"
#: How a link is broken.
BREAKS = {
    "reset": lambda proxy: proxy.refuse(),
    "mute": lambda proxy: proxy.stall(),
    "slow": lambda proxy: proxy.slow(0.02),
}
_SLACK = 8.0  # seconds that a machine with much to do may be late


class Links:
    """One process's way to each server, all of which are one Redis."""

    def __init__(self, proxies: dict[str, Proxy]) -> None:
        self.proxies = proxies

    @property
    def config(self) -> dict[str, Any]:
        """Of the process behind the proxies."""
        return {
            "broker": self.proxies[BROKER].url,
            "backend": self.proxies[BACKEND].url,
            "conf": {"leader_url": self.proxies[LEASES].url},
        }

    def broken(self, link: str, how: str) -> Proxy:
        """Break one of them."""
        proxy = self.proxies[link]
        BREAKS[how](proxy)
        return proxy


@pytest.fixture
def links(redis_server: RedisServer) -> Iterator[Links]:
    with ExitStack() as stack:
        names = (LEASES, BROKER, BACKEND)
        proxies = {name: stack.enter_context(Proxy(redis_server.port)) for name in names}
        yield Links(proxies)


@pytest.fixture
def fleet(new_fleet: NewFleet, redis_url: str) -> Fleet:
    conf = {"leader_lease_duration": LEASE, "leader_url": redis_url}
    # A pool process waits for a backend that does not take its result, whoever leads.
    often = {"task": "lead", "every": 0.4, "args": ["often"], "options": {"ignore_result": True}}
    return new_fleet(conf=conf, schedule={"often": often})


class Pair:
    """A worker and a beat that lead, behind proxies, and two that follow and have none."""

    def __init__(self, fleet: Fleet, links: Links) -> None:
        self.fleet = fleet
        self.far_worker = fleet.worker("far", **links.config)
        self.far_beat = fleet.beat("far beat", **links.config)
        assert fleet.leader() is self.far_worker.says("consuming from celery.leader")
        assert fleet.leader("beat") is self.far_beat
        self.near_worker, self.near_beat = fleet.worker("near"), fleet.beat("near beat")
        fleet.takes_part(self.near_worker.says(" ready."))
        fleet.takes_part(self.near_beat, "beat")

    def leaders(self, where: str) -> None:
        """Wait until those of ``where``, ``far`` or ``near``, lead and do a leader's work."""
        worker: Process = getattr(self, f"{where}_worker")
        beat: Process = getattr(self, f"{where}_beat")
        wait_until(
            lambda: self.fleet.leader() is worker and self.fleet.leader("beat") is beat,
            2 * LEASE + _SLACK,
            f"those to lead that are {where}",
        )
        term = int(self.fleet.record("beat")["term"])
        wait_until(
            lambda: any(
                each["node"] == worker.node and each["headers"]["leader_term"] == term
                for each in self.fleet.records("ran", "often")
            ),
            what=f"a task of the beat to run on the worker, both of which are {where}",
        )


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("link", [LEASES, BROKER, BACKEND])
def test_those_lead_whose_links_let_them_work(
    fleet: Fleet, links: Links, link: str, how: str
) -> None:
    pair = Pair(fleet, links)
    proxy = links.broken(link, how)
    useless = link != BACKEND and how != "slow"
    pair.leaders("near" if useless else "far")
    for process, elections in ((pair.far_worker, 2), (pair.far_beat, 1)):
        lost = elections if useless and link == BROKER else 0
        assert process.log.count("the broker does not answer") == lost
    if useless and link == BROKER:
        said = fleet.run("leader", "history", "--election", "worker").stdout
        assert "broker lost" in said, said
    if useless:
        proxy.restore()
        for process in (pair.near_worker, pair.near_beat):
            assert process.terminate() == 0
        pair.leaders("far")
    # One due time may be sent twice here, and then it is the same task.
    sent = {each["id"]: each["headers"]["leader_tick"] for each in fleet.records("ran", "often")}
    assert len(set(sent.values())) == len(sent)
    assert "Traceback" not in pair.far_beat.log


def test_with_the_broker_away_from_all_nobody_leads_until_it_is_back(
    fleet: Fleet, links: Links
) -> None:
    beats = [fleet.beat(name, **links.config) for name in ("b1", "b2")]
    for beat in beats:
        fleet.takes_part(beat, "beat")
    proxy = links.broken(BROKER, "reset")
    # Each that leads tries for a lease; who has tried does not again before it can connect.
    for beat in beats:
        beat.says("the broker does not answer")
    # The last of them says so before it gives its lease up.
    wait_until(lambda: fleet.record("beat")["state"] == "released", what="the last to resign")
    changes = len(fleet.history("beat"))
    seen = fleet.moment()
    wait_until(lambda: fleet.moment() > seen + 2 * LEASE, what="two leases to pass")
    assert fleet.record("beat")["state"] == "released"
    assert len(fleet.history("beat")) == changes
    proxy.restore()
    fleet.leader("beat")
    sent = len(fleet.messages("celery.leader"))
    wait_until(lambda: len(fleet.messages("celery.leader")) > sent + 3, what="a beat that sends")
