"""Reads the queue and the history over a connection of its own, and loses nothing."""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.chaos.app import BURST, ENTRY
from tests.chaos.judge import Arrival

_QUEUE = "celery"
_POSITION = "chaos:read"
_HISTORY = "celery-leader:celery:history:beat"
_STEP = 0.004
_TIMEOUT = 1.0

# What was received is trimmed by the next call, so a call may be lost, or made twice,
# or executed long after it was given up.
# KEYS queue position history
# ARGV received cursor
# -> trimmed, messages (the oldest last), time, history
_READ = """
local trimmed, received = tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[1])
if received > trimmed then
  redis.call('LTRIM', KEYS[1], 0, -(received - trimmed) - 1)
  redis.call('SET', KEYS[2], ARGV[1])
  trimmed = received
end
return {trimmed, redis.call('LRANGE', KEYS[1], 0, -1), redis.call('TIME'),
        redis.call('XRANGE', KEYS[3], ARGV[2], '+')}
"""


def connected(port: int) -> redis.Redis:
    """A client that gives up soon and does not try again by itself."""
    return redis.Redis(
        host="127.0.0.1",
        port=port,
        socket_timeout=_TIMEOUT,
        socket_connect_timeout=_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )


class Trap:
    """Acts as soon as ``count`` messages of one burst have been seen."""

    def __init__(self, armed_at: int, count: int, act: Callable[[Arrival], None]) -> None:
        self._armed_at = armed_at
        self._count = count
        self._act = act
        self._seen: list[Arrival] = []
        self.seen_when_fired = 0
        self.fired = threading.Event()

    @property
    def first_due(self) -> int:
        """When the burst fell due, in microseconds."""
        return min(arrival.tick for arrival in self._seen)

    def see(self, arrivals: list[Arrival]) -> None:
        """Look at what has arrived together."""
        self._seen += [
            arrival
            for arrival in arrivals
            if arrival.entry.startswith(BURST) and arrival.tick >= self._armed_at
        ]
        if len(self._seen) >= self._count and not self.fired.is_set():
            self._act(self._seen[-1])
            self.seen_when_fired = len(self._seen)
            self.fired.set()


class Drainer:
    """Everything that arrived in the queue, in its order, from ``with`` to its end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.arrivals: list[Arrival] = []
        #: Who was elected: node by term.
        self.elections: dict[int, str] = {}
        self.error: BaseException | None = None
        self._received = 0
        self._cursor = "-"
        self._latest_term = 0
        self._trap: Trap | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drainer", daemon=True)

    def __enter__(self) -> Drainer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(10)

    def set(self, trap: Trap | None) -> None:
        """Have ``trap`` look at what arrives from now on."""
        self._trap = trap

    @property
    def latest(self) -> Arrival | None:
        """The latest message."""
        return self.arrivals[-1] if self.arrivals else None

    def _run(self) -> None:
        client = connected(self._port)
        read = client.register_script(_READ)
        try:
            while not self._over.wait(_STEP):
                try:
                    reply = read(keys=[_QUEUE, _POSITION, _HISTORY], args=self._place)
                except redis.RedisError:
                    with contextlib.suppress(Exception):
                        client.connection_pool.disconnect()
                    self._over.wait(0.02)
                else:
                    self._take(*reply)
        except BaseException as exc:
            self.error = exc
            raise
        finally:
            client.close()

    @property
    def _place(self) -> list[Any]:
        return [self._received, self._cursor]

    def _take(self, trimmed: int, newest_first: list[bytes], time: Any, history: Any) -> None:
        assert trimmed == self._received, (
            f"Redis has lost data: {trimmed} messages read, not {self._received}"
        )
        at = int(time[0]) * 1_000_000 + int(time[1])
        self._arrived(list(reversed(newest_first)), at)
        self._received += len(newest_first)
        for cursor, fields in history:
            self._cursor = "(" + cursor.decode()
            line = dict(zip(fields[::2], fields[1::2], strict=True))
            if line[b"kind"] == b"elected":
                self._latest_term = int(line[b"term"])
                self.elections[self._latest_term] = line[b"node"].decode()

    def _arrived(self, messages: list[bytes], at: int) -> None:
        known_before = self._latest_term
        arrived = [_arrival(raw, at, known_before) for raw in messages]
        trap = self._trap
        if trap is not None:
            trap.see(arrived)
        self.arrivals += arrived


def _arrival(raw: bytes, at: int, elected_before: int) -> Arrival:
    headers = json.loads(raw)["headers"]
    return Arrival(
        entry=headers[ENTRY],
        tick=micros(datetime.datetime.fromisoformat(headers["leader_tick"])),
        term=headers["leader_term"],
        pid=sender(headers),
        at=at,
        elected_before=elected_before,
    )


def sender(headers: dict[str, Any]) -> int:
    """The process that sent a message with these headers."""
    name: str = headers["origin"]  # gen<pid>@<host>
    return int(name.partition("@")[0].removeprefix("gen"))


def micros(moment: datetime.datetime) -> int:
    """``moment`` in whole microseconds since the epoch."""
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return (moment - epoch) // datetime.timedelta(microseconds=1)
