"""What this process may believe about its own leadership, shared with its children.

The process that holds the lease writes ``(term, valid_until)`` to pages of shared memory; it and
every child read them, with no I/O and no lock. A forked child inherits the pages. A child that
starts afresh (spawn) is told their ``Address``, and each place on a page names its election. A
belief ends by itself: once ``valid_until`` has passed, nobody has to run for the answer to become
"no".

Not guaranteed: that a child sees every election. A forked child does not see those that were
entered after it started. A child that started afresh does not see those that were entered after
it first asked, nor, where there is no ``memfd``, those that were entered before ``share``. A child
answers "not leader" for an election that it does not see.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .clock import now

# A place is three cells, valid_until, term (exact below 2**53) and era, and the election's name.
# The era grows when a place becomes another election's. From then on a reader of the former
# election reads "no".
_CELL = 8
_NAME = 3 * _CELL
_NAME_SIZE = 64
_PLACE = _NAME + _NAME_SIZE


@dataclass(frozen=True, slots=True)
class Address:
    """Where another process of the same user finds pages of beliefs.

    Attributes:
        path: names the memory as long as its owner lives.
        mark: stands on its first page, so that no other memory is taken for it.
    """

    path: str
    mark: str


class LeasePages:
    """Shared memory for any number of beliefs, each allotted before a child starts."""

    def __init__(self) -> None:
        self._spare: dict[str, list[LeaseView]] = {}
        self._forgotten: list[LeaseView] = []
        self._fd: int | None = None
        self._pages = 0
        self._page = memoryview(b"")
        self._free = mmap.PAGESIZE
        self._mark = secrets.token_hex(16)

    def allot(self, election: str = "") -> LeaseView:
        """A place for the belief of a candidate of ``election``, which does not lead yet."""
        if self._spare.get(election):
            return self._spare[election].pop()
        if self._forgotten:
            return self._forgotten.pop().of_another_election(_name(election))
        if self._free + _PLACE > mmap.PAGESIZE:
            self._add_page()
        at, self._free = self._free, self._free + _PLACE
        self._inscribe(at, election)
        return LeaseView(self._page.cast("d"), at // _CELL)

    def release(self, belief: LeaseView, election: str = "") -> None:
        """Nobody writes ``belief`` any more: the election's next candidate may have its place.

        A child that was forked before still reads there, and so sees that candidate's belief too.
        """
        belief.withdraw()
        self._spare.setdefault(election, []).append(belief)

    def forget(self, election: str) -> None:
        """Let the places that were released for ``election`` become those of other elections."""
        self._forgotten += self._spare.pop(election, [])

    def share(self) -> Address:
        """Make the pages readable for children that are not forked; return where they are.

        The memory goes when this process ends. Where a child could not open a ``memfd``, the memory
        is a file instead, and a kill leaves that file behind.
        """
        if self._fd is None and self._pages == 0:
            self._fd = _nameless_memory()
        path = f"/proc/{os.getpid()}/fd/{self._fd}"
        if self._fd is None or not _children_may_open(path):
            self._fd, path = _named_memory()
            self._pages, self._free = 0, mmap.PAGESIZE
        if self._pages == 0:
            self._add_page()
        return Address(path, self._mark)

    def _add_page(self) -> None:
        if self._fd is None:
            self._fd = _nameless_memory()
        if self._fd is None:
            memory = mmap.mmap(-1, mmap.PAGESIZE)  # a forked child at least inherits it
        else:
            offset = self._pages * mmap.PAGESIZE
            os.ftruncate(self._fd, offset + mmap.PAGESIZE)
            memory = mmap.mmap(self._fd, mmap.PAGESIZE, offset=offset)
        self._pages += 1
        self._page = memoryview(memory)
        self._inscribe(0, self._mark)
        self._free = _PLACE

    def _inscribe(self, at: int, name: str) -> None:
        self._page[at + _NAME : at + _PLACE] = _name(name)


def _name(text: str) -> bytes:
    return text.encode().ljust(_NAME_SIZE, b"\0")


def views_at(address: Address) -> list[tuple[str, LeaseView]]:
    """Each election and belief at ``address``, to read; none if their owner is gone."""
    with contextlib.suppress(OSError), _opened(address.path) as fd:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size < mmap.PAGESIZE:
            return []
        memory = memoryview(mmap.mmap(fd, about.st_size, access=mmap.ACCESS_READ))
        if _inscription(memory, 0) != address.mark:
            return []
        cells = memory.cast("d")
        places = [
            at
            for page in range(0, len(memory), mmap.PAGESIZE)
            for at in range(page + _PLACE, page + mmap.PAGESIZE - _PLACE + 1, _PLACE)
        ]
        names = [(_inscription(memory, at), at) for at in places]
        return [(name, LeaseView(cells, at // _CELL)) for name, at in names if name]
    return []


def _inscription(memory: memoryview, at: int) -> str:
    return bytes(memory[at + _NAME : at + _PLACE]).rstrip(b"\0").decode()


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    # A path of a process that is gone may by now name anything, also a pipe.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def _nameless_memory() -> int | None:
    """A file in no directory, gone with the last process that has it; ``None`` if there is none."""
    with contextlib.suppress(OSError, AttributeError):
        return os.memfd_create("celery-leader")
    return None


def _children_may_open(path: str) -> bool:
    # If a process has changed its user (celery worker --uid), its /proc files belong to root.
    with contextlib.suppress(OSError):
        return os.stat(os.path.dirname(path)).st_uid == os.geteuid()
    return False


def _named_memory() -> tuple[int, str]:
    """A file that only this user can open, removed when this process exits."""
    fd, path = tempfile.mkstemp(prefix="celery-leader-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            with contextlib.suppress(OSError):
                os.unlink(path)

    atexit.register(remove)
    return fd, path


class LeaseView:
    """One election's ``(term, valid_until)``; written by one thread, read by anyone."""

    __slots__ = ("_cells", "_era", "_its_era", "_term", "_valid_until")

    def __init__(self, cells: memoryview[float], index: int) -> None:
        self._cells = cells
        self._valid_until = index
        self._term = index + 1
        self._era = index + 2
        self._its_era = cells[self._era]

    def of_another_election(self, name: bytes) -> LeaseView:
        """A new belief, of the election called ``name``, in the place of this one."""
        cells, index = self._cells, self._valid_until
        cells[index] = 0.0
        cells[self._era] += 1
        at = index * _CELL
        cells.cast("B")[at + _NAME : at + _PLACE] = name
        return LeaseView(cells, index)

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

    @property
    def valid_until(self) -> float:
        """Until when this candidate leads if nothing more is heard; past when it does not."""
        cells = self._cells
        valid_until = cells[self._valid_until]
        return valid_until if cells[self._era] == self._its_era else 0.0

    def term(self, now: Callable[[], float] = now) -> int | None:
        """The term led with at this moment, or ``None``."""
        cells = self._cells
        while True:
            valid_until = cells[self._valid_until]
            if now() >= valid_until:
                return None
            term = cells[self._term]
            if cells[self._era] != self._its_era:
                return None
            if cells[self._valid_until] == valid_until:
                return int(term)
