"""A TCP proxy that counts the commands of Redis clients, and cuts a connection at the n-th command.

It is for tests that cut before and after *every* command of an action. Run the action once
undisturbed, and look at ``commands``. Then run it again for each command, with ``cut`` armed::

    with CountingProxy(server.port) as proxy:
        undisturbed = proxy.during(dispatch, of=is_mine)
        for nth in range(1, len(undisturbed) + 1):
            for cut in Cut:
                proxy.cut(cut, nth, of=is_mine)
                dispatch()
                assert proxy.cuts == 1

The proxy cannot read TLS. On a connection that has subscribed to a channel, it still counts the
commands, but not the replies.
"""

from __future__ import annotations

import enum
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.support.proxy import Proxy, _abort

_CHUNK = 65536
_SUBSCRIBING = ("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR")


class Cut(enum.Enum):
    """How the proxy treats one command and the connection that it came on."""

    #: Redis never hears of it; the connection is reset.
    BEFORE = "reset before it"
    #: Redis executes it; instead of the reply the connection is reset.
    AFTER = "reset after it"
    #: Redis never hears of it; nothing is said on the connection any more.
    MUTE_BEFORE = "mute before it"
    #: Redis executes it; there is no reply, and nothing is said on the connection any more.
    MUTE_AFTER = "mute after it"

    @property
    def executed(self) -> bool:
        """Whether Redis executes the command."""
        return self in (Cut.AFTER, Cut.MUTE_AFTER)

    @property
    def silent(self) -> bool:
        """Whether the client is left waiting."""
        return self in (Cut.MUTE_BEFORE, Cut.MUTE_AFTER)


@dataclass(frozen=True, slots=True)
class Command:
    """One command as a client sent it."""

    #: Which connection it came on; they are numbered from 1.
    connection: int
    #: Its number on that connection, from 1.
    number: int
    name: str
    args: tuple[bytes, ...]

    def __str__(self) -> str:
        first = self.args[0][:40].decode(errors="replace") if self.args else ""
        return f"{self.name} {first}".rstrip()


#: Whether a command is one of those that count.
Which = Callable[[Command], bool]


def any_command(command: Command) -> bool:
    """All of them."""
    return True


def pushes(command: Command) -> bool:
    """Scripts that push a message to a queue."""
    return command.name in ("EVALSHA", "EVAL") and b"LPUSH" in command.args


def runs(sha: str, text: str = "") -> Which:
    """Commands that run the script of this digest, or send it whole as ``text``."""

    def which(command: Command) -> bool:
        wanted = {"EVALSHA": sha, "EVAL": text}.get(command.name)
        return bool(wanted) and command.args[:1] == (str(wanted).encode(),)

    return which


