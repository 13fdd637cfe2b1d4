"""Serves this process's metrics over HTTP if ``leader_metrics_port`` is set.

Guaranteed: a worker or beat whose port is taken starts without metrics and logs that, because
leading matters more. It serves them once the port is free. Not guaranteed: any protection;
everybody who reaches ``leader_metrics_address`` can read the metrics.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref

from celery import Celery

from .compat.celery import worker_pid
from .runtime.app_runtime import runtime_of
from .runtime.log import get_logger

logger = get_logger(__name__)

_RETRY = 2.0  # seconds between tries to get the port

_never = threading.Event()
_served: weakref.WeakSet[Celery] = weakref.WeakSet()


def serve_metrics(app: Celery) -> None:
    """Serve the metrics of this process, once, if ``leader_metrics_port`` is set.

    A beat inside a worker serves none, because its worker has the port.

    Raises:
        LeaderError: prometheus-client is not installed, or its registry already has metrics of
            another app in this process.
    """
    settings = runtime_of(app).settings
    if settings.metrics_port is None or app in _served or worker_pid() is not None:
        return
    from .metrics import LeaderMetrics, listen  # needs an optional package

    LeaderMetrics(app)
    _served.add(app)
    address, port = settings.metrics_address, settings.metrics_port
    try:
        _announce(listen(address, port))
    except OSError as exc:
        logger.error(
            "leader_metrics_port: no metrics while %s:%d cannot be used (%s); it is tried again."
            " Give each process of a host its own port, or 0 for any free port",
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
            _announce(listen(address, port))
            return


def _announce(listening: socket.socket) -> None:
    # Otherwise orphaned pool processes keep the port of a worker that was killed.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=listening.close)
    logger.info("metrics at http://%s:%d/metrics", *listening.getsockname()[:2])
