"""Leases in Redis: one hash per election, judged by the server's clock.

Guaranteed: every verb is one script, so it happens whole or not at all, and asking
again after a lost reply gives the same answer. A record has no TTL, because the
``volatile-*`` policies evict keys that have one first. Not guaranteed: that Redis
keeps the record (eviction, a flush, a replica that lagged); ``election.py`` says
what a candidate makes of that.

Keys, which are public (``{namespace}`` is ``leader_namespace``):

=====================================================  =========================================
``celery-leader:{namespace}:election:{name}``          hash, the record
``celery-leader:{namespace}:history:{name}``           stream, who was elected and who resigned
``celery-leader:{namespace}:candidates:{name}``        sorted set, node by last contact in ms
=====================================================  =========================================

One socket, owned by one thread; the redis-py client's own retries are not used,
because one renewal against a mute server then takes close to a minute.
"""

from __future__ import annotations

import hashlib
import selectors
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from .errors import StoreUnavailable
from .lease import (
    Acquire,
    Announcement,
    Candidate,
    Granted,
    Missing,
    Record,
    Refused,
    Release,
    Released,
    Renew,
    Reply,
    Request,
    State,
)

# Every script answers {what, server time in us, the record's fields ...}.
PREAMBLE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local micros = time[1] * 1000000 + time[2]
local FIELDS = {'holder', 'nonce', 'attempt', 'term', 'expires_at', 'lease', 'state', 'successor',
                'renewals', 'transitions', 'elected_at', 'app', 'event'}
local function load()
  local values, record = redis.call('HMGET', KEYS[1], unpack(FIELDS)), {}
  for i, field in ipairs(FIELDS) do record[field] = values[i] end
  record.left = (tonumber(record.expires_at) or 0) - now
  return record
end
local function answer(what)
  -- '%.0f', because tostring() would print a term as 1.79e+15.
  return {what, string.format('%.0f', micros), redis.call('HMGET', KEYS[1], unpack(FIELDS))}
end
"""

_SEEN = """
local function seen(node, lease)
  redis.call('ZADD', KEYS[3], now, node)
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - 3 * lease)
  redis.call('PEXPIRE', KEYS[3], 3 * lease)
end
"""

# KEYS record history candidates
# ARGV holder nonce attempt lease_ms seen_term live_term watched_term watched_renewals
#      silent from_missing app history_size
# -> granted | refused | missing
_ACQUIRE = (
    PREAMBLE
    + _SEEN
    + """
local holder, nonce, attempt, lease = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local seen_term, live_term = tonumber(ARGV[5]), tonumber(ARGV[6])
local from_missing = ARGV[10] == '1'
local record = load()
local term = tonumber(record.term) or 0
local ours = record.nonce == nonce
seen(holder, lease)

local function grant()
  local fresh = string.format('%.0f', math.max(term + 1, seen_term + 1, micros))
  local event = redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[12], '*', 'kind', 'elected',
                           'node', holder, 'term', fresh, 'successor', '')
  redis.call('HSET', KEYS[1], 'holder', holder, 'nonce', nonce, 'attempt', attempt, 'term', fresh,
             'expires_at', string.format('%.0f', now + lease), 'lease', lease, 'state', 'held',
             'successor', '', 'renewals', 0, 'elected_at', string.format('%.0f', now),
             'app', ARGV[11], 'event', event)
  redis.call('HINCRBY', KEYS[1], 'transitions', 1)
  return answer('granted')
end

if not record.term or term < seen_term then
  -- Gone, or older than what this candidate knows: no evidence of anything.
  if from_missing or live_term > term then return grant() end
  return answer('missing')
end
if ours and attempt <= tonumber(record.attempt) then
  return answer('refused')  -- overtaken by a later request of the same candidate
end
if record.state == 'released' then return grant() end
local watched = tonumber(ARGV[7]) == term and ARGV[8] == record.renewals
local silent = watched and ARGV[9] == '1'
if record.state == 'reserved' then
  if record.successor == holder or record.left <= 0 or silent then return grant() end
  return answer('refused')
end
if ours then
  if record.left <= 0 or term <= seen_term then return grant() end
  -- Granted before, and the reply was lost.
  redis.call('HSET', KEYS[1], 'attempt', attempt, 'expires_at', string.format('%.0f', now + lease))
  redis.call('HINCRBY', KEYS[1], 'renewals', 1)
  return answer('granted')
