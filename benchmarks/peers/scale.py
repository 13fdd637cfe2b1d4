"""Unit costs at the sizes of a large installation, and what they add up to."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from kombu import Connection

from benchmarks import dispatch
from benchmarks.peers.growth import cpu_used
from celery_leader.core.election import Election
from celery_leader.core.lease import Granted, Reply, Request
from celery_leader.core.requester import Requester
from celery_leader.core.timing import Timing
from celery_leader.runtime.lease_source import LeaseSource
from celery_leader.store.client import RedisClient
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.store.scripts import Keys
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

_DISPATCHES = 1_000
_HISTORY = 256  # lines, as leader_history_size is by default


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is asked about."""

    candidates: int = 10_000
    elections: int = 1_000
    entries: int = 100_000


@dataclass(frozen=True, slots=True)
class Scale:
    """What was measured at these sizes. CPU is Redis's, in seconds; memory in bytes."""

    sizes: Sizes
    ask_cpu: float  # a follower's question, with so many candidates
    renew_cpu: float  # a renewal, with so many candidates
    candidate_memory: float  # in the register of candidates
    connection_memory: float  # of a client that waits in XREAD
    election_memory: float  # with a full history
    pipeline_seconds: float  # renewals of so many elections by one process, in one round trip
    entry_memory: float  # the state of one entry
    dispatch_cpu: float  # of one tick
    takeover_seconds: float  # by a new leader, of so many entries
    idle_cpu: float  # share of one CPU of a leading beat with so many entries, none due


def measure(sizes: Sizes) -> Scale:
    """Measure all of it, on a server for each part."""
    with RedisServer() as server:
        ask, renew, candidate, connection = _candidates(server, sizes.candidates)
    with RedisServer() as server:
        election, pipeline = _elections(server, sizes.elections)
    with RedisServer() as server:
        takeover = dispatch.takeover(server, sizes.entries)
        with server.client() as client:
            used = client.memory_usage("celery-leader:celery:schedule:beat", samples=0)
        entry = used / sizes.entries
    with RedisServer() as server:
        cpu = _dispatch_cpu(server)
    with RedisServer() as server:
        idle = dispatch.idle_cpu(server, sizes.entries)
    return Scale(
        sizes, ask, renew, candidate, connection, election, pipeline, entry, cpu, takeover, idle
    )


def _candidates(server: RedisServer, count: int) -> tuple[float, float, float, float]:
    store = _store(server)
    # None of them is forgotten meanwhile.
    leader, *followers = [_campaigning("beat", i, lease=1000.0) for i in range(count)]
    moment = _perform(store, leader, time.monotonic())
    asking = max(1, count // 4)
    for follower in followers[:-asking]:
        _perform(store, follower, moment)

    def ask() -> None:
        for follower in followers[-asking:]:
            _perform(store, follower, moment)

    asked = _cpu_of(server, ask) / asking
    renewals = max(200, count // 10)

    def renew() -> None:
        later = moment
        for _ in range(renewals):
            # A little later than due, which floating point may make of it.
            later = _perform(store, leader, later + leader.timing.renew_interval + 0.001)

    renewing = _cpu_of(server, renew) / renewals
    with server.client() as client:
        register = client.memory_usage("celery-leader:celery:candidates:beat", samples=0)
        waiting = [server.client() for _ in range(20)]
        clients = [each.__enter__() for each in waiting]
        for each in clients:
            each.ping()
        known = client.client_list()
        connection = statistics.median(int(one["tot-mem"]) for one in known)
        for each in waiting:
            each.__exit__(None, None, None)
    store.close()
    return asked, renewing, register / count, connection


def _elections(server: RedisServer, count: int) -> tuple[float, float]:
    store = _store(server)
    elections = [_campaigning(f"e{i}", 0, lease=1000.0) for i in range(count)]
    moment = time.monotonic()
    for election in elections:
        _perform(store, election, moment)
    later = moment + elections[0].timing.renew_interval + 0.001
    renewals = [election.next_action(later) for election in elections]
    began = time.perf_counter()
    replies = store.perform([each for each in renewals if isinstance(each, Request)])
    pipeline = time.perf_counter() - began
    assert all(isinstance(reply, Granted) for reply in replies)
    with server.client() as client:
        for _ in range(_HISTORY):
            client.xadd(
                "celery-leader:celery:history:e0",
                {"kind": "elected", "node": "beat@host:12345", "term": 10**15, "successor": ""},
            )
        keys = list(client.scan_iter("celery-leader:celery:*:e0"))
        memory = sum(client.memory_usage(key, samples=0) for key in keys)
    store.close()
    return float(memory), pipeline


def _dispatch_cpu(server: RedisServer) -> float:
    app = dispatch.app_on(server.url)
    scheduler = dispatch.leader(app, 2 * _DISPATCHES)
    with server.client() as client:

        def sends() -> bool:
            scheduler.tick()
            return bool(client.llen("celery"))

        wait_until(sends, what="the first dispatch")
        before = client.llen("celery")

        def send() -> None:
            for _ in range(_DISPATCHES):
                scheduler.tick()

        cpu = _cpu_of(server, send)
        sent = client.llen("celery") - before
    scheduler.close()
    scheduler.close()
    return cpu / max(1, sent)


def _campaigning(name: str, number: int, *, lease: float) -> Election:
    election = Election(
        Requester(
            name,
            holder=f"beat@host-{number:05}:12345",
            nonce=uuid.uuid4().hex,
            timing=Timing.of_lease(lease),
        )
    )
    election.campaign(0.0)
    return election


def _perform(store: RedisLeaseStore, election: Election, moment: float) -> float:
    """Do what ``election`` wants at ``moment``; the moment."""
    request = election.next_action(moment)
    assert isinstance(request, Request), request
    reply = store.perform([request])[0]
    assert isinstance(reply, Reply), reply
    election.replied(request, reply, sent_at=moment, now=moment)
    return moment


def _cpu_of(server: RedisServer, act: Callable[[], object]) -> float:
    with server.client() as client:
        before = cpu_used(client)
        act()
        return cpu_used(client) - before


def _store(server: RedisServer) -> RedisLeaseStore:
    source = LeaseSource(Connection(server.url), setting="broker_url", operation_timeout=60.0)
    client = RedisClient(source.connect, setting="broker_url", operation_timeout=60.0)
    return RedisLeaseStore(client, Keys("celery"), history_size=_HISTORY)