class CountingProxy(Proxy):
    """A ``Proxy`` that knows where one command ends and the next begins."""

    def __init__(self, upstream_port: int) -> None:
        super().__init__(upstream_port)
        self._lines: dict[socket.socket, _Line] = {}
        self._armed: _Armed | None = None
        self._guard = threading.Lock()
        self._of: Which = any_command
        self._seen: list[Command] = []
        self._connections = 0
        #: How many cuts were made.
        self.cuts = 0

    @property
    def commands(self) -> list[Command]:
        """The commands that came since the proxy began, or since ``forget_commands``."""
        with self._guard:
            return [command for command in self._seen if self._of(command)]

    def forget_commands(self, of: Which = any_command) -> None:
        """Count from here on, and only what ``of`` picks out."""
        with self._guard:
            self._seen, self._of = [], of

    def during(self, act: Callable[[], object], of: Which = any_command) -> list[Command]:
        """The commands that come while ``act`` runs."""
        self.forget_commands(of)
        act()
        return self.commands

    def cut(self, cut: Cut, nth: int = 1, of: Which = any_command, times: int = 1) -> None:
        """Do that at the ``nth`` of the commands from now on that ``of`` picks out.

        ``times``: how many of them in a row, each on the connection it comes on.
        """

        def arm() -> None:
            self._armed, self.cuts = _Armed(cut, nth, of, times), 0

        self._order(arm)

    def spare(self) -> int:
        """Do nothing more to anybody, unless it was begun. Returns how many cuts are not."""
        left = 0

        def disarm() -> None:
            nonlocal left
            left = self._armed.times if self._armed is not None else 0
            self._armed = None

        self._order(disarm)
        return left

    # -- in the thread -------------------------------------------------------

    def _accept(self) -> None:
        before = set(self._peers)
        super()._accept()
        self._lines = {sock: line for sock, line in self._lines.items() if sock in self._peers}
        for client in self._peers.keys() - before:
            if not self._is_upstream(client):
                self._connections += 1
                line = _Line(self._connections, client, self._peers[client])
                self._lines[client] = self._lines[line.upstream] = line

    def _forward(self, source: socket.socket) -> None:
        line = self._lines[source]
        try:
            data = source.recv(_CHUNK)
            if data and source is line.client:
                self._ask(line, data)
            elif data:
                self._answer(line, data)
        except OSError:
            data = b""
        if not data:
            self.cuts += line.cut is not None  # one side has hung up before it was time
            self._drop(line.client, line.upstream)

    def _ask(self, line: _Line, data: bytes) -> None:
        """Pass commands on, up to the one where it is to be cut."""
        line.asked += data
        for length, parts in _commands(line.asked):
            raw, line.asked = line.asked[:length], line.asked[length:]
            if line.cut is not None:
                break  # what comes behind it on the same connection goes with it
            line.sent += 1
            name = parts[0].decode(errors="replace").upper() if parts else ""
            command = Command(line.number, line.sent, name, tuple(parts[1:]))
            with self._guard:
                self._seen.append(command)
            line.subscribed = line.subscribed or name in _SUBSCRIBING
            line.cut = self._cut_for(command)
            if line.cut is None or line.cut.executed:
                line.upstream.sendall(raw)
        if line.cut is not None:
            self._end_if_time(line)

    def _cut_for(self, command: Command) -> Cut | None:
        armed = self._armed
        if armed is None or not armed.of(command):
            return None
        armed.nth -= 1
        if armed.nth > 0:
            return None
        armed.times -= 1
        if not armed.times:
            self._armed = None
        return armed.cut

    def _answer(self, line: _Line, data: bytes) -> None:
        """Pass replies on, up to that to the command where it is cut."""
        if line.subscribed:
            if line.cut is None:
                line.client.sendall(data)
            else:
                self._end_line(line)
            return
        line.answered += data
        for length, is_reply in _replies(line.answered):
            raw, line.answered = line.answered[:length], line.answered[length:]
            line.received += is_reply
            if line.cut is not None and line.received >= line.sent:
                break  # the reply that is lost
            line.client.sendall(raw)
        self._end_if_time(line)

    def _end_if_time(self, line: _Line) -> None:
        if line.cut is None:
            return
        unanswered = line.sent - line.received
        # A command that Redis never hears of has no answer.
        if line.subscribed or unanswered <= (0 if line.cut.executed else 1):
            self._end_line(line)

    def _end_line(self, line: _Line) -> None:
        cut = line.cut
        assert cut is not None
        self.cuts += 1
        pair = (line.client, line.upstream)
        if cut.silent:
            self._forgotten.update(pair)
            for sock in pair:
                self._unwatch(sock)
        else:
            self._drop(*pair, close=_abort)


@dataclass(slots=True, eq=False)
class _Line:
    """One client's connection, and the proxy's connection to Redis for that client."""

    number: int
    client: socket.socket
    upstream: socket.socket
    asked: bytes = b""
    answered: bytes = b""
    sent: int = 0
    received: int = 0
    subscribed: bool = False
    cut: Cut | None = None


@dataclass(slots=True)
class _Armed:
    cut: Cut
    nth: int
    of: Which = field(repr=False)
    times: int


class _IncompleteError(Exception):
    """The rest of the data has not arrived yet."""


def _commands(data: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Each complete command at the beginning of ``data``, with its length."""
    at = 0
    while at < len(data):
        try:
            end, parts = _command(data, at)
        except _IncompleteError:
            return
        yield end - at, parts
        at = end


def _command(data: bytes, at: int) -> tuple[int, list[bytes]]:
    end, head = _line_at(data, at)
    if head[:1] != b"*":
        return end, head.split()  # an inline command
    parts = []
    for _ in range(int(head[1:])):
        begin, size = _line_at(data, end)
        end = begin + int(size[1:]) + 2
        if end > len(data):
            raise _IncompleteError
        parts.append(data[begin : end - 2])
    return end, parts


def _replies(data: bytes) -> Iterator[tuple[int, bool]]:
    """The length of each complete reply at the beginning of ``data``; whether it answers one."""
    at = 0
    while at < len(data):
        try:
            end = _reply(data, at)
        except _IncompleteError:
            return
        yield end - at, data[at : at + 1] != b">"
        at = end


def _reply(data: bytes, at: int) -> int:
    """Where the reply that begins at ``at`` ends; RESP2 and RESP3."""
    end, head = _line_at(data, at)
    kind, rest = head[:1], head[1:]
    if kind in b"$!=":
        end += int(rest) + 2 if int(rest) >= 0 else 0
        if end > len(data):
            raise _IncompleteError
        return end
    if kind in b"*~>%|":
        # An attribute comes with the reply that follows it.
        items = {b"%": 2 * int(rest), b"|": 2 * int(rest) + 1}.get(kind, int(rest))
        for _ in range(items):
            end = _reply(data, end)
    return end


def _line_at(data: bytes, at: int) -> tuple[int, bytes]:
    end = data.find(b"\r\n", at)
    if end < 0:
        raise _IncompleteError
    return end + 2, data[at:end]