end
if silent or (watched and record.left <= 0) then return grant() end
return answer('refused')
"""
)

# KEYS record history candidates
# ARGV nonce attempt term lease_ms
# -> granted | refused | missing
_RENEW = (
    PREAMBLE
    + _SEEN
    + """
local record = load()
if not record.term then return answer('missing') end
if record.nonce ~= ARGV[1] or tonumber(record.term) ~= tonumber(ARGV[3])
   or record.state ~= 'held' or record.left <= 0
   or tonumber(ARGV[2]) <= tonumber(record.attempt) then
  return answer('refused')
end
redis.call('HSET', KEYS[1], 'attempt', ARGV[2], 'lease', ARGV[4],
           'expires_at', string.format('%.0f', now + ARGV[4]))
redis.call('HINCRBY', KEYS[1], 'renewals', 1)
seen(record.holder, tonumber(ARGV[4]))
return answer('granted')
"""
)

# KEYS record history candidates
# ARGV nonce attempt successor reservation_ms history_size
# -> released
_RELEASE = (
    PREAMBLE
    + """
local record = load()
if record.nonce ~= ARGV[1] or tonumber(ARGV[2]) <= tonumber(record.attempt) then
  return answer('released')
end
redis.call('HSET', KEYS[1], 'attempt', ARGV[2])
if record.state == 'held' then
  local event = redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[5], '*', 'kind', 'resigned',
                           'node', record.holder, 'term', record.term, 'successor', ARGV[3])
  redis.call('HSET', KEYS[1], 'state', ARGV[3] == '' and 'released' or 'reserved',
             'successor', ARGV[3], 'event', event,
             'expires_at', string.format('%.0f', now + (ARGV[3] == '' and 0 or ARGV[4])))
end
return answer('released')
"""
)

# KEYS record
# -> record | missing
_READ = PREAMBLE + "return answer(redis.call('EXISTS', KEYS[1]) == 1 and 'record' or 'missing')"


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of the keys of one namespace, with the broker's key prefix in front, once."""

    namespace: str
    prefix: str = ""

    def of(self, kind: str, name: str) -> str:
        """The key that keeps the ``kind`` of thing called ``name``."""
        return f"{self.prefix}celery-leader:{self.namespace}:{kind}:{name}"

    def election(self, name: str) -> list[str]:
        """The keys every script on an election is given."""
        return [self.of(kind, name) for kind in ("election", "history", "candidates")]


