"""``LeaderMixin`` lets any scheduler class take part, wherever the class keeps its schedule.

Redis keeps the last run of each entry, in addition to the scheduler's own store. The next leader
goes on from there, whatever its own store says. Guaranteed: where messages are fenced, no tick is
sent twice, however many attempts it takes (see ``Dispatcher``). Not guaranteed: that each tick is
sent. A tick that cannot be sent while others can is given up, because the scheduler's own
``tick()`` waits for its end.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from celery import beat

from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.settings import BEAT

from .dispatch import Dispatch, TickMessage
from .dispatcher import Publish
from .elected import ElectedScheduler
from .entry_state import amended, last_run
from .moments import in_zone_of, timestamp
from .plan import Tick, anchor

logger = get_logger(__name__)

_TRIES = 3  # failed attempts at one tick before checking whether others can be sent
_JUST_MADE = 5.0  # seconds; as long as a scheduler may take to make its entries


class LeaderMixin(ElectedScheduler):
    """Comes before any scheduler class in the bases, which then dispatches on the leader only.

    ::

        class MyScheduler(LeaderMixin, PersistentScheduler): ...

    Followers neither dispatch nor write. Redis also keeps the last run of each entry.
    """

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        self._sending = False
        #: By entry that counts from the start of this process: its last run, as set at the start.
        self._made: dict[str, datetime.datetime] = {}
        super().__init__(app, *args, **kwargs)
        if self._shared_store.is_shared:
            self._made = {
                name: entry.last_run_at
                for name, entry in self.entries_in_memory().items()
                if self.is_made_here(entry)
            }

    # -- taking over -----------------------------------------------------------------------

    def take_over(self, term: int) -> bool:
        """Go on from where the last leader stopped; return whether Redis agreed."""
        if not super().take_over(term):
            return False
        entries = self.entries_in_memory()
        self.bring_up_to_date(entries)
        if not self._anchored(term, entries):
            return False
        self._heap = None
        return True

    def entries_in_memory(self) -> dict[str, Any]:
        """The entries that this process keeps; empty if it reads a store at each turn."""
        return dict(self.schedule)

    def is_made_here(self, entry: Any) -> bool:
        """Whether ``entry`` counts only from the start of this process.

        Asked at the start, for each entry in memory.
        """
        age = timestamp(entry.default_now()) - timestamp(entry.last_run_at)
        return not entry.total_run_count and 0 <= age < _JUST_MADE

    def bring_up_to_date(self, entries: dict[str, Any]) -> None:
        """Give each of ``entries`` the shared last run, if it has one."""
        for name, entry in entries.items():
            last = last_run(self._states.of(name))
            if last is not None:
                self.ran_last(entry, *last)

    def ran_last(self, entry: Any, moment: datetime.datetime, count: int) -> None:
        """Have ``entry`` go on from its ``count``-th run, at ``moment``."""
        entry.last_run_at, entry.total_run_count = in_zone_of(entry, moment), count

    def _anchored(self, term: int, entries: Mapping[str, Any]) -> bool:
        """Store the entries that only this process knows, counted from now; say if Redis agreed."""
        moments = {
            name: entry.default_now()
            for name, entry in entries.items()
            if name not in self._states and not self._states.is_left_alone(name)
            if self._made.get(name) == entry.last_run_at
        }
        project = self._states.project
        fresh = {name: anchor(entries[name], each, project) for name, each in moments.items()}
        if not self._states.write(term, fresh):
            return False
        # Only now that Redis has agreed: before, the next try must still find these entries new.
        for name, moment in moments.items():
            entries[name].last_run_at = moment
        return True

    # -- one tick ----------------------------------------------------------------------------

    def apply_async(
        self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """Dispatch an entry while this beat leads; once, however many attempts that takes.

        A tick that cannot be sent now is tried again until it is sent, until this beat no longer
        leads, or until others can be sent and this one cannot.
        """
        name = entry.name
        if self._states.is_left_alone(name):
            return None
        before = self._states.of(name)
        tick = replace(self.tick_of(entry, before), project=self._states.project)
        results: list[Any] = []
        if tick.is_in(before):
            logger.info("%s: %s was sent already as it was due at %s", BEAT, name, tick.label)
        else:
            new = tick.sent(entry, self.ran_at(entry))
            dispatch = Dispatch(str(name), before, tick.claimed(before), new)
            message = TickMessage(entry, tick.label, self._own_id(name, tick.label))

            def publish(producer: Any, term: int) -> None:
                with self._own_store_untouched(), message.sent_in(term):
                    results.append(
                        super(LeaderMixin, self).apply_async(  # type: ignore[misc]
                            entry, producer=producer, advance=False
                        )
                    )

            if not self._send(dispatch, publish):
                return None
        if advance:
            self.reserve(entry)
        return results[-1] if results else None

    def _send(self, dispatch: Dispatch, publish: Publish) -> bool:
        """Send one tick; return whether it was sent or given up, so that its entry may go on."""
        tries = 0
        while True:
            self._candidate.show_life()
            term = self.leading_term()
            if term is None:
                logger.info("%s: not dispatching %s, not leading", BEAT, dispatch.entry)
                return False
            try:
                agreed = self._dispatcher.send(term, dispatch, publish)
            except StoreUnavailable as exc:
                tries += 1
                if tries >= _TRIES and self._dispatcher.is_at_fault(term, dispatch):
                    logger.error(
                        "beat: %s cannot be sent as others are, this tick is given up: %s",
                        dispatch.entry,
                        exc,
                    )
                    return True
                self._retries.failed(dispatch.entry, exc)
                threading.Event().wait(self._pause())
                continue
            self._retries.succeeded()
            if agreed:
                self._states.note(dispatch.entry, dispatch.new)
            else:
                self._take_over_again()
            return agreed

    def tick_of(self, entry: Any, before: str) -> Tick:
        """The next tick of ``entry``; ``before`` is the entry's shared state."""
        return Tick.of(entry, before)

    def ran_at(self, entry: Any) -> datetime.datetime | None:
        """When ``entry`` runs by the scheduler's own store; ``None`` if the store does not say."""
        return None

    def _amend(self, term: int, changes: Mapping[str, Mapping[str, Any]]) -> bool:
        """Store new values of some fields of entries' states; return whether Redis agreed."""
        states = {
            name: amended(self._states.of(name), **fields) for name, fields in changes.items()
        }
        agreed = self._states.write(term, states)
        if not agreed:
            self._take_over_again()
        return agreed

    # -- the scheduler's own store -------------------------------------------------------------

    @contextlib.contextmanager
    def _own_store_untouched(self) -> Iterator[None]:
        # Celery writes the scheduler's own store as part of a send. Before Redis has agreed to a
        # tick, that store must not say that it ran.
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    def should_sync(self) -> bool:
        """Whether to write the scheduler's own store; not in the middle of a send.

        Nor while this beat does not lead: Celery would take the write for done, and would make the
        next one minutes later, although a renewal that was late may come at any moment.
        """
        if self._sending or self.leading_term() is None:
            return False
        return bool(super().should_sync())  # type: ignore[misc]


class LeaderPersistentScheduler(LeaderMixin, beat.PersistentScheduler):  # type: ignore[misc]
    """Celery's own scheduler with its local file, dispatching on the leading beat only."""

    def is_made_here(self, entry: Any) -> bool:
        """Whether ``entry`` never ran. Then its file says only when a beat was started with it."""
        return not entry.total_run_count

    def _warn(self) -> None:
        super()._warn()
        if type(self) is LeaderPersistentScheduler:
            self._warn_of_unread_rows()
