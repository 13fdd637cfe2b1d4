"""The private name of redis-py: the socket of a connection."""

from __future__ import annotations

from typing import Any

from . import attribute


def socket_of(connection: Any) -> Any:
    """The socket of a connected ``connection``, to wait for it and for something else at once.

    redis-py itself can wait for an answer only, so that nothing else could end that wait.
    """
    return attribute(connection, "_sock", "end the wait for news of an election")
