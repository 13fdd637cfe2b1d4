"""Serves this process's metrics over HTTP, where ``leader_metrics_port`` asks for it.

Guaranteed: a worker or beat whose port cannot be had starts without metrics, and says so: a
leader matters more. It serves them once the port is free. Not guaranteed: that who may scrape
is who should; the port is open to whoever reaches ``leader_metrics_address``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import weakref

from celery import Celery

from .runtime.identity import worker_pid
from .runtime.leadership import leadership_of

logger = logging.getLogger(__name__)

_RETRY = 2.0  # seconds between tries to get the port

_never = threading.Event()
_served: weakref.WeakSet[Celery] = weakref.WeakSet()


def serve_metrics(app: Celery) -> None:
    """Serve the metrics of this process, once, if ``leader_metrics_port`` is set.

    Beats inside of workers serve none, because the port is their worker's.

    Raises:
        LeaderError: prometheus-client is not installed, or its registry has metrics of
            another app of this process.
    """
    settings = leadership_of(app).settings
    if settings.metrics_port is None or app in _served or worker_pid() is not None:
        return
    from .metrics import LeaderMetrics, listen  # needs an optional package, and says which

    LeaderMetrics(app)
    _served.add(app)
    address, port = settings.metrics_address, settings.metrics_port
    try:
        _told(listen(address, port))
    except OSError as exc:
        logger.error(
            "leader_metrics_port: no metrics here while %s:%d cannot be had (%s), which is tried"
            " again; give each process of a host a port of its own, or 0 for any free one",
            address,
            port,
            exc,
        )
        threading.Thread(
            target=_listen_later, args=(address, port), name="leader-metrics", daemon=True
        ).start()


def _listen_later(address: str, port: int) -> None:
    from .metrics import listen

    while True:
        _never.wait(_RETRY)
        with contextlib.suppress(OSError):
            _told(listen(address, port))
            return


def _told(listening: socket.socket) -> None:
    # Or orphaned pool processes would keep the port of a worker that was killed.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=listening.close)
    logger.info("metrics at http://%s:%d/metrics", *listening.getsockname()[:2])