class RedisClient:
    """One connection to Redis with short answers: commands in, replies or a reason out.

    Args:
        connect: makes a connected redis-py ``Connection``; it resolves the address
            anew each time.
        setting: the setting that names this Redis, for messages.
        operation_timeout: seconds that one answer may take.
    """

    def __init__(
        self, connect: Callable[[], Any], *, setting: str, operation_timeout: float
    ) -> None:
        self._connect = connect
        self._setting = setting
        self._operation_timeout = operation_timeout
        self._connection: Any = None

    def close(self) -> None:
        """Drop the connection; the next call makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def call(self, *command: Any) -> Any:
        """Send one command and return its reply.

        Raises:
            StoreUnavailable: there was no answer, or Redis refused the command.
        """
        reply = self.call_all([command])[0]
        if isinstance(reply, StoreUnavailable):
            raise reply
        return reply

    def call_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send ``commands`` in one round trip; a refused one yields its ``StoreUnavailable``.

        Raises:
            StoreUnavailable: there was no answer. The commands may have been executed.
        """
        with self._talking() as connection:
            replies = self._exchange(connection, commands)
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            # A demoted master: its address must be looked up again.
            self.close()
        return [
            self._unavailable(reply) if isinstance(reply, RedisError) else reply
            for reply in replies
        ]

    def run(self, calls: Sequence[tuple[Script, Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Run scripts in one round trip, or two when Redis does not know one yet."""
        with self._talking() as connection:
            replies = self._exchange(connection, [script.by_sha(*rest) for script, *rest in calls])
            unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                texts = [calls[i][0].by_text(*calls[i][1:]) for i in unknown]
                for i, reply in zip(unknown, self._exchange(connection, texts), strict=True):
                    replies[i] = reply
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            self.close()
        return [
            self._unavailable(reply) if isinstance(reply, RedisError) else reply
            for reply in replies
        ]

    def wait_for(self, command: Sequence[Any], timeout: float, wake: int) -> Any:
        """Send a blocking command; return its reply, or ``None`` once ``wake`` can be read.

        A command that is still blocked is given up by closing the connection: Redis
        then drops it, and nothing else of ours is on that socket.
        """
        with self._talking() as connection:
            connection.send_packed_command(connection.pack_command(*command), check_health=False)
            sock = connection._sock
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_READ)
                selector.register(wake, selectors.EVENT_READ)
                events = selector.select(timeout + self._operation_timeout)
                ready = [key.fileobj for key, _ in events]
            if sock in ready:
                return connection.read_response()
        self.close()
        if not ready:
            raise StoreUnavailable(f"{self._setting}: no answer from Redis to a blocking read")
        return None

    @contextmanager
    def _talking(self) -> Iterator[Any]:
        try:
            if self._connection is None:
                self._connection = self._connect()
                # Asked for a password, a script is answered with a cut connection; this is not.
                self._exchange(self._connection, [["PING"]])
            yield self._connection
        except StoreUnavailable:
            self.close()
            raise
        except (RedisError, OSError) as exc:
            self.close()
            raise self._unavailable(exc) from exc

    def _exchange(self, connection: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except ResponseError as exc:
                replies.append(_as_outside_a_script(exc))
        return replies

    def _unavailable(self, exc: Exception) -> StoreUnavailable:
        """``exc`` in one sentence that names the setting to look at."""
        text = str(exc) or type(exc).__name__
        setting = self._setting
        match exc:
            case AuthenticationError():
                advice = f"Redis refused the user name or password in {setting}: {text}"
            case NoPermissionError():
                advice = f"the Redis user in {setting} may not do this: {text}"
            case ReadOnlyError():
                advice = f"{setting} names a read-only replica; name its master: {text}"
            case OutOfMemoryError():
                advice = f"the Redis in {setting} is full; raise its maxmemory: {text}"
            case InvalidResponse():
                advice = f"what answers at {setting} is not Redis: {text}"
            case ResponseError() if "NOAUTH" in text or "Authentication" in text:
                advice = f"Redis asks for a password; put it into {setting}: {text}"
            case ResponseError() if "unknown command" in text.lower():
                advice = f"{setting} names a server older than Redis 6.2: {text}"
            case ResponseError():
                advice = f"the Redis in {setting} refused: {text}"
            case _:
                advice = f"the Redis in {setting} cannot be reached: {text}"
        return StoreUnavailable(advice)


class Script:
    """A Lua script, called by its digest and sent whole when Redis does not know it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def by_sha(self, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        """The command that runs it by digest."""
        return ["EVALSHA", self._sha, len(keys), *keys, *args]

    def by_text(self, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        """The command that runs it and teaches it to Redis."""
        return ["EVAL", self._text, len(keys), *keys, *args]


ACQUIRE, RENEW, RELEASE, READ = Script(_ACQUIRE), Script(_RENEW), Script(_RELEASE), Script(_READ)


class RedisStore:
    """The ``LeaseStore`` over a ``RedisClient``.

    Args:
        client: the connection; owned by the store from here on.
        keys: where to write.
        history_size: how many lines of history each election keeps.
    """

    def __init__(self, client: RedisClient, keys: Keys, *, history_size: int = 256) -> None:
        self._client = client
        self._keys = keys
        self._history_size = history_size

    def close(self) -> None:
        """Drop the connection; the next call makes another."""
        self._client.close()

    def perform(self, requests: Sequence[Request]) -> list[Reply | StoreUnavailable]:
        """Answer ``requests`` in one round trip; see ``LeaseStore``."""
        answers = self._client.run([self._call(request) for request in requests])
        return [
            answer if isinstance(answer, StoreUnavailable) else self._read_reply(request, answer)
            for request, answer in zip(requests, answers, strict=True)
        ]

    def announcements(
        self, cursors: dict[str, str], timeout: float, wake: int
    ) -> list[Announcement]:
        """Wait for news; see ``LeaseStore``."""
        names = {self._keys.of("history", name): name for name in cursors}
        millis = max(1, int(timeout * 1000))
        reply = self._client.wait_for(
            ["XREAD", "BLOCK", millis, "STREAMS", *names, *cursors.values()], timeout, wake
        )
        return [
            _announcement(names[_text(key)], _text(cursor), fields)
            for key, entries in reply or ()
            for cursor, fields in entries
        ]

    def read(self, election: str) -> Record | None:
        """The record of ``election``, or ``None``.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        answer = self._client.run([(READ, [self._keys.of("election", election)], [])])[0]
        if isinstance(answer, StoreUnavailable):
            raise answer
        what, server_us, fields = answer
        try:
            return None if what == b"missing" else _record(fields, int(server_us) / 1e6)
        except (ValueError, TypeError) as exc:
            raise self._damaged(election) from exc

    def candidates(self, election: str) -> list[Candidate]:
        """Who asked or renewed lately, the latest first.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        key = self._keys.of("candidates", election)
        (seconds, micros), members = _answered(
            self._client.call_all([["TIME"], ["ZREVRANGE", key, 0, -1, "WITHSCORES"]])
        )
        now = int(seconds) + int(micros) / 1e6
        return [
            Candidate(_text(node), max(0.0, now - float(at) / 1000))
            for node, at in zip(members[::2], members[1::2], strict=True)
        ]

    def _read_reply(self, request: Request, answer: list[Any]) -> Reply | StoreUnavailable:
        try:
            return _reply(answer)
        except (ValueError, TypeError):
            return self._damaged(request.election)

    def _damaged(self, election: str) -> StoreUnavailable:
        key = self._keys.of("election", election)
        return StoreUnavailable(f"the record in {key} is damaged; delete that key")

    def _call(self, request: Request) -> tuple[Script, list[str], list[Any]]:
        keys = self._keys.election(request.election)
        match request:
            case Acquire():
                watched_term, watched_renewals = request.watched or ("", "")
                return (
                    ACQUIRE,
                    keys,
                    [
                        request.holder,
                        request.nonce,
                        request.attempt,
                        _ms(request.lease_duration),
                        request.seen_term,
                        request.live_term,
                        watched_term,
                        watched_renewals,
                        int(request.silent),
                        int(request.from_missing),
                        request.app,
                        self._history_size,
                    ],
                )
            case Renew():
                return (
                    RENEW,
                    keys,
                    [request.nonce, request.attempt, request.term, _ms(request.lease_duration)],
                )
            case Release():
                return (
                    RELEASE,
                    keys,
                    [
                        request.nonce,
                        request.attempt,
                        request.successor or "",
                        _ms(request.reservation),
                        self._history_size,
                    ],
                )


def _as_outside_a_script(exc: ResponseError) -> ResponseError:
    """Redis 6 hides what stopped a script behind "Error running script"."""
    for sign, kind in (("-READONLY ", ReadOnlyError), ("-OOM ", OutOfMemoryError)):
        if sign in str(exc):
            return kind(str(exc))
    return exc


def _answered(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, StoreUnavailable):
            raise reply
    return replies


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _reply(answer: list[Any]) -> Reply:
    what, server_us, fields = answer
    server_time = int(server_us) / 1e6
    match what:
        case b"granted":
            record = _record(fields, server_time)
            return Granted(record.term, record.cursor, server_time)
        case b"refused":
            return Refused(_record(fields, server_time), server_time)
        case b"missing":
            return Missing(server_time)
        case _:
            return Released(server_time)


def _record(fields: list[Any], server_time: float) -> Record:
    # The order is FIELDS in the preamble.
    (holder, _, _, term, expires_at, lease, state, successor, renewals, transitions, elected_at) = (
        fields[:11]
    )
    app, event = fields[11:]
    return Record(
        holder=_text(holder),
        term=int(term),
        state=State(_text(state)),
        remaining=int(expires_at) / 1000 - server_time,
        lease_duration=int(lease) / 1000,
        renewals=int(renewals),
        elected_at=int(elected_at) / 1000,
        transitions=int(transitions),
        successor=_text(successor) or None,
        app=_text(app),
        cursor=_text(event) or "0-0",
    )


def _announcement(election: str, cursor: str, fields: list[Any]) -> Announcement:
    values = {_text(k): _text(v) for k, v in zip(fields[::2], fields[1::2], strict=True)}
    return Announcement(
        election=election,
        cursor=cursor,
        kind=values.get("kind", ""),
        node=values.get("node", ""),
        term=int(values.get("term") or 0),
        successor=values.get("successor") or None,
    )
