"""A TCP proxy between a process and its Redis, for the tests that need a bad network.

Each fault is a method. ``restore()`` ends all faults, and delayed data then arrives late.
"""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable

from examples.machine import free_port

_CHUNK = 65536
_RST = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger
_PORTS_TO_TRY = 10


class Proxy:
    """Forwards 127.0.0.1:``port`` to ``upstream_port``, in one thread, during its ``with`` block."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = _listen_somewhere()
        self.port: int = self._listener.getsockname()[1]
        self._peers: dict[socket.socket, socket.socket] = {}
        self._forgotten: set[socket.socket] = set()
        self._orders: collections.deque[tuple[Callable[[], None], threading.Event]] = (
            collections.deque()
        )
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._pause = threading.Event()
        self._over = False
        self._delay = 0.0
        self._turns_away = False
        self._to_mute = 0
        self._mute: list[socket.socket] = []
        self._to_lose = 0
        self._lose_silently = False
        self._unanswered: set[socket.socket] = set()
        #: How many connections were ever passed on.
        self.accepted = 0
        #: How often a client spoke after it had been answered, or for the first time.
        self.round_trips = 0
        #: How many replies were lost.
        self.lost = 0

    @property
    def url(self) -> str:
        """The Redis behind it, as a broker URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def reset(self) -> None:
        """End every connection with an RST; new ones work at once."""
        self._order(self._reset)

    def refuse(self) -> None:
        """End every connection with an RST and refuse new ones."""
        self._order(self._refuse)

    def turn_away(self) -> None:
        """End every connection with an RST, and each new one too; the port stays taken."""
        self._order(self._turn_away)

    def stall(self) -> None:
        """Pass nothing on, in either direction, and close nothing, as in a partition."""
        self._order(self._stall)

    def slow(self, delay: float) -> None:
        """Pass each piece on after ``delay`` seconds."""

        def slow() -> None:
            self._delay = delay

        self._order(slow)

    def lose_replies(self, count: int, *, silently: bool) -> None:
        """Lose the next ``count`` replies, and with each its connection: reset, or mute."""

        def lose() -> None:
            self._to_lose, self._lose_silently = count, silently

        self._order(lose)

    def mute_next(self, count: int) -> None:
        """Take the next ``count`` new connections and never say a word on them."""

        def mute() -> None:
            self._to_mute = count

        self._order(mute)

    def forget(self) -> None:
        """Pass nothing on for ever on the present connections, as a firewall that lost its state."""
        self._order(self._forget)

    def restore(self) -> None:
        """Accept again and pass on again, beginning with what has waited."""
        self._order(self._restore)

    def __enter__(self) -> Proxy:
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._restore()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._order(self._end)
        self._thread.join(10)
        for sock in (self._wake_read, self._wake_write):
            sock.close()
        self._selector.close()

    def _order(self, act: Callable[[], None]) -> None:
        done = threading.Event()
        self._orders.append((act, done))
        self._wake_write.send(b"!")
        assert done.wait(10), "the proxy's thread is gone"

    # -- in the thread -------------------------------------------------------

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake_read:
                    self._wake_read.recv(4096)
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._peers:
                    self._forward(key.fileobj)  # type: ignore[arg-type]
            while self._orders:
                act, done = self._orders.popleft()
                act()
                done.set()

    def _accept(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        if self._to_mute:
            self._to_mute -= 1
            self._mute.append(client)
            return
        if self._turns_away:
            _abort(client)
            return
        try:
            upstream = socket.create_connection(("127.0.0.1", self._upstream_port), timeout=5)
        except OSError:
            _abort(client)
            return
        self.accepted += 1
        for one, other in ((client, upstream), (upstream, client)):
            one.settimeout(5)
            # Else a command that is sent in parts waits 40 ms for the other side to confirm the first.
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        target = self._peers[source]
        from_redis = self._is_upstream(source)
        if from_redis and self._to_lose:
            self._lose(source)
            return
        try:
            data = source.recv(_CHUNK)
            self._count(target if from_redis else source, asks=not from_redis and bool(data))
            self._pause.wait(self._delay)
            target.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._drop(source, target)

    def _is_upstream(self, sock: socket.socket) -> bool:
        try:
            return bool(sock.getpeername()[1] == self._upstream_port)
        except OSError:
            return False

    def _count(self, client: socket.socket, *, asks: bool) -> None:
        if asks:
            self.round_trips += client not in self._unanswered
            self._unanswered.add(client)
        else:
            self._unanswered.discard(client)

    def _lose(self, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            upstream.recv(_CHUNK)
        self._to_lose -= 1
        self.lost += 1
        pair = (self._peers[upstream], upstream)
        if self._lose_silently:
            self._forgotten.update(pair)
            for sock in pair:
                self._unwatch(sock)
        else:
            self._drop(*pair, close=_abort)

    def _drop(
        self, *socks: socket.socket, close: Callable[[socket.socket], None] = socket.socket.close
    ) -> None:
        for sock in socks:
            self._unwatch(sock)
            self._peers.pop(sock, None)
            self._forgotten.discard(sock)
            self._unanswered.discard(sock)
            close(sock)

    def _reset(self) -> None:
        self._drop(*self._peers, close=_abort)

    def _refuse(self) -> None:
        self._close_listener()
        self._reset()

    def _turn_away(self) -> None:
        self._turns_away = True
        self._reset()

    def _stall(self) -> None:
        if self._listener is not None:
            self._unwatch(self._listener)
        for sock in self._peers:
            self._unwatch(sock)

    def _forget(self) -> None:
        self._forgotten.update(self._peers)
        for sock in self._peers:
            self._unwatch(sock)

    def _restore(self) -> None:
        self._delay = 0.0
        self._turns_away = False
        self._to_lose = self._to_mute = 0
        if self._listener is None:
            self._listener = _listen(self.port)
        for sock in (self._listener, *self._peers):
            if sock not in self._forgotten and sock not in self._selector.get_map():
                self._selector.register(sock, selectors.EVENT_READ)

    def _end(self) -> None:
        self._over = True
        self._refuse()
        for sock in self._mute:
            sock.close()

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._unwatch(self._listener)
            self._listener.close()
            self._listener = None

    def _unwatch(self, sock: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)


def _listen_somewhere() -> socket.socket:
    """On a port that no outgoing connection is given while ``refuse`` holds."""
    for _ in range(_PORTS_TO_TRY):
        with contextlib.suppress(OSError):  # another process was faster
            return _listen(free_port())
    raise AssertionError("no port to listen on")


def _listen(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=128)


def _abort(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    sock.close()
