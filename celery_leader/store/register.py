"""The register of an election: who takes part, and the orders that people give.

An order to step down is written into the record, and a hold beside it. Both are announced, and
the answer to the leader's next renewal tells of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celery_leader.core.candidate_info import CandidateInfo
from celery_leader.core.events import AT_ONCE
from celery_leader.core.lease import Record
from celery_leader.errors import LeaderError

from .client import RedisClient, Script
from .scripts import ASK, CANDIDATES, FORGET, FREE, HOLD, Keys
from .wire import info_and_life, millis, read_record, seconds_held, text

_WHY_NOT = {
    b"unled": "nobody leads, so nobody can step down",
    b"leads": "{node} leads already",
    b"absent": (
        "{node} is no live candidate; `celery leader status --election {election}` lists them"
    ),
    b"held": "{node} is held; let it in first with `celery leader release {node}`",
}

_WHY_NOT_FORGOTTEN = {
    b"lives": (
        "{node} takes part, heard of {seconds:.1f} s ago; a killed node is gone after 3 leases"
    ),
    b"kept": "the lease of {node} is not over; try again in {seconds:.1f} s",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that asked for the lease or renewed it.

    Attributes:
        node: its name.
        seen_ago: how long ago it was last heard of, in seconds.
        priority: the higher comes first.
        held_for: for how many seconds it is kept out of the race (for ever: infinity).
        info: what it says of itself, if that can be read.
        life: the public name of its life; empty if it says nothing of itself.
    """

    node: str
    seen_ago: float
    priority: int = 0
    held_for: float | None = None
    info: CandidateInfo | None = None
    life: str = ""


class Register:
    """Candidates and orders of elections in one Redis.

    Each method may raise ``StoreUnavailable``: Redis did not answer, or a key is damaged.
    """

    def __init__(self, client: RedisClient, keys: Keys, history_size: int) -> None:
        self._client = client
        self._keys = keys
        self._history_size = history_size

    def candidates(self, election: str) -> list[Candidate]:
        """The candidates that asked for the lease or renewed it lately, the latest first."""
        return read_candidates(self._run(CANDIDATES, election))

    def ask(self, election: str, successor: str | None, *, at_once: bool = False) -> Record:
        """Ask the leader to step down, in favour of ``successor`` if one is named.

        ``at_once``: it is not to wait for bodies that can be aborted.

        Returns the record as it is then.

        Raises:
            LeaderError: nobody leads, or the lease cannot go to ``successor``.
        """
        reason = ("transferred" if successor else "resigned") + (AT_ONCE if at_once else "")
        what, server_us, fields = self._run(
            ASK, election, [reason, successor or "", self._history_size]
        )
        if what != b"asked":
            why = _WHY_NOT[what].format(node=successor, election=election)
            raise LeaderError(f"{election}: {why}")
        return read_record(fields, int(server_us) / 1e6)

    def hold(
        self, election: str, node: str, duration: float | None, *, at_once: bool = False
    ) -> bool:
        """Keep ``node`` out of the race, for ``duration`` seconds if given.

        If ``node`` leads, it steps down as soon as its running work has ended; ``at_once``: without
        waiting for bodies that can be aborted. Returns whether ``node`` is a candidate.
        """
        ms = 0 if duration is None else max(1, millis(duration))
        reason = f"held{AT_ONCE}" if at_once else ""
        what, *_ = self._run(HOLD, election, [node, ms, self._history_size, reason])
        return bool(what == b"candidate")

    def free(self, election: str, node: str) -> bool:
        """Let ``node`` into the race again; returns whether it was held."""
        what, *_ = self._run(FREE, election, [node, self._history_size])
        return bool(what == b"freed")

    def forget(self, election: str, lease_duration: float) -> bool:
        """Remove all keys of ``election``; returns whether there were any.

        ``lease_duration``: the lease of candidates that may still take part in it.

        Raises:
            LeaderError: a candidate was heard of within three leases, or the lease has not
                been over for the length of one, or messages are in flight.
        """
        what, *told = self._run(FORGET, election, [millis(lease_duration)])
        if what == b"holds":
            raise LeaderError(
                f"{election}: {int(told[0])} message(s) are not done that its leaders have fetched;"
                " start a worker that takes part in it"
            )
        if what in _WHY_NOT_FORGOTTEN:
            node, ms = told
            why = _WHY_NOT_FORGOTTEN[what].format(node=text(node), seconds=int(ms) / 1000)
            raise LeaderError(f"{election}: {why}")
        return bool(what == b"forgotten")

    def _run(self, script: Script, election: str, args: Sequence[Any] = ()) -> Any:
        return self._client.run_one(script, self._keys.election(election), args)


def read_candidates(answer: Sequence[Any]) -> list[Candidate]:
    """The candidates in an answer of ``candidates.lua``."""
    server_us, *found = answer
    return [_candidate(int(server_us) / 1e6, *each) for each in found]


def read_held(answer: Sequence[Any]) -> dict[str, float]:
    """The held nodes in an answer of ``held.lua``, each with the seconds that are left."""
    _, *found = answer
    return {text(node): seconds_held(ms) or 0.0 for node, ms in found}


def _candidate(
    server_time: float, node: bytes, at: bytes, priority: bytes, held: bytes, said: bytes
) -> Candidate:
    info, life = info_and_life(said)
    return Candidate(
        node=text(node),
        # Anybody can write a score, and a score can be infinite.
        seen_ago=max(0.0, min(server_time - float(at) / 1000, server_time)),
        priority=int(priority),
        held_for=seconds_held(held),
        info=info,
        life=life,
    )
