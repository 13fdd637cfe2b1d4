"""A TCP proxy between a Celery process and its Redis, for the tests that need a bad network.

``reset()`` tears connections down with an RST, ``refuse()`` also answers no new one,
``stall()`` drops into silence as a partition does: nothing is lost, nothing arrives, and
what was under way arrives late, after ``restore()``. ``slow()`` passes everything on, each
piece a little later. ``forget()`` makes the silence of
the present connections last for ever, as a firewall does that has lost its state.
"""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable

_CHUNK = 65536
_RST = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger


class Proxy:
    """Forwards 127.0.0.1:``port`` to ``upstream_port``, in one thread, from ``with`` to its end."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = _listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._peers: dict[socket.socket, socket.socket] = {}
        self._forgotten: set[socket.socket] = set()
        self._orders: collections.deque[tuple[Callable[[], None], threading.Event]] = (
            collections.deque()
        )
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="fleet-proxy", daemon=True)
        self._pause = threading.Event()
        self._over = False
        self._delay = 0.0
        #: How many connections were ever taken.
        self.accepted = 0

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

    def stall(self) -> None:
        """Pass nothing on, in either direction, and close nothing."""
        self._order(self._stall)

    def slow(self, delay: float) -> None:
        """Pass each piece on after ``delay`` seconds."""

        def slow() -> None:
            self._delay = delay

        self._order(slow)

    def forget(self) -> None:
        """Pass nothing on for ever on the connections there are."""
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
        try:
            upstream = socket.create_connection(("127.0.0.1", self._upstream_port), timeout=5)
        except OSError:
            _abort(client)
            return
        self.accepted += 1
        for one, other in ((client, upstream), (upstream, client)):
            one.settimeout(5)
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        target = self._peers[source]
        try:
            data = source.recv(_CHUNK)
            self._pause.wait(self._delay)
            target.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._drop(source, target)

    def _drop(self, *socks: socket.socket) -> None:
        for sock in socks:
            self._unwatch(sock)
            self._peers.pop(sock, None)
            self._forgotten.discard(sock)
            sock.close()

    def _reset(self) -> None:
        for sock in list(self._peers):
            self._unwatch(sock)
            _abort(sock)
        self._peers.clear()
        self._forgotten.clear()

    def _refuse(self) -> None:
        self._close_listener()
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
        if self._listener is None:
            self._listener = _listen(self.port)
        for sock in (self._listener, *self._peers):
            if sock not in self._forgotten and sock not in self._selector.get_map():
                self._selector.register(sock, selectors.EVENT_READ)

    def _end(self) -> None:
        self._over = True
        self._refuse()

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._unwatch(self._listener)
            self._listener.close()
            self._listener = None

    def _unwatch(self, sock: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)


def _listen(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=128)


def _abort(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    sock.close()
