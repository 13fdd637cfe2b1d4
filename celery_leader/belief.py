"""What this process may believe about its own leadership, shared with its children.

A page of anonymous shared memory made before the pool forks. The process that
holds the lease writes ``(term, valid_until)``; it and every child forked from it
read them, with no I/O and no lock. A belief ends by itself: once ``valid_until``
has passed nobody has to run for the answer to become "no".

Not guaranteed: that a child started by ``exec`` (spawn) sees the page. Such a
child reads an empty page and answers "not leader".
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

from .clock import now

_CELLS = mmap.PAGESIZE // 8
_SLOT = 2  # cells per candidate: valid_until, term (exact below 2**53)


class BeliefPage:
    """Shared memory for any number of beliefs, each allotted before a fork."""

    def __init__(self) -> None:
        self._spare: dict[str, list[Belief]] = {}
        self._cells = memoryview(b"").cast("B").cast("d")
        self._free = _CELLS

    def allot(self, election: str = "") -> Belief:
        """A new belief: that this candidate does not lead ``election``."""
        if self._spare.get(election):
            return self._spare[election].pop()
        if self._free + _SLOT > _CELLS:
            self._cells = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")
            self._free = 0
        index, self._free = self._free, self._free + _SLOT
        return Belief(self._cells, index)

    def release(self, belief: Belief, election: str = "") -> None:
        """Nobody writes ``belief`` any more: the election's next candidate may have its place.

        A child forked before reads on there, so it must never become another election's.
        """
        belief.withdraw()
        self._spare.setdefault(election, []).append(belief)


class Belief:
    """One election's ``(term, valid_until)``; written by one thread, read by anyone."""

    __slots__ = ("_cells", "_term", "_valid_until")

    def __init__(self, cells: memoryview[float], index: int) -> None:
        self._cells = cells
        self._valid_until = index
        self._term = index + 1

    def publish(self, term: int, valid_until: float) -> None:
        """Lead with ``term`` until ``valid_until`` on this machine's clock."""
        cells = self._cells
        if cells[self._term] != term:
            # A reader must never pair the new term with the old deadline.
            cells[self._valid_until] = 0.0
            cells[self._term] = float(term)
        cells[self._valid_until] = valid_until

    def withdraw(self) -> None:
        """Stop leading, in every process that shares the page, at once."""
        self._cells[self._valid_until] = 0.0

    def term(self, now: Callable[[], float] = now) -> int | None:
        """The term led with at this moment, or ``None``."""
        cells = self._cells
        while True:
            valid_until = cells[self._valid_until]
            if now() >= valid_until:
                return None
            term = cells[self._term]
            if cells[self._valid_until] == valid_until:
                return int(term)
