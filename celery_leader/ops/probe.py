"""What one Redis says of itself, for whoever is to judge whether it can keep leases.

Guaranteed: nothing is written. What may be written is asked by queueing commands in a
transaction that is then discarded: Redis checks rights, role, memory and replicas when it
queues. What Redis does not tell (a user without rights to ``INFO`` or ``CONFIG``, a host
that has switched them off) is left out and never guessed.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from celery_leader.core.names import printable
from celery_leader.errors import StoreUnavailable
from celery_leader.store.client import RedisClient
from celery_leader.store.scripts import Keys

_ROUND_TRIPS = 7
_LONG_ENOUGH = 3.0  # seconds, for all of them
_SETTINGS = ("min-replicas-to-write", "min-replicas-max-lag", "timeout", "save", "appendfsync")
#: Keys looked at in one step, and the most steps, while looking for others' elections.
_SCANNED, _MOST_STEPS = 1000, 200


#: The part of a key that decides its slot: between the first { and the next }.
_HASH_TAG = re.compile(r"^[^{]*\{[^}]+\}")


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis, as it was a moment ago.

    Attributes:
        address: where it is, without a password.
        setting: the setting that names it.
        info: what ``INFO`` says; empty where it may not be asked.
        config: what ``CONFIG GET`` says; empty where it may not be asked.
        round_trips: seconds from question to answer, several times over.
        ahead: how many seconds its clock is ahead of this machine's.
        refused: what it will not do for this user at this moment, and why.
        transactions: whether that could be found out.
        namespaces: those that have elections here; ``None`` if there were too many keys to look.
        shards: how many a Redis Cluster has; ``None`` if it is none, or may not be asked.
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
    namespaces: frozenset[str] | None
    shards: int | None = None
    one_slot: bool = False

    @property
    def typical_round_trip(self) -> float:
        """The middle one of the round trips."""
        return sorted(self.round_trips)[len(self.round_trips) // 2]

    @property
    def longest_round_trip(self) -> float:
        """The longest one of them."""
        return max(self.round_trips)

    def as_json(self) -> dict[str, Any]:
        """What of it is not a matter of judgement, for scripts."""
        return {
            "redis": {
                "setting": self.setting,
                "address": self.address,
                "version": self.info.get("redis_version"),
                "role": self.info.get("role"),
                "round_trip_seconds": round(self.typical_round_trip, 6),
                "longest_round_trip_seconds": round(self.longest_round_trip, 6),
                "clock_ahead_seconds": round(self.ahead, 3),
            }
        }

    def number(self, field: str) -> int:
        """A field of ``INFO`` that is a number; 0 where it is not told."""
        text = self.info.get(field, "")
        return int(text) if text.isdecimal() else 0


class Probe:
    """Asks one Redis about itself.

    Args:
        client: a connection to it.
        address: where that leads, for people.
        setting: the setting that names it.
        keys: the keys that the elections of this app have.
        clock: seconds, for lengths of time.
    """

    def __init__(
        self,
        client: RedisClient,
        *,
        address: str,
        setting: str,
        keys: Keys,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._address = address
        self._setting = setting
        self._keys = keys
        self._clock = clock

    def look(self, elections: Iterable[str], queue: str | None) -> Server:
        """What there is to know of it.

        Args:
            elections: those whose keys must be readable and writable.
            queue: one that messages are sent to, where they go to this Redis.

        Raises:
            StoreUnavailable: it does not answer.
        """
        round_trips, ahead = self._clocks()
        refused = self._refused(elections, queue)
        info = self._info()
        return Server(
            self._address,
            self._setting,
            info=info,
            config=self._config(),
            round_trips=round_trips,
            ahead=ahead,
            refused=refused or {},
            transactions=refused is not None,
            namespaces=self._namespaces(),
            shards=self._shards() if info.get("cluster_enabled") == "1" else None,
            one_slot=_HASH_TAG.search(self._keys.prefix) is not None,
        )

    def _clocks(self) -> tuple[tuple[float, ...], float]:
        self._client.call_all([["PING"]])  # connects, which is no part of a round trip
        round_trips: list[float] = []
        offsets: list[tuple[float, float]] = []
        began = self._clock()
        while len(round_trips) < _ROUND_TRIPS and self._clock() - began < _LONG_ENOUGH:
            asked, before = self._clock(), _wall_clock()
            (told,) = self._client.call_all([["TIME"]])
            took = self._clock() - asked
            round_trips.append(took)
            if not isinstance(told, StoreUnavailable):
                server = int(told[0]) + int(told[1]) / 1e6
                offsets.append((took, server - before - took / 2))
        # The quickest answer tells the time best.
        return tuple(round_trips), min(offsets)[1] if offsets else 0.0

    def _info(self) -> dict[str, str]:
        (told,) = self._client.call_all([["INFO"]])
        if isinstance(told, StoreUnavailable):
            return {}
        lines = _text(told).splitlines()
        pairs = (line.partition(":") for line in lines if ":" in line and line[0] != "#")
        return {name: value for name, _, value in pairs}

    def _config(self) -> dict[str, str]:
        told = self._client.call_all([["CONFIG", "GET", name] for name in _SETTINGS])
        flat = [item for each in told if not isinstance(each, StoreUnavailable) for item in each]
        return {_text(k): _text(v) for k, v in zip(flat[::2], flat[1::2], strict=True)}

    def _shards(self) -> int | None:
        (told,) = self._client.call_all([["CLUSTER", "INFO"]])
        if isinstance(told, StoreUnavailable):
            return None
        found = re.search(r"cluster_size:([0-9]+)", _text(told))
        return int(found[1]) if found else None

    def _refused(self, elections: Iterable[str], queue: str | None) -> dict[str, str] | None:
        """What would be refused, and why; ``None`` if that cannot be found out."""
        wanted = [call for name in elections for call in _calls(self._keys, name)]
        if queue is not None:
            wanted += _calls_on_queue(self._keys.prefix + queue)
        begun, *told, ended = self._client.call_all([["MULTI"], *wanted, ["DISCARD"]])
        if isinstance(begun, StoreUnavailable):
            return None
        if isinstance(ended, StoreUnavailable):
            # Without the right to discard, everything asked from here on would be queued, too.
            self._client.close()
        refusals: dict[str, str] = {}
        for call, answer in zip(wanted, told, strict=True):
            if isinstance(answer, StoreUnavailable):
                refusals.setdefault(str(call[0]), str(answer))
        return refusals

    def _namespaces(self) -> frozenset[str] | None:
        before = f"{self._keys.prefix}celery-leader:"
        pattern = _literal(before) + "*:election:*"
        found: set[str] = set()
        cursor = b"0"
        for _ in range(_MOST_STEPS):
            (told,) = self._client.call_all(
                [["SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED, "TYPE", "hash"]]
            )
            if isinstance(told, StoreUnavailable):
                return None
            cursor, names = told
            found |= {
                printable(_text(key)[len(before) :].partition(":election:")[0]) for key in names
            }
            if cursor == b"0":
                return frozenset(found)
        return None


def _calls_on_queue(queue: str) -> list[Sequence[Any]]:
    """The commands on a queue that a dispatch runs."""
    return [["LPUSH", queue, "x"], ["LLEN", queue]]


def _calls(keys: Keys, election: str) -> Iterable[Sequence[Any]]:
    """Every command that the scripts of an election run, on the keys that they run it on."""

    def on(kind: str, *calls: str) -> Iterable[Sequence[Any]]:
        for call in calls:
            command, *rest = call.split()
            yield [command, keys.of(kind, election), *rest]

    yield ["TIME"]
    yield ["EVAL", "return 1", 1, keys.of("election", election)]
    yield ["EVALSHA", 40 * "0", 1, keys.of("election", election)]
    yield from on("election", "HMGET f", "HSET f v", "HINCRBY f 1", "EXISTS", "PEXPIRE 1")
    yield from on("history", "XADD * f v", "XREVRANGE + -", "PEXPIRE 1")
    yield ["XREAD", "BLOCK", 1, "STREAMS", keys.of("history", election), "$"]
    yield from on(
        "candidates",
        "ZADD 1 m",
        "ZREM m",
        "ZSCORE m",
        "ZRANGE 0 -1",
        "ZREVRANGE 0 -1",
        "ZRANGEBYSCORE 0 1",
        "ZREVRANGEBYSCORE 1 0",
        "PEXPIRE 1",
    )
    for kind in ("priorities", "held", "facts"):
        yield from on(kind, "HGET f", "HSET f v", "HDEL f", "HGETALL", "HKEYS", "EXISTS")
    if election == "beat":
        for kind in ("schedule", "projects"):
            yield from on(kind, "HGET f", "HSET f v", "HDEL f", "HGETALL")


def _wall_clock() -> float:
    return datetime.datetime.now(datetime.timezone.utc).timestamp()


def _literal(text: str) -> str:
    return "".join(f"\\{each}" if each in "*?[]\\" else each for each in text)


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return "".join(
        c if c.isprintable() or c in "\r\n" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
