"""Whatever one write leaves in the keys of an election, the fleet recovers, alone or by the cure.

Two processes' threads take part in many elections at once, so that all are spoilt and recover
in the time of one.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_leader.core.election import Election
from celery_leader.core.lease import CLOCK_SLACK, cursor_order
from celery_leader.core.requester import Requester
from celery_leader.core.timing import LONGEST_LEASE, Timing
from celery_leader.errors import LeaderError, StoreUnavailable
from celery_leader.runtime.election_thread import ElectionThread
from celery_leader.runtime.local_candidate import LocalCandidate
from celery_leader.runtime.shared_memory import LeasePages
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.store.survey import survey
from tests.support.fixtures import MakeStore
from tests.support.lease_requests import acquire
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

TIMING = Timing.of_lease(1.5)
PATIENCE = 90.0

Send = Callable[..., Any]


def key(kind: str, election: str) -> str:
    return f"celery-leader:celery:{kind}:{election}"


class Fleet:
    """Two processes' threads, each with a candidate in every election."""

    def __init__(self, make_store: MakeStore) -> None:
        self.threads = [ElectionThread(make_store()) for _ in range(2)]
        self.store = make_store()
        self.candidates: dict[str, list[LocalCandidate]] = {}

    def enters(self, election: str) -> None:
        self.candidates[election] = [
            LocalCandidate(
                Election(
                    Requester(
                        election,
                        holder=f"node{i}",
                        nonce=uuid.uuid4().hex,
                        timing=TIMING,
                        info='{"host":"h"}',
                        priority=i,
                        preempt=True,
                    )
                ),
                LeasePages().allot(),
            )
            for i in range(len(self.threads))
        ]
        for thread, candidate in zip(self.threads, self.candidates[election], strict=True):
            candidate.listeners.append(
                lambda change, c=candidate, r=thread: (
                    r.step_down(c, change.successor, change.reason)
                    if type(change).__name__ == "StepDownRequested"
                    else None
                )
            )
            thread.start(candidate)

    def led(self, election: str) -> bool:
        """Whether exactly one leads, and Redis says so too."""
        terms = [c.term() for c in self.candidates[election] if c.term() is not None]
        try:
            record = self.store.read(election)
        except StoreUnavailable:
            return False
        return record is not None and record.led and terms == [record.term]

    def hears(self, election: str) -> bool:
        """Whether each candidate listens from a moment that has come."""
        soon = 1000 * (time.time() + 60)
        cursors = [each.election.observed.cursor for each in self.candidates[election]]
        return all(cursor_order(cursor)[0] < soon for cursor in cursors)

    def settles(self, elections: list[str], what: str) -> None:
        """Every one of ``elections`` is led, and goes on being led."""
        for _ in range(2):
            wait_until(
                lambda: all(map(self.led, elections)),
                timeout=PATIENCE,
                what=f"{what}: {[e for e in elections if not self.led(e)][:4]} to be led",
            )
            time.sleep(TIMING.lease_duration)

    def end(self) -> None:
        for thread in self.threads:
            thread.stop(10)


@pytest.fixture
def fleet(make_store: MakeStore) -> Iterator[Fleet]:
    fleet = Fleet(make_store)
    yield fleet
    fleet.end()


def absurd_values() -> Iterator[tuple[str, str]]:
    """Of each field of a record, what no candidate can have written there."""
    now = time.time()
    numbers = ["9000000000000000", "9007199254740993", "1" * 40, "-1", "", "nan", "1e400", "x"]
    far = now + CLOCK_SLACK + 1e6
    for field, more in {
        "term": [f"{far * 1e6:.0f}", "0"],
        "lease": [f"{LONGEST_LEASE * 1000 + 1:.0f}", "0"],
        "expires_at": [f"{far * 1000:.0f}", f"{(now + 1e6) * 1000:.0f}", "0"],
        "elected_at": [f"{far * 1000:.0f}"],
        "attempt": ["999999999999"],
        "renewals": ["999999999999"],
        "transitions": ["999999999999"],
    }.items():
        yield from ((field, value) for value in [*numbers, *more])
    for field in ("state", "holder", "nonce", "successor", "event", "app", "asked", "format"):
        for value in (
            "",
            "dozing",
            "x" * 5000,
            "a\nb",
            "99999999999999-0",
            "99999999999999999999-9",
        ):
            yield field, value


