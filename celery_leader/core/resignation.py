"""How a candidate gives its lease up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Resignation:
    """A resignation of which the store has to be told.

    Attributes:
        due: whether a release is still to be sent.
        try_once: whether it is sent once only, because nothing waits for the lease.
        successor: the node that the lease goes to, if one is named.
        reason: what the history will say.
    """

    due: bool = False
    try_once: bool = False
    successor: str | None = None
    reason: str = "resigned"
