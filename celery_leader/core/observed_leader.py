"""Who leads an election, as far as one candidate knows. For people; nothing is decided by it.

No thread, clock or socket: moments come in as arguments. Guaranteed: the answer was true when the
candidate last heard of the leader. Not guaranteed: that it is true now, nor that every leadership
was heard of. A candidate that was paused or cut off misses some.
"""

from __future__ import annotations


class ObservedLeader:
    """The leader, as far as one candidate has heard.

    Attributes:
        holder: the leader's node name; ``None`` while nobody is known to lead.
        term: its term, or the last known term.
        changes: how many leaderships began, as far as was heard.
    """

    def __init__(self) -> None:
        self.holder: str | None = None
        self.term = 0
        self.changes = 0
        self._last: tuple[str, int] | None = None
        self._vacant_since: float | None = None
        self._vacant = 0.0

    def leads(self, holder: str, term: int, now: float) -> bool:
        """``holder`` is heard to lead with ``term``; returns whether that is news."""
        news = (holder, term) != self._last
        if news:
            self.changes += 1
            self._vacant = self.vacant_seconds(now)
        # The same leadership goes on: what looked like its end was not.
        self._vacant_since = None
        self._last = self.holder, self.term = holder, term
        return news

    def nobody(self, since: float) -> None:
        """Nobody is known to lead any more, since the moment ``since``."""
        self.holder = None
        if self._vacant_since is None:
            self._vacant_since = since

    def vacant_seconds(self, now: float) -> float:
        """How long altogether nobody was known to lead."""
        since = self._vacant_since
        return self._vacant if since is None else self._vacant + max(0.0, now - since)
