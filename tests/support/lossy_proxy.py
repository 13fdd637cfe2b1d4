"""The bad network between one beat and Redis."""

from __future__ import annotations

import contextlib
import random
import socket

from tests.support.proxy import Proxy, _abort, _listen

_LOW, _HIGH = 12_000, 30_000


def quiet_port() -> int:
    """A free port that no outgoing connection is given.

    A port out of the system's range for those may be taken while nobody listens there,
    even by a client that connects to it and so to itself.
    """
    while True:
        port = random.SystemRandom().randint(_LOW, _HIGH)
        try:
            _listen(port).close()
        except OSError:
            continue
        return port


class LossyProxy(Proxy):
    """A ``Proxy`` that can also lose replies after Redis has executed what was asked."""

    def __init__(self, upstream_port: int) -> None:
        super().__init__(upstream_port)
        assert self._listener is not None
        self._listener.close()
        self.port = quiet_port()
        self._listener = _listen(self.port)
        self._turns_away = False
        self._to_mute = 0
        self._mute: list[socket.socket] = []
        self._to_lose = 0
        self._lose_silently = False
        #: How many replies were lost so far.
        self.lost = 0

    def lose_replies(self, count: int, *, silently: bool) -> None:
        """Lose the next ``count`` replies, and with each its connection: reset, or mute."""

        def begin() -> None:
            self._to_lose, self._lose_silently = count, silently

        self._order(begin)

    def mute_next(self, count: int) -> None:
        """Take the next ``count`` new connections and never say a word on them."""

        def begin() -> None:
            self._to_mute = count

        self._order(begin)

    # -- in the thread -------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        if self._to_mute:
            self._to_mute -= 1
            self._mute.append(self._listener.accept()[0])
        elif self._turns_away:
            _abort(self._listener.accept()[0])
        else:
            super()._accept()

    def _forward(self, source: socket.socket) -> None:
        if self._to_lose and self._is_upstream(source):
            self._lose(source)
        else:
            super()._forward(source)

    def _is_upstream(self, source: socket.socket) -> bool:
        try:
            return bool(source.getpeername()[1] == self._upstream_port)
        except OSError:
            return False

    def _lose(self, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            upstream.recv(65536)
        self._to_lose -= 1
        self.lost += 1
        client = self._peers[upstream]
        if self._lose_silently:
            self._forgotten.update((client, upstream))
            self._unwatch(client)
            self._unwatch(upstream)
            return
        for sock in (client, upstream):
            self._unwatch(sock)
            self._peers.pop(sock, None)
            _abort(sock)

    def _refuse(self) -> None:
        # The port stays ours; who connects is turned away.
        self._turns_away = True
        self._reset()

    def _restore(self) -> None:
        self._turns_away = False
        self._to_lose = self._to_mute = 0
        super()._restore()

    def _end(self) -> None:
        super()._end()
        self._close_listener()
        for sock in self._mute:
            sock.close()
