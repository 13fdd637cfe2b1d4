"""Servers that are no working Redis, for tests of the lease store."""

from __future__ import annotations

import contextlib
import socket
import threading


class Stranger:
    """Accepts connections and answers any data with ``answer``; an empty one means no answer."""

    def __init__(self, answer: bytes = b"") -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accepted: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, name="stranger", daemon=True)

    @property
    def url(self) -> str:
        """Its address, as if it were Redis."""
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def __enter__(self) -> Stranger:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for sock in self._accepted:
            sock.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._accepted.append(sock)
                if self._answer:
                    sock.settimeout(10)
                    sock.recv(4096)
                    sock.sendall(self._answer)
                    sock.shutdown(socket.SHUT_WR)


def http_server() -> Stranger:
    """What stands on a port that was mistyped."""
    return Stranger(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def mute_server() -> Stranger:
    """A server whose machine has gone away, or whose process hangs."""
    return Stranger()
