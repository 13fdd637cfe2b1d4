"""The register of an election: its candidates, as Redis keeps them."""

from __future__ import annotations

from dataclasses import dataclass

from celery_leader.core.candidate_info import CandidateInfo


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that asked for the lease or renewed it.

    Attributes:
        node: its name.
        seen_ago: how long ago it was last heard of, in seconds.
        priority: the higher comes first.
        held_for: it is kept out of the race for so many seconds (for ever: infinity).
        info: what it says of itself, if that can be read.
        life: tells it from another life of its node; empty where it says nothing of itself.
    """

    node: str
    seen_ago: float
    priority: int = 0
    held_for: float | None = None
    info: CandidateInfo | None = None
    life: str = ""
