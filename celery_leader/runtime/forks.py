"""Notices that this process was forked: threads and connections are then its parent's.

Python tells us of its own forks. A server written in C, such as uWSGI, may fork without telling
Python. So ``notice`` also looks at a page of memory that the kernel empties in every child. Where
the kernel offers no such page, ``notice`` compares process ids, which takes a system call.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable

#: ``MADV_WIPEONFORK`` of Linux 4.14 and later, for which Python has no name.
_WIPE_ON_FORK = 18
_NO_ADVICE = -1  # no kernel knows it

#: Called in the child with the process id of its parent.
AfterFork = Callable[[int], None]


class ForkWatch:
    """Calls its actions in each forked child, once."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._actions: list[AfterFork] = []
        self._mark = _page_wiped_in_children()
        self._set_mark()

    def call_in_child(self, action: AfterFork) -> None:
        """Have ``action`` called in every child that is forked from now on."""
        self._actions.append(action)

    def notice(self) -> None:
        """Call the actions if this process was forked without Python's knowledge."""
        if self._mark is None:
            if os.getpid() != self.owner:
                self.forked()
        elif not self._mark[0]:
            self.forked()

    def forked(self) -> None:
        """Call the actions: this process is a new child."""
        parent, self.owner = self.owner, os.getpid()
        self._set_mark()
        for action in self._actions:
            action(parent)

    def _set_mark(self) -> None:
        if self._mark is not None:
            self._mark[0] = 1


def _page_wiped_in_children() -> memoryview | None:
    """A page that is all zero in every child; ``None`` if the kernel cannot make one."""
    if sys.platform != "linux":
        return None
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Some emulators of Linux (QEMU before 7) accept any advice and do nothing.
    if _takes(page, _NO_ADVICE) or not _takes(page, _WIPE_ON_FORK):
        return None
    return memoryview(page)


def _takes(page: mmap.mmap, advice: int) -> bool:
    try:
        page.madvise(advice)
    except OSError:
        return False
    return True
