"""The states of the shared schedule: those that a leader uses, and those that it leaves alone.

Guaranteed: an entry whose state another project or a later version wrote is not sent, and its state
is not overwritten. Another project's states are never removed. Other states are removed when no
leader has known their entry for ``leader_schedule_retention``; only for that a mark is added to
them, or taken away. Names are compared as text, since Redis keeps them as text.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Collection, Iterable, Mapping

from celery.utils import uuid

from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.apps import app_identity
from celery_leader.runtime.clock import now
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.settings import DEFAULT_CLOCK_TOLERANCE

from .entry_state import Tidying, is_later
from .fenced_store import FencedStore
from .moments import timestamp
from .projects import Ownership, Project

logger = get_logger(__name__)

_MOST_NAMED = 5  # entries in one line of the log
_TIDY_INTERVAL = 3600.0  # seconds between two searches for states that nobody knows


class SharedStates:
    """The states that one leader has read, with the changes it has made since.

    ``read`` and ``write`` raise ``StoreUnavailable`` if nobody knows what became of the request.

    Args:
        runtime: the app's part in its elections.
        store: the shared schedule.
    """

    def __init__(self, runtime: AppRuntime, store: FencedStore) -> None:
        self._runtime = runtime
        self._store = store
        self._states: dict[str, str] = {}
        #: This project's id in the shared schedule.
        self.project = ""
        #: By the name of each entry that another project wrote: the id of that project.
        self._foreign: dict[str, str] = {}
        self._tidies_at = math.inf
        # Seconds from the monotonic clock to the moment where the future begins, by Redis's clock.
        self._future = math.inf
        self._said_later: set[str] = set()
        self._said_foreign: set[str] = set()

    # -- what is known ---------------------------------------------------------------------

    def __contains__(self, name: object) -> bool:
        """Whether there is a state of the entry called ``name``."""
        return str(name) in self._states

    def of(self, name: object) -> str:
        """The state of the entry called ``name``; empty if there is none."""
        return self._states.get(str(name), "")

    def note(self, name: object, state: str) -> None:
        """Note that Redis now has ``state`` for the entry called ``name``."""
        self._states[str(name)] = state

    def is_left_alone(self, name: object) -> bool:
        """Whether another project or a later version has written the entry called ``name``."""
        name = str(name)
        if is_later(self.of(name)):
            self._tell_of_later([name])
            return True
        return name in self._foreign

    def is_future(self, moment: datetime.datetime) -> bool:
        """Whether ``moment`` is ahead of the clock of Redis by more than the clock tolerance."""
        return timestamp(moment) > now() + self._future

    # -- reading and tidying -----------------------------------------------------------------

    def read(self, term: int, known: Collection[object]) -> bool:
        """Read all states after an election; return whether Redis agreed to the needed writes.

        ``known`` are the names of all entries that this leader knows.
        """
        states = self._tidied(term, {str(name) for name in known})
        if states is None:
            return False
        self._states = states
        return True

    @property
    def is_tidying_due(self) -> bool:
        """Whether a leader should look again for states that nobody knows."""
        return now() >= self._tidies_at

    def tidy(self, term: int, known: Collection[object]) -> bool:
        """Remove the states that nobody has known for long; return whether the others stand.

        ``False``: Redis did not agree, or other entries belong to other projects now; read the
        states again.
        """
        foreign = self._foreign
        try:
            agreed = self._tidied(term, {str(name) for name in known}) is not None
        except StoreUnavailable as exc:
            logger.debug("beat: the shared schedule could not be tidied: %s", exc)
            return True
        return agreed and self._foreign == foreign

    def write(self, term: int, states: Mapping[str, str]) -> bool:
        """Replace the known states of entries in Redis by new ones; return whether it agreed."""
        changes = {str(name): (self.of(name), new) for name, new in states.items()}
        if not self._store.write(term, changes):
            return False
        self._states.update({name: new for name, (_, new) in changes.items()})
        return True

    def _tidied(self, term: int, known: set[str]) -> dict[str, str] | None:
        """Read and tidy the states to use; ``None`` if Redis did not agree to a write."""
        settings = self._runtime.settings
        # Before the question: if Redis does not answer, the next turn need not ask again.
        self._tidies_at = now() + min(settings.schedule_retention, _TIDY_INTERVAL)
        stored = self._store.load()
        app = app_identity(self._runtime.app)
        ownership = Ownership.of(Project.of(app, known), stored.projects, stored.states, uuid()[:8])
        if not self._store.register(term, ownership):
            return None
        self.project, self._foreign = ownership.id, ownership.foreign(stored.states)
        self._tell_of_foreign(known, ownership)
        ours = {name: each for name, each in stored.states.items() if name not in self._foreign}
        tolerance = settings.beat_clock_tolerance or DEFAULT_CLOCK_TOLERANCE
        tidying = Tidying.of(ours, known, stored.now, settings.schedule_retention, tolerance)
        if self._store.is_shared:
            self._future = stored.now + tolerance - now()
        if not self._store.write(term, tidying.marks):
            return None
        if not self._store.forget(term, tidying.gone):
            return None
        states = ours | {name: new for name, (_, new) in tidying.marks.items()}
        for name in tidying.gone:
            del states[name]
        self._tell_of_later(name for name in known if is_later(states.get(name, "")))
        return states

    # -- what the log says -------------------------------------------------------------------

    def _tell_of_later(self, names: Iterable[str]) -> None:
        untold = sorted(set(names) - self._said_later)
        self._said_later.update(untold)
        if untold:
            logger.error(
                "beat: a later version of celery_leader wrote the state of %s%s; this beat leaves"
                " it alone and does not send %s: upgrade this beat",
                ", ".join(untold[:_MOST_NAMED]),
                f" and of {len(untold) - _MOST_NAMED} more" if len(untold) > _MOST_NAMED else "",
                "it" if len(untold) == 1 else "them",
            )

    def _tell_of_foreign(self, known: set[str], ownership: Ownership) -> None:
        """Log, once for each entry, that another project has an entry of the same name."""
        for name in sorted(known & self._foreign.keys() - self._said_foreign):
            self._said_foreign.add(name)
            project = self._foreign[name]
            logger.error(
                "beat: %s is not sent, because another project (%s) has an entry of that name in"
                " the same election: give one of them another leader_namespace, and another"
                " leader_queue or task_default_queue. If it is the same project under new names,"
                " have its states adopted: redis-cli HDEL %s %s",
                name,
                ownership.others[project],
                self._store.projects_key,
                project,
            )