def test_an_election_recovers_from_every_absurd_value_of_its_record_by_itself(
    fleet: Fleet, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt = {f"e{i}": each for i, each in enumerate(absurd_values())}
    for election in spoilt:
        fleet.enters(election)
    fleet.settles(list(spoilt), "at first")
    before = time.time()
    with redis_server.client() as client:
        for election, (field, value) in spoilt.items():
            client.hset(key("election", election), field, value)
    fleet.settles(list(spoilt), "spoilt")
    for election, each in spoilt.items():
        record = fleet.store.read(election)
        assert record is not None
        assert record.term / 1e6 < before + 1000, each
        assert record.lease_duration == TIMING.lease_duration, each
    complaints = [r for r in caplog.records if r.levelno > logging.WARNING or r.exc_info]
    assert not complaints


def test_an_election_recovers_when_its_spoilt_record_is_deleted(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    spoilt = {f"e{i}": each for i, each in enumerate(absurd_values())}
    for election in spoilt:
        fleet.enters(election)
    fleet.settles(list(spoilt), "at first")
    with redis_server.client() as client:
        for election, (field, value) in spoilt.items():
            client.hset(key("election", election), field, value)
        time.sleep(TIMING.renew_interval)
        for election in spoilt:
            client.delete(key("election", election))
    fleet.settles(list(spoilt), "cured")


def test_an_absurd_lease_of_a_leader_that_is_gone_is_waited_for_by_nobody(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    fleet.store.perform([acquire("gone", election="e", lease_duration=TIMING.lease_duration)])
    with redis_server.client() as client:
        client.hset(key("election", "e"), "lease", 9 * 10**15)
        fleet.enters("e")
        wait_until(
            lambda: (
                {"node0", "node1"} <= {each.node for each in fleet.store.register.candidates("e")}
            ),
            what="both to have asked",
        )
        client.delete(key("election", "e"))
    fleet.settles(["e"], "cured")


def hostile_writes() -> Iterator[tuple[str, Callable[[Send, str], object]]]:
    """Writes to the other keys, each with a name."""
    absurd = ["inf", "1e300", f"{(time.time() + 1e7) * 1000:.0f}"]
    for score in absurd:
        yield (
            f"a candidate heard of at {score}, before all others",
            lambda send, e, score=score: (
                send("ZADD", key("candidates", e), score, "ghost"),
                send("HSET", key("priorities", e), "ghost", "900"),
            ),
        )
    for line in ("99999999999999-0", "18446744073709551615-18446744073709551615"):
        yield (
            f"a line {line}",
            lambda send, e, line=line: send(
                "XADD", key("history", e), line, "kind", "elected", "node", "x", "term", "5"
            ),
        )
    yield (
        "the last possible line, and taken back",
        lambda send, e: (
            send("XADD", key("history", e), "18446744073709551615-18446744073709551615", "a", "b"),
            send("XDEL", key("history", e), "18446744073709551615-18446744073709551615"),
        ),
    )
    for kind in ("resigned", "reserved", "elected", "asked", "held", "freed", "ended", "\n"):
        yield (
            f"a forged line of kind {kind!r}",
            lambda send, e, kind=kind: send(
                *("XADD", key("history", e), "*", "kind", kind, "node", "node0"),
                *("term", "9999999999999999", "ended_at", "9999999999999999"),
            ),
        )
    for value in ("nan", "inf", "-1", "1e400", "x" * 5000):
        yield (
            f"priorities and facts {value[:10]}",
            lambda send, e, value=value: (
                send("HSET", key("priorities", e), "node0", value, "node1", value),
                send("HSET", key("facts", e), "node0", value, "node1\x1f2", value),
            ),
        )


def test_an_election_goes_on_whatever_is_written_to_its_other_keys(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    spoilt = {f"e{i}": each for i, each in enumerate(hostile_writes())}
    for election in spoilt:
        fleet.enters(election)
    fleet.settles(list(spoilt), "at first")
    with redis_server.client() as client:
        for election, (_, write) in spoilt.items():
            write(client.execute_command, election)
    fleet.settles(list(spoilt), "spoilt")
    # And news is heard: nobody waits for it behind a line of the far future.
    wait_until(
        lambda: not [what for election, (what, _) in spoilt.items() if not fleet.hears(election)],
        timeout=PATIENCE,
        what="everybody to hear news",
    )
    with redis_server.client() as client:
        for election in spoilt:
            for name, _ in client.zrange(key("candidates", election), 0, -1, withscores=True):
                assert name in (b"node0", b"node1")


def test_a_key_of_another_type_stops_an_election_until_it_is_deleted_and_no_longer(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    kinds = ["election", "history", "candidates", "priorities", "held", "facts"]
    spoilt = dict(zip(map("e{}".format, itertools.count()), kinds))  # noqa: B905
    for election in spoilt:
        fleet.enters(election)
    fleet.settles(list(spoilt), "at first")
    with redis_server.client() as client:
        for election, kind in spoilt.items():
            client.delete(key(kind, election))
            client.set(key(kind, election), "x")
        time.sleep(2 * TIMING.lease_duration)
        for election, kind in spoilt.items():
            client.delete(key(kind, election))
    fleet.settles(list(spoilt), "cured")


# -- what people are shown ------------------------------------------------------------------------


def test_a_forged_line_of_history_is_not_shown(fleet: Fleet, redis_server: RedisServer) -> None:
    fleet.enters("e")
    fleet.settles(["e"], "at first")
    store = fleet.store
    record = store.read("e")
    assert record is not None
    for _ in range(2):
        (leader,) = [c for c in fleet.candidates["e"] if c.term() is not None]
        fleet.threads[fleet.candidates["e"].index(leader)].step_down(leader)
        fleet.settles(["e"], "stepped down")
    record = store.read("e")
    assert record is not None
    # More than are there: the forged lines must not push true ones out of what is read.
    true = survey(store, ["e"], 100)["e"].leaderships
    assert len(true) >= 3
    millis = int(time.time() * 1000)
    forged: list[tuple[str, dict[str, Any]]] = [
        ("*", {"kind": "elected", "node": "evil", "term": record.term + 7}),
        ("*", {"kind": "elected", "node": "evil", "term": 9 * 10**15}),
        ("*", {"kind": "elected", "node": "evil", "term": record.term - 1}),
        ("*", {"kind": "elected", "node": "evil", "term": 7}),
        ("*", {"kind": "resigned", "node": record.holder, "term": record.term, "reason": "lie"}),
        ("*", {"kind": "ended", "node": record.holder, "term": record.term, "reason": "lie"}),
        ("*", {"kind": "resigned", "node": true[-1].node, "term": true[-1].term, "reason": "lie"}),
        ("*", {"kind": "ended", "node": "evil", "term": record.term, "reason": "lie"}),
        ("*", {"kind": "ended", "node": record.holder, "term": record.term, "ended_at": 5}),
        (f"{millis + 10**12}-0", {"kind": "elected", "node": "evil", "term": record.term + 8}),
    ]
    with redis_server.client() as client:
        for cursor, fields in forged:
            client.xadd(key("history", "e"), fields, id=cursor)
    # A candidate that writes meanwhile deletes a history with a line of the far future.
    assert survey(store, ["e"], 100)["e"].leaderships in (true, true[:1])


# -- records of other versions ----------------------------------------------------------------------


def test_a_record_with_more_fields_is_a_record(
    make_store: MakeStore, fleet: Fleet, redis_server: RedisServer
) -> None:
    fleet.enters("e")
    fleet.settles(["e"], "at first")
    with redis_server.client() as client:
        assert client.hget(key("election", "e"), "format") == b"1"
        client.hset(key("election", "e"), mapping={"format": "2", "region": "x" * 5000})
        before = fleet.store.read("e")
        fleet.settles(["e"], "with more fields")
        after = fleet.store.read("e")
    assert before is not None
    assert after is not None
    assert (after.term, after.holder) == (before.term, before.holder)


def test_a_state_of_a_later_version_is_waited_for_and_then_taken_over(
    make_store: MakeStore, redis_server: RedisServer, fleet: Fleet
) -> None:
    with redis_server.client() as client:
        now = time.time()
        client.hset(
            key("election", "e"),
            mapping={
                **{"holder": "later", "nonce": "n", "attempt": 1, "term": int(now * 1e6)},
                **{"expires_at": int((now + 2) * 1000), "lease": 2000, "state": "draining"},
                **{"successor": "", "renewals": 0, "transitions": 3, "app": "", "event": "0-0"},
                **{"elected_at": int(now * 1000), "format": 7},
            },
        )
    record = fleet.store.read("e")
    assert record is not None
    assert record.led
    fleet.enters("e")
    time.sleep(1)
    assert not fleet.led("e")
    fleet.settles(["e"], "after a lease")
    record = fleet.store.read("e")
    assert record is not None
    assert record.transitions == 4


def test_a_record_without_a_format_is_of_the_first_versions(
    make_store: MakeStore, redis_server: RedisServer, fleet: Fleet
) -> None:
    fleet.enters("e")
    fleet.settles(["e"], "at first")
    with redis_server.client() as client:
        client.hdel(key("election", "e"), "format")
    before = fleet.store.read("e")
    fleet.settles(["e"], "without a format")
    after = fleet.store.read("e")
    assert before is not None
    assert after is not None
    assert before.term == after.term


# -- the random kind -----------------------------------------------------------------------------------


def test_an_election_recovers_from_any_write_by_itself_or_by_the_cure_it_names(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    seed = int(os.environ.get("CELERY_LEADER_TEST_SEED") or random.SystemRandom().randrange(10**9))
    print(f"CELERY_LEADER_TEST_SEED={seed}")
    chance = random.Random(seed)
    elections = [f"e{i}" for i in range(60)]
    for election in elections:
        fleet.enters(election)
    fleet.settles(elections, "at first")
    written: dict[str, list[tuple[Any, ...]]] = {}
    with redis_server.client() as client:
        for election in elections:
            written[election] = [_any_write(chance, election) for _ in range(2)]
            for command in written[election]:
                client.execute_command(*command)
    print(written)
    time.sleep(2 * TIMING.lease_duration)
    with redis_server.client() as client:
        for election in elections:
            for _ in range(6):
                if (cure := _named_for_deletion(fleet.store, election)) is None:
                    break
                client.delete(cure)
    fleet.settles(elections, f"seed {seed}")


def _any_write(chance: random.Random, election: str) -> tuple[Any, ...]:
    kind = chance.choice(["election", "history", "candidates", "priorities", "facts"])
    value = chance.choice(
        [
            chance.randbytes(chance.randint(0, 40)),
            str(chance.randint(-(10**20), 10**20)).encode(),
            chance.choice([b"nan", b"inf", b"-1", b"1e400", b"0x10", b"{}", b"x" * 5000]),
        ]
    )
    if kind == "history":
        return ("XADD", key(kind, election), "*", "kind", "elected", "node", value, "term", value)
    if kind == "candidates":
        score = chance.choice(["inf", "-inf", "1e300", "-5"])
        return ("ZADD", key(kind, election), score, value or b"x")
    fields = [
        *("holder", "nonce", "term", "expires_at", "state", "event", "renewals", "attempt"),
        *("asked", "lease", "transitions", "elected_at", "successor", "app", "format"),
    ]
    return ("HSET", key(kind, election), chance.choice([*fields, "node0"]), value)


def _named_for_deletion(store: RedisLeaseStore, election: str) -> str | None:
    """The key that somebody is told to delete, if anybody is told of one."""
    for act in (lambda: store.read(election), lambda: store.register.candidates(election)):
        try:
            act()
        except LeaderError as exc:
            words = str(exc).replace(";", " ").replace(",", " ").split()
            return next(word for word in words if word.startswith("celery-leader:"))
    return None
