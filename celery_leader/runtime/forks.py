"""Notices that this process was forked: threads and connections are then its parent's.

Python tells us of its own forks. A server written in C, such as uWSGI, may fork without telling
Python, so ``notice`` compares process ids as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable

#: Called in the child with the process id of its parent.
AfterFork = Callable[[int], None]


class ForkWatch:
    """Calls its actions in each forked child, once."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._actions: list[AfterFork] = []

    def call_in_child(self, action: AfterFork) -> None:
        """Have ``action`` called in every child that is forked from now on."""
        self._actions.append(action)

    def notice(self) -> None:
        """Call the actions if this process was forked without Python's knowledge."""
        if os.getpid() != self.owner:
            self.forked()

    def forked(self) -> None:
        """Call the actions: this process is a new child."""
        parent, self.owner = self.owner, os.getpid()
        for action in self._actions:
            action(parent)
