"""The private names of Celery, kombu and redis-py that this package needs.

They are not documented, and any version may change them. So each has its reason here, and where
one is gone a ``LeaderError`` says so in one sentence. Seen in Celery 5.5 to 5.7, kombu 5.5 to 5.7
and redis-py 5.0 to 8.1. No other module looks up a private name of these three. Subclasses of
theirs, such as the schedulers and the transport of ``beat``, override private methods.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from celery_leader.errors import LeaderError


def imported(where: str, why: str) -> Any:
    """The object at ``where``, written as ``module:name``.

    Raises:
        LeaderError: it is gone. ``why`` says what it is needed for.
    """
    module, _, name = where.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as exc:
        raise _gone(module, where, why) from exc


def attribute(owner: Any, name: str, why: str) -> Any:
    """The attribute ``name`` of ``owner``, an object or a class of a library.

    Raises:
        LeaderError: it is gone. ``why`` says what it is needed for.
    """
    try:
        return getattr(owner, name)
    except AttributeError as exc:
        kind = owner if isinstance(owner, type) else type(owner)
        raise _gone(kind.__module__, f"{kind.__qualname__}.{name}", why) from exc


def _gone(module: str, what: str, why: str) -> LeaderError:
    library = module.partition(".")[0]
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return LeaderError(
        f"{library} {version} has no {what}, which celery_leader needs to {why}: use an earlier"
        f" {library}, or a later celery_leader"
    )
