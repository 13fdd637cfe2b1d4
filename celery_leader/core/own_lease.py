"""The lease that one candidate has itself: how long it is valid, how it ended or is given up."""

from __future__ import annotations

from dataclasses import dataclass

from .events import Change, Deposed, Elected, StepDownRequested
from .lease import Ended, Granted, Record, StepDown


@dataclass
class Resignation:
    """A lease that is given up, of which the store has to be told.

    Attributes:
        due: whether a release is still to be sent.
        try_once: whether it is sent once only, because nothing waits for the lease.
        successor: the node that the lease goes to, if one is named.
        reason: what the history will say.
        tells_end: whether it tells the store how this candidate's leadership ended. It does not
            if that leadership was over before: another may have the lease by now, and then the
            store writes nothing.
    """

    due: bool = False
    try_once: bool = False
    successor: str | None = None
    reason: str = "resigned"
    tells_end: bool = False


class OwnLease:
    """What a candidate knows of its own leadership.

    Args:
        election: the election's name.
        node: the candidate's node name.

    Attributes:
        term: the term it was granted; ``None`` while it does not lead.
        valid_until: until when it leads if nothing more is heard; 0 when it does not lead.
        renewed_at: when the last request was sent that got or kept the lease.
        renew_at: when the lease is to be renewed.
        rewriting: whether the record is to be written again and not renewed.
        step_down: the order to step down that this leader has, if there is one.
    """

    def __init__(self, election: str, node: str) -> None:
        self._who = election, node
        self.term: int | None = None
        self.valid_until = 0.0
        self.renewed_at = 0.0
        self.renew_at = 0.0
        self.rewriting = False
        self.step_down: StepDown | None = None
        self._elected_at = 0.0
        self._untold: tuple[Deposed, float] | None = None

    def granted(
        self, reply: Granted, sent_at: float, valid_until: float, renew_at: float
    ) -> list[Change]:
        """The lease is ours until ``valid_until``; returns what has changed."""
        changes: list[Change] = []
        self.valid_until = valid_until
        self.renewed_at = sent_at
        self.renew_at = renew_at
        if self.term != reply.term:
            if self.term is None:
                self._elected_at = sent_at
            self.term = reply.term
            changes.append(Elected(*self._who, reply.term))
        wanted, before = reply.step_down, self.step_down
        self.step_down = wanted
        if wanted is not None and wanted != before:
            changes.append(
                StepDownRequested(*self._who, reply.term, wanted.reason, wanted.successor)
            )
        return changes

    def stands_against(self, record: Record, ours: bool) -> bool:
        """Whether our deadline stands although the store refused us because of ``record``.

        It does if the record is an old copy, or our own lease after the store's clock was set
        forward: nobody has led since. It does not if we have already tried to write it again.
        """
        if self.term is None or self.rewriting:
            return False
        return record.term < self.term or (record.term == self.term and ours)

    def write_again(self, now: float) -> None:
        """The record is gone or old, and our deadline stands: write it again at once."""
        self.rewriting = True
        self.renew_at = now

    def end(self, reason: str, at: float) -> Deposed:
        """The leadership is over."""
        assert self.term is not None
        deposed = Deposed(*self._who, self.term, reason, at - self._elected_at)
        self._untold = deposed, at
        self.term = None
        self.valid_until = 0.0
        self.rewriting = False
        self.step_down = None
        return deposed

    @property
    def untold_reason(self) -> str | None:
        """Why the last leadership ended, as long as the store was not told."""
        return None if self._untold is None else self._untold[0].reason

    def ended(self, now: float) -> Ended | None:
        """How the last leadership ended, as long as the store was not told."""
        if self._untold is None:
            return None
        deposed, at = self._untold
        return Ended(deposed.term, deposed.reason, max(0.0, now - at))

    def end_is_told(self) -> None:
        """The store has been told how the last leadership ended."""
        self._untold = None
