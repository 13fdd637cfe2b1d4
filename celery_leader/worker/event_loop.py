"""The worker's event loop: woken from other threads, and watched for standing still."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery_leader.compat.celery_worker import SoloPool
from celery_leader.core.watchdog import Heartbeat
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.clock import now
from celery_leader.runtime.wake_pipe import WakePipe


class EventLoop:
    """The worker's event loop, as the consumer step uses it.

    Args:
        c: Celery's consumer.
        runtime: makes the heartbeat that tells its watchdog that the loop moves.
        act: called in the loop after each ``wake``.
    """

    def __init__(self, c: Any, runtime: AppRuntime, act: Callable[[], None]) -> None:
        self._c = c
        self._act = act
        self._pipe = WakePipe()
        self._timer: Any = None
        #: Beats while the loop moves; ``None`` where a leader can work without a moving loop.
        self.heartbeat = runtime.new_heartbeat("the event loop") if _has_loop(c) else None

    def wake(self) -> None:
        """Have the loop call ``act`` soon; from any thread.

        ``hub.call_soon``, called from another thread, would not end the loop's wait.
        """
        if self._c.hub is None:
            self._c.call_soon(self._act)
        else:
            self._pipe.wake()

    def begins(self, hub: Any) -> None:
        """The loop begins, for the first time or after a reconnect."""
        hub.add_reader(self._pipe.fileno(), self._on_wake)

    def watch(self, hub: Any) -> None:
        """From now on the loop has to move."""
        if self.heartbeat is not None:
            self.excuse()
            self._timer = hub.call_repeatedly(
                self.heartbeat.period, functools.partial(_show_life, self.heartbeat)
            )
            _show_life(self.heartbeat)

    def excuse(self) -> None:
        """The loop may stand: the connection is lost, or the worker shuts down."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.heartbeat is not None:
            self.heartbeat.suspend()

    def _on_wake(self) -> None:
        self._pipe.drain()
        self._act()


def _show_life(heartbeat: Heartbeat) -> None:
    heartbeat.beat(now())


def _has_loop(c: Any) -> bool:
    """Whether an event loop that stands still means that nothing is consumed.

    With ``solo`` the loop stands still while a body runs. With a pool of greenlets Celery has no
    loop; if the greenlets' own hub stands still, the lease is not renewed either.
    """
    return c.hub is not None and not isinstance(c.pool, SoloPool)
