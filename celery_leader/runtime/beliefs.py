"""What this process believes of its own leadership, and what its worker believes.

The pool processes of a worker read the worker's beliefs from shared memory. No other process may
read the beliefs of another, because it would then be a second leader. No question here does I/O.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from celery_leader.compat.celery import worker_pid
from celery_leader.core.names import check_name

from .context import ALWAYS_TERM, AppContext
from .shared_memory import Address, LeasePages, LeaseView, views_at

#: Tells a pool process that was not forked where its worker's beliefs are.
_ADDRESS = "CELERY_LEADER_BELIEFS"

#: A place in shared memory: the worker is shutting down. No election may have this name.
_SHUTDOWN = "(shut)"

Views = tuple[LeaseView, ...]
T = TypeVar("T")


class Beliefs:
    """Whether this process leads, asked at any moment and from any thread."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._pages = LeasePages()
        self._own: dict[str, Views] = {}
        self._of_worker: dict[str, Views] | None = None
        # The beliefs of the process that forked this one. They count once it is known that this
        # is a pool process.
        self._handed_down: dict[str, Views] = {}
        self._handed_down_by: int | None = None
        self._reserved: dict[str, LeaseView] = {}
        self._staged: dict[str, LeaseView] = {}
        self._shutdown: LeaseView | None = None
        context.forks.call_in_child(self._after_fork)

    # -- asking ---------------------------------------------------------------

    def term(self, election: str) -> int | None:
        """The term this process leads ``election`` with, or ``None``.

        Raises:
            LeaderError: the app knows no such election.
        """
        views = self._views(election)
        if views is not None:
            for view in views:
                term = view.term()
                if term is not None:
                    return term
            return None
        self._context.check_known(election)
        return ALWAYS_TERM if self._context.always_leads() else None

    def valid_until(self, election: str, term: int) -> float | None:
        """Until when this process leads ``election`` with ``term`` if nothing more is heard.

        ``None`` if it does not lead with ``term``.
        """
        views = self._views(election) or ()
        until = max((view.valid_until for view in views), default=0.0)
        return until if self.term(election) == term else None

    def is_candidate(self, election: str) -> bool:
        """Whether this process takes part in ``election``, or its worker does."""
        return self._views(election) is not None

    def inherits(self, election: str, view: LeaseView) -> bool:
        """Whether ``view`` belongs to the worker whose pool process this process is."""
        return view in self._worker_views().get(election, ())

    @property
    def shutting_down(self) -> bool:
        """Whether the worker shuts down; in a pool process, known once ``term`` was asked."""
        # A shutdown is never taken back, so there is no deadline to compare with a clock.
        return self._shutdown is not None and self._shutdown.valid_until > 0

    # -- of a worker, for its pool processes ----------------------------------

    def reserve(self, elections: Iterable[str]) -> None:
        """Give elections their place in shared memory before a pool forks."""
        if not self._context.always_leads():
            for name in elections:
                self._reserved[name] = self._new_view(check_name(name))
            self._shutdown = self._pages.allot(_SHUTDOWN)

    def publish_address(self) -> None:
        """Let pool processes that will not be forked find what this process believes."""
        address = self._pages.share()
        os.environ[_ADDRESS] = json.dumps(
            {
                "worker": os.getpid(),
                "app": self._app_name,
                "path": address.path,
                "mark": address.mark,
            }
        )

    def announce_shutdown(self) -> None:
        """Let no leader-only body start from now on, here and in the pool processes."""
        if self._shutdown is not None:
            self._shutdown.publish(ALWAYS_TERM, float("inf"))

    # -- of a candidate -------------------------------------------------------

    def view_for(self, election: str) -> LeaseView:
        """The place in shared memory of one candidate of ``election``."""
        return self._reserved.pop(election, None) or self._new_view(election)

    def retire(self, election: str, view: LeaseView) -> Callable[[], None]:
        """A candidate is gone for good, and its belief no longer counts.

        Returns a function that frees the place of ``view``. Call it once nothing writes there.
        """
        others = tuple(each for each in self._own[election] if each is not view)
        if others:
            self._own[election] = others
        else:
            del self._own[election]
        pages = self._pages

        def free() -> None:
            pages.release(view, election)
            if election not in self._context.entered:  # the election was forgotten meanwhile
                pages.forget(election)

        return free

    def forget(self, election: str) -> None:
        """Let the places of ``election`` become those of other elections."""
        self._pages.forget(election)

    # -- of a test ------------------------------------------------------------

    @contextlib.contextmanager
    def staged(self, election: str) -> Iterator[LeaseView]:
        """For tests: while open, the yielded view decides ``election``, not Redis."""
        own, staged = self._own.get(election), self._staged.get(election)
        view = LeasePages().allot(check_name(election))
        self._own[election], self._staged[election] = (view,), view
        try:
            yield view
        finally:
            _put_back(self._own, election, own)
            _put_back(self._staged, election, staged)

    def is_staged(self, election: str) -> bool:
        """For tests: whether a test decides ``election``."""
        return election in self._staged

    # -- small parts ----------------------------------------------------------

    @property
    def _app_name(self) -> str:
        """The app's name, the same in every process that imports it."""
        return f"{self._context.app.main or ''}|{self._context.settings.namespace}"

    def _new_view(self, name: str) -> LeaseView:
        view = self._pages.allot(name)
        self._own[name] = (*self._own.get(name, ()), view)
        return view

    def _views(self, election: str) -> Views | None:
        self._context.forks.notice()
        own = self._own.get(election)
        return self._worker_views().get(election) if own is None else own

    def _worker_views(self) -> dict[str, Views]:
        """The beliefs of this pool process's worker; empty in any other process."""
        if self._of_worker is None:
            # A process may import the app before it knows whose child it is.
            worker = worker_pid()
            if worker is None:
                return {}
            handed_down = worker == self._handed_down_by
            self._of_worker = self._handed_down if handed_down else self._left_by(worker)
        return self._of_worker

    def _left_by(self, worker: int) -> dict[str, Views]:
        """The beliefs of ``worker``, if it started this process afresh instead of forking it."""
        note = json.loads(os.environ.get(_ADDRESS) or "{}")
        found: dict[str, Views] = {}
        if note.get("worker") == worker and note["app"] == self._app_name:
            for name, view in views_at(Address(note["path"], note["mark"])):
                found[name] = (*found.get(name, ()), view)
        (self._shutdown,) = found.pop(_SHUTDOWN, (None,))
        return found

    def _after_fork(self, parent: int) -> None:
        """Keep the parent's beliefs to read, in case this becomes a worker's pool process.

        Celery says so only after the fork. A child of a pool process counts as one too.
        """
        parents = self._own
        self._own = {name: parents[name] for name in self._staged}
        self._reserved = {}
        if worker_pid() is None:
            self._of_worker = None
            self._handed_down, self._handed_down_by = parents, parent
        else:
            self._worker_views()
        # What this process writes must not stand on its parent's pages.
        self._pages = LeasePages()


def _put_back(values: dict[str, T], election: str, before: T | None) -> None:
    if before is None:
        del values[election]
    else:
        values[election] = before
