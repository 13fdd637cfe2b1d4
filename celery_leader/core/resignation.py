"""How a candidate gives its lease up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Resignation:
    """What is to be told to the store.

    Attributes:
        due: whether a release is to be sent.
        try_once: whether it is sent once only, because nothing waits for the lease.
        successor: in favour of which node.
        reason: why, as the history will say.
    """

    due: bool = False
    try_once: bool = False
    successor: str | None = None
    reason: str = "resigned"
