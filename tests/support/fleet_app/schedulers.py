"""The scheduler classes of the fleet's beats."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from celery.beat import PersistentScheduler, Scheduler

from celery_leader.beat import LeaderMixin, LeaderScheduler
from tests.support.fleet_app import VARIABLE
from tests.support.fleet_app.recorder import Recorder

#: While Redis has this key, a ``StoredScheduler`` waits at the gate ``store``.
STORE = "fleet:store-hangs"


class MixedScheduler(LeaderMixin, PersistentScheduler):  # type: ignore[misc]
    """A scheduler class of a user's own that takes part in the election."""


class StoredScheduler(Scheduler):  # type: ignore[misc]
    """A scheduler that reads a store at each turn; the store may take long."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """As stock, once the store has answered."""
        recorder = Recorder(json.loads(os.environ[VARIABLE])["record"])
        if recorder.client.exists(STORE):
            recorder.wait_at_gate("store")
        return float(super().tick(*args, **kwargs))


class LeaderStoredScheduler(LeaderMixin, StoredScheduler):
    """``StoredScheduler``, dispatching on the leading beat only."""


class DyingAfterScheduler(LeaderScheduler):
    """Stops its process (SIGSTOP) after its third message is published, before it is confirmed."""

    _published = 0

    def apply_async(self, entry: Any, producer: Any = None, **kwargs: Any) -> Any:
        result = super().apply_async(entry, producer=producer, **kwargs)
        self._published += 1
        if self._published == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return result


class DyingBeforeScheduler(LeaderScheduler):
    """Stops its process (SIGSTOP) after its third tick is claimed, before the publish."""

    _published = 0

    def apply_async(self, entry: Any, producer: Any = None, **kwargs: Any) -> Any:
        self._published += 1
        if self._published == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().apply_async(entry, producer=producer, **kwargs)
