"""Asks one Redis about itself.

Guaranteed: nothing is written. To find out whether a user may write, the commands are queued in
a transaction that is then discarded: Redis checks rights, role, memory and replicas when it
queues a command. A fact that Redis does not tell is left out and never guessed: the user may have
no right to ``INFO`` or ``CONFIG``, or the provider may have switched them off.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.clock import now, wall_clock
from celery_leader.runtime.session import RedisSession
from celery_leader.store.client import RedisClient
from celery_leader.store.scripts import Keys
from celery_leader.store.wire import text, whole_number

_ROUND_TRIPS = 7
_LONG_ENOUGH = 3.0  # seconds, for all round trips together
_SETTINGS = ("min-replicas-to-write", "timeout", "save")
#: The part of a key that decides its slot: between the first { and the next }.
_HASH_TAG = re.compile(r"^[^{]*\{[^}]+\}")


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis, as it was a moment ago.

    Attributes:
        address: its address, without a password.
        setting: the setting that names it.
        info: its ``INFO``; empty for a user without that right.
        config: some of its ``CONFIG``; empty for a user without that right.
        round_trips: the seconds that some answers took.
        ahead: how many seconds its clock is ahead of this machine's.
        refused: the commands that it refuses this user at this moment, and why.
        transactions: whether this user may use MULTI; if not, ``refused`` is unknown.
        shards: the shards of a Redis Cluster; ``None`` if it is none, or without the right.
        one_slot: whether the prefix of all keys keeps them together in a cluster.
    """

    address: str
    setting: str
    info: dict[str, str]
    config: dict[str, str]
    round_trips: tuple[float, ...]
    ahead: float
    refused: dict[str, str]
    transactions: bool
    shards: int | None = None
    one_slot: bool = False

    @property
    def version(self) -> str:
        """The version of Valkey or Redis; empty if unknown."""
        return self.info.get("valkey_version") or self.info.get("redis_version") or ""

    @property
    def product(self) -> str:
        """Its name and version, for people."""
        name = "Valkey" if "valkey_version" in self.info else "Redis"
        return f"{name} {self.version or 'of unknown version'}"

    @property
    def typical_round_trip(self) -> float:
        """The median of the round trips."""
        return sorted(self.round_trips)[len(self.round_trips) // 2]

    @property
    def longest_round_trip(self) -> float:
        """The longest of the round trips."""
        return max(self.round_trips)

    def number(self, field: str) -> int:
        """A number in ``INFO``; 0 if it is not told."""
        return whole_number(self.info.get(field, "")) or 0

    def setting_number(self, name: str) -> int:
        """A number in ``CONFIG``; 0 if it is not told."""
        return whole_number(self.config.get(name, "")) or 0

    def as_json(self) -> dict[str, Any]:
        """The most important facts, for scripts."""
        return {
            "setting": self.setting,
            "address": self.address,
            "version": self.version or None,
            "role": self.info.get("role"),
            "round_trip_seconds": round(self.typical_round_trip, 6),
            "longest_round_trip_seconds": round(self.longest_round_trip, 6),
            "clock_ahead_seconds": round(self.ahead, 3),
        }


def probe(session: RedisSession, elections: Iterable[str], queue: str | None) -> Server:
    """Ask one Redis for everything.

    Args:
        session: the connection.
        elections: those whose keys must be readable and writable.
        queue: a queue that messages are sent to; ``None`` if they go to another server.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    client, keys = session.client, session.keys
    round_trips, ahead = _clocks(client)
    refused = _refused(client, _all_calls(keys, elections, queue))
    info = _info(client)
    return Server(
        session.address,
        session.setting,
        info=info,
        config=_config(client),
        round_trips=round_trips,
        ahead=ahead,
        refused=refused or {},
        transactions=refused is not None,
        shards=_shards(client) if info.get("cluster_enabled") == "1" else None,
        one_slot=_HASH_TAG.search(keys.prefix) is not None,
    )


def _ask(client: RedisClient, *command: Any) -> Any:
    """The answer to one command; ``None`` if Redis refuses it."""
    (answer,) = client.call_all([command])
    return None if isinstance(answer, StoreUnavailable) else answer


def _clocks(client: RedisClient) -> tuple[tuple[float, ...], float]:
    _ask(client, "PING")  # connects, which is no part of a round trip
    round_trips: list[float] = []
    offsets: list[tuple[float, float]] = []
    began = now()
    while len(round_trips) < _ROUND_TRIPS and now() - began < _LONG_ENOUGH:
        asked, before = now(), wall_clock()
        told = _ask(client, "TIME")
        took = now() - asked
        round_trips.append(took)
        if told is not None:
            server = int(told[0]) + int(told[1]) / 1e6
            offsets.append((took, server - before - took / 2))
    # The quickest answer tells the time most exactly.
    return tuple(round_trips), min(offsets)[1] if offsets else 0.0


def _info(client: RedisClient) -> dict[str, str]:
    lines = text(_ask(client, "INFO")).split("\r\n")
    pairs = (line.partition(":") for line in lines if ":" in line and line[0] != "#")
    return {name: value for name, _, value in pairs}


def _config(client: RedisClient) -> dict[str, str]:
    told = client.call_all([["CONFIG", "GET", name] for name in _SETTINGS])
    flat = [item for each in told if not isinstance(each, StoreUnavailable) for item in each]
    return {text(k): text(v) for k, v in zip(flat[::2], flat[1::2], strict=True)}


def _shards(client: RedisClient) -> int | None:
    found = re.search(r"cluster_size:([0-9]+)", text(_ask(client, "CLUSTER", "INFO")))
    return int(found[1]) if found else None


def _refused(client: RedisClient, wanted: Sequence[Sequence[Any]]) -> dict[str, str] | None:
    """The commands that would be refused, and why; ``None`` if that cannot be found out."""
    begun, *told, ended = client.call_all([["MULTI"], *wanted, ["DISCARD"]])
    if isinstance(begun, StoreUnavailable):
        return None
    if isinstance(ended, StoreUnavailable):
        # This user may not discard, so Redis would queue every later command on this connection.
        client.close()
    refusals: dict[str, str] = {}
    for call, answer in zip(wanted, told, strict=True):
        if isinstance(answer, StoreUnavailable):
            refusals.setdefault(str(call[0]), str(answer))
    return refusals


def _all_calls(keys: Keys, elections: Iterable[str], queue: str | None) -> list[Sequence[Any]]:
    calls = [call for name in elections for call in _calls(keys, name)]
    if queue is not None:  # what a dispatch runs
        calls += [["LPUSH", keys.prefix + queue, "x"], ["LLEN", keys.prefix + queue]]
    return calls


def _calls(keys: Keys, election: str) -> Iterator[Sequence[Any]]:
    """Every command that the scripts of an election run, on the keys that they run it on."""

    def on(kind: str, *calls: str) -> Iterator[Sequence[Any]]:
        for call in calls:
            command, *rest = call.split()
            yield [command, keys.of(kind, election), *rest]

    yield ["TIME"]
    yield ["EVAL", "return 1", 1, keys.of("election", election)]
    yield ["EVALSHA", 40 * "0", 1, keys.of("election", election)]
    yield from on("election", "HMGET f", "HSET f v", "HINCRBY f 1", "EXISTS", "PEXPIRE 1")
    yield from on("history", "XADD * f v", "XREVRANGE + -", "PEXPIRE 1")
    yield ["XREAD", "BLOCK", 1, "STREAMS", keys.of("history", election), "$"]
    yield from on("candidates", "ZADD 1 m", "ZREM m", "ZSCORE m", "ZRANGE 0 -1", "PEXPIRE 1")
    yield from on("candidates", "ZREVRANGE 0 -1", "ZRANGEBYSCORE 0 1", "ZREVRANGEBYSCORE 1 0")
    for kind in ("priorities", "held", "facts"):
        yield from on(kind, "HGET f", "HSET f v", "HDEL f", "HGETALL", "HKEYS", "EXISTS")
    if election == "beat":
        for kind in ("schedule", "projects"):
            yield from on(kind, "HGET f", "HSET f v", "HDEL f", "HGETALL")
