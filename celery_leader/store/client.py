"""One connection to Redis that answers soon, or says why not.

Guaranteed: one socket, used by one thread, and no call that waits longer than its time limit. A
refusal or an outage becomes one sentence that names the setting to look at. Not guaranteed: that
a command without an answer was not executed.

redis-py's own retries are not used. With them, one renewal against a mute server takes close to a
minute.
"""

from __future__ import annotations

import hashlib
import selectors
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

from celery_leader.compat.redis import socket_of
from celery_leader.errors import StoreUnavailable

from .refusals import (
    DAMAGED,
    as_outside_a_script,
    damaged_record,
    in_words,
    without_echo,
    wrong_type,
)


class RedisClient:
    """A connection to one Redis, made when it is first needed and again after a failure.

    Args:
        connect: makes a connected redis-py ``Connection``; it resolves the address
            anew each time.
        setting: the setting that names this Redis, for messages.
        operation_timeout: seconds that one answer may take.
        place: names the place that ``connect`` leads to; when it changes, the next call makes
            a new connection.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        setting: str,
        operation_timeout: float,
        place: Callable[[], object] = lambda: None,
    ) -> None:
        self._connect = connect
        self._setting = setting
        self._operation_timeout = operation_timeout
        self._place = place
        self._connected_to: object = None
        self._connection: Any = None

    def close(self) -> None:
        """Drop the connection; the next call makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def call_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send ``commands`` in one round trip; a refused one yields its ``StoreUnavailable``.

        Raises:
            StoreUnavailable: there was no answer. The commands may have been executed.
        """
        with self._talking() as connection:
            replies = self._exchange(connection, commands)
        return self._answers(replies)

    def run(self, calls: Sequence[tuple[Script, Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Run scripts in one round trip, or two when Redis does not know one yet.

        If a key is damaged or of another type than its script needs, the answer to that script is
        a ``StoreUnavailable`` that names the key.
        """
        with self._talking() as connection:
            replies = self._exchange(connection, [script.by_sha(*rest) for script, *rest in calls])
            unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                texts = [calls[i][0].by_text(*calls[i][1:]) for i in unknown]
                for i, reply in zip(unknown, self._exchange(connection, texts), strict=True):
                    replies[i] = reply
            for i, reply in enumerate(replies):
                if isinstance(reply, ResponseError):
                    replies[i] = self._refusal_of_a_key(connection, reply, *calls[i][:2]) or reply
        return self._answers(replies)

    def run_one(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run one script.

        Raises:
            StoreUnavailable: there was no answer, or Redis refused.
        """
        (answer,) = self.run([(script, keys, args)])
        if isinstance(answer, StoreUnavailable):
            raise answer
        return answer

    def wait_for_replicas(self, count: int) -> None:
        """Return once ``count`` replicas have what this connection has written.

        Raises:
            StoreUnavailable: fewer have it after half the time of an answer, or nobody knows.
        """
        wrote = self._connection
        millis = max(1, int(1000 * self._operation_timeout / 2))
        (reply,) = self.call_all([["WAIT", count, millis]])
        if isinstance(reply, StoreUnavailable):
            raise reply
        # Redis counts every replica for a connection that has written nothing.
        reached = reply if self._connection is wrote else 0
        if reached < count:
            raise StoreUnavailable(
                f"leader_wait_replicas is {count}, and {reached} replica(s) of the Redis in"
                f" {self._setting} confirmed the lease"
            )

    def wait_for(
        self, command: Sequence[Any], timeout: float, wake: int | None, patience: float
    ) -> Any:
        """Send a blocking command; return its reply, or ``None`` once ``wake`` can be read.

        ``patience``: how many seconds the reply may be later than ``timeout``.

        A command that is still blocked is given up by closing the connection: Redis
        then drops it, and nothing else of ours is on that socket.
        """
        with self._talking() as connection:
            connection.send_packed_command(connection.pack_command(*command), check_health=False)
            sock = socket_of(connection)
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_READ)
                if wake is not None:
                    selector.register(wake, selectors.EVENT_READ)
                events = selector.select(timeout + patience)
                ready = [key.fileobj for key, _ in events]
            if sock in ready:
                return connection.read_response()
        self.close()
        if not ready:
            raise StoreUnavailable(f"{self._setting}: no answer from Redis to a blocking read")
        return None

    def damaged(self, key: str) -> StoreUnavailable:
        """The refusal that names the key of a record that makes no sense."""
        return damaged_record(key, self._setting)

    def _refusal_of_a_key(
        self, connection: Any, exc: ResponseError, script: Script, keys: Sequence[str]
    ) -> StoreUnavailable | None:
        """The refusal that names the key that made a script fail; ``None`` if no key did."""
        if DAMAGED in str(exc):
            return self.damaged(keys[0])
        if "WRONGTYPE" not in str(exc):
            return None
        expected = list(zip(keys, script.types_of(keys), strict=True))
        types = self._exchange(connection, [["TYPE", key] for key, _ in expected])
        for (key, wanted), found in zip(expected, types, strict=True):
            if isinstance(found, bytes) and wanted and found.decode() not in ("none", wanted):
                return wrong_type(key, found.decode(), wanted, self._setting)
        return None

    @contextmanager
    def _talking(self) -> Iterator[Any]:
        try:
            if self._place() != self._connected_to:
                self.close()
            if self._connection is None:
                self._connected_to = self._place()
                self._connection = self._connect()
                # Redis cuts the connection on a script that lacks a password. PING gets an error.
                self._exchange(self._connection, [["PING"]])
            yield self._connection
        except (RedisError, OSError) as exc:
            self.close()
            if without_echo(exc) != str(exc):
                raise in_words(exc, self._setting) from None  # its text must not be shown
            raise in_words(exc, self._setting) from exc
        except BaseException:
            # An unread answer would be taken for the answer to the next command.
            self.close()
            raise

    def _exchange(self, connection: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except ResponseError as exc:
                replies.append(as_outside_a_script(exc))
        return replies

    def _answers(self, replies: list[Any]) -> list[Any]:
        """``replies``, with each refusal as a ``StoreUnavailable``."""
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            # A demoted master: its address must be looked up again.
            self.close()
        return [
            in_words(reply, self._setting) if isinstance(reply, RedisError) else reply
            for reply in replies
        ]


class Script:
    """A Lua script, called by its digest and sent whole when Redis does not know it.

    Args:
        text: the script.
        types: the types of its first keys, as the command ``TYPE`` names them.
        further: the type of all keys after these; empty if it is unknown.
    """

    def __init__(self, text: str, types: Sequence[str] = (), further: str = "") -> None:
        self._types = types
        self._further = further
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def types_of(self, keys: Sequence[str]) -> list[str]:
        """The type that each of ``keys`` must have; empty if it is unknown."""
        return [*self._types, *[self._further] * len(keys)][: len(keys)]

    def by_sha(self, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        """The command that runs it by digest."""
        return ["EVALSHA", self._sha, len(keys), *keys, *args]

    def by_text(self, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        """The command that runs it and teaches it to Redis."""
        return ["EVAL", self._text, len(keys), *keys, *args]
