"""A TCP proxy that counts round trips, and can be slow, lose replies or go mute."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time


class TcpProxy:
    """Forwards 127.0.0.1 connections to ``port``, in one thread, from ``with`` to its end."""

    def __init__(self, port: int) -> None:
        self._upstream_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._upstreams: set[socket.socket] = set()
        self._clients_turn: dict[socket.socket, bool] = {}
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._over = False
        #: How often a client spoke after having been silent or answered.
        self.round_trips = 0
        #: Swallow what the server says, after it has executed what it was told.
        self.loses_replies = False
        #: Seconds that everything is under way, in each direction.
        self.delay = 0.0

    @property
    def port(self) -> int:
        """The port to connect to."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> TcpProxy:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over = True
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self._thread.join(10)
        for sock in [self._listener, *self._peers]:
            sock.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._forward(key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            upstream = socket.create_connection(("127.0.0.1", self._upstream_port), timeout=5)
        except OSError:
            client.close()
            return
        self._upstreams.add(upstream)
        for one, other in ((client, upstream), (upstream, client)):
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)
        self._clients_turn[client] = True

    def _forward(self, source: socket.socket) -> None:
        if source not in self._peers:
            return  # closed together with its peer a moment ago
        target = self._peers[source]
        try:
            data = source.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._close(source, target)
            return
        if source in self._upstreams:
            self._clients_turn[target] = True
            if self.loses_replies:
                return
        elif self._clients_turn[source]:
            self._clients_turn[source] = False
            self.round_trips += 1
        time.sleep(self.delay)
        with contextlib.suppress(OSError):
            target.sendall(data)

    def _close(self, *socks: socket.socket) -> None:
        for sock in socks:
            with contextlib.suppress(KeyError):
                self._selector.unregister(sock)
            self._peers.pop(sock, None)
            self._upstreams.discard(sock)
            self._clients_turn.pop(sock, None)
            sock.close()
