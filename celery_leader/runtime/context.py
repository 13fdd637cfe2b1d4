"""The settings and elections of one app, shared by everything that this process does for it."""

from __future__ import annotations

import weakref

from celery import Celery

from celery_leader.core.watchdog import Heartbeat
from celery_leader.errors import LeaderError

from .forks import ForkWatch
from .lease_source import LeaseSource, lease_source
from .log import get_logger
from .settings import BEAT, WORKER, Settings, unknown_settings

logger = get_logger(__name__)

#: The term of a process that leads because no other process can.
ALWAYS_TERM = 1


class AppContext:
    """The app, its settings, the names of its elections, and whether this process always leads.

    Attributes:
        forks: tells when this process was forked.
        task_elections: the elections that leader-only tasks name. Filled as tasks are found.
        entered: the elections that this process took part in.
    """

    def __init__(self, app: Celery) -> None:
        self._app = weakref.ref(app)
        self._settings: Settings | None = None
        self._alone: bool | None = None
        self.forks = ForkWatch()
        self.task_elections: set[str] = set()
        self.entered: set[str] = set()

    @property
    def app(self) -> Celery:
        """The app. It outlives everything that asks for it."""
        app = self._app()
        assert app is not None
        return app

    @property
    def settings(self) -> Settings:
        """The app's settings, read once.

        Raises:
            LeaderError: a setting cannot be used.
        """
        if self._settings is None:
            self._settings = Settings.of(self.app)
        return self._settings

    def tell_unknown_settings(self) -> None:
        """Log a warning for every ``leader_*`` setting that does not exist."""
        for complaint in unknown_settings(self.app):
            logger.warning("%s", complaint)

    def elections(self) -> set[str]:
        """Every election this app knows of."""
        return {
            WORKER,
            BEAT,
            *(self.settings.elections or ()),
            *self.task_elections,
            *self.entered,
        }

    def check_known(self, election: str) -> None:
        """Refuse an election that this app does not know.

        Raises:
            LeaderError: it does not know ``election``.
        """
        if election not in self.elections():
            raise LeaderError(
                f"there is no election {election!r} here; known are"
                f" {', '.join(sorted(self.elections()))}. Add it to leader_elections or"
                " start a LeaderElection of that name"
            )

    def queue(self, election: str) -> str:
        """The queue of the leader of ``election``."""
        queue = self.settings.queue
        return queue if election == WORKER else f"{queue}.{election}"

    def check(self) -> None:
        """Refuse a configuration that cannot work, before anything is started.

        Raises:
            LeaderError: the message says what to change.
        """
        self.always_leads()

    def always_leads(self) -> bool:
        """Whether no other process can lead: eager mode, or a broker inside this process.

        Raises:
            LeaderError: the broker cannot keep leases.
        """
        if self.app.conf.task_always_eager:
            return True
        if self._alone is None:
            self._alone = self.lease_source() is None
        return self._alone

    def new_heartbeat(self, what: str) -> Heartbeat | None:
        """The heartbeat of ``what``; ``None`` where ``leader_watchdog`` is off."""
        patience = self.settings.watchdog
        return Heartbeat(what, patience) if patience else None

    def lease_source(self, operation_timeout: float | None = None) -> LeaseSource | None:
        """A new way to connect to the Redis that keeps the leases; ``None`` if there is none."""
        settings = self.settings
        return lease_source(
            self.app,
            url=settings.url,
            transport_options=settings.transport_options,
            operation_timeout=operation_timeout or settings.timing.operation_timeout,
        )
