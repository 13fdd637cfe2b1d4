"""The shared schedule in memory: its Lua scripts, written in Python.

A contract test compares both. The fake takes the place of a Redis client, so the shipped
``ScheduleStore`` runs on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery_leader.store.schedule_store import DISPATCH, FORGET, LOAD, STATE, Calls


@dataclass(frozen=True, slots=True)
class Lease:
    """The fields of the election's record that the scripts read."""

    nonce: str
    term: int
    held: bool = True


@dataclass(frozen=True, slots=True)
class Written:
    """One change of one entry's state, with what was pushed in the same step."""

    term: int
    entry: str
    old: str
    new: str
    pushed: tuple[bytes, ...] = ()


class FakeSchedule:
    """A hash of entries and a hash of projects.

    Args:
        server_clock: the server's wall clock, in microseconds.
        written: called with each change of an entry's state.
    """

    def __init__(
        self, server_clock: Callable[[], int], written: Callable[[Written], None] = lambda _: None
    ) -> None:
        self.lease: Lease | None = None
        self.hashes: dict[str, dict[bytes, bytes]] = {"schedule": {}, "projects": {}}
        self._server_clock = server_clock
        self._written = written

    @property
    def states(self) -> dict[str, str]:
        """The state of each entry."""
        return {name.decode(): text.decode() for name, text in self.hashes["schedule"].items()}

    def run(self, calls: Calls) -> list[Any]:
        """Run scripts as Redis does, one after the other."""
        return [self._one(script, keys, args) for script, keys, args in calls]

    def _one(self, script: Any, keys: Any, args: Any) -> Any:
        if script is LOAD:
            schedule, projects = (self._hash(key) for key in keys)
            flat = [
                [part for pair in each.items() for part in pair] for each in (schedule, projects)
            ]
            return [str(self._server_clock()).encode(), *flat]
        if script is STATE:
            return self._hash(keys[0]).get(args[0], b"")
        nonce, term, *rest = args
        if script is DISPATCH:
            return [self._dispatch(keys[1], nonce, int(term), *rest).encode()]
        assert script is FORGET, "a script that the fake does not know"
        return self._forget(keys[1], nonce, int(term), rest).encode()

    def _hash(self, key: str) -> dict[bytes, bytes]:
        return self.hashes["projects" if ":projects:" in key else "schedule"]

    def _refusal(self, nonce: str, term: int) -> str | None:
        """What the fence in ``record.lua`` says."""
        lease = self.lease
        if lease is None or lease.term < term:
            return "missing"
        return None if (lease.nonce, lease.term, lease.held) == (nonce, term, True) else "refused"

    def _dispatch(
        self, key: str, nonce: str, term: int, entry: bytes, old: bytes, new: bytes, *pushes: Any
    ) -> str:
        if refusal := self._refusal(nonce, term):
            return refusal
        states = self._hash(key)
        state = states.get(entry, b"")
        if state == new:
            return "repeated"
        if state != old:
            return "claimed"
        states[entry] = new
        if key.split(":")[-2] == "schedule":
            texts = (each.decode() for each in (entry, old, new))
            self._written(Written(term, *texts, pushed=tuple(pushes[2::3])))
        return "sent"

    def _forget(self, key: str, nonce: str, term: int, entries: list[bytes]) -> str:
        if refusal := self._refusal(nonce, term):
            return refusal
        states = self._hash(key)
        for entry in entries:
            old = states.pop(entry, None)
            if old is not None and key.split(":")[-2] == "schedule":
                self._written(Written(term, entry.decode(), old.decode(), ""))
        return "sent"
