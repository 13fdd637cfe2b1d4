"""A Celery app: taken out of its proxy, told from other apps, made the current app for a while."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

from celery import Celery

from celery_leader.compat.celery import current_app, unproxied
from celery_leader.core.kinship import identity
from celery_leader.errors import LeaderError


def celery_app(app: Any, asking: str) -> Celery:
    """``app`` itself, also where a proxy such as ``celery.current_app`` stands for it.

    Raises:
        LeaderError: ``app`` is not a Celery app. The message says that ``asking`` takes one.
    """
    app = unproxied(app)
    if not isinstance(app, Celery):
        raise LeaderError(f"{asking} takes a Celery app, and {app!r} is none")
    return app


def app_identity(app: Celery) -> str:
    """A text that tells this app from another project's."""
    return _identity(app.main or "", frozenset(app.tasks))


#: The names of all tasks are hashed once, and again when there are others.
_identity = functools.lru_cache(maxsize=8)(identity)


@functools.cache
def versions() -> dict[str, str]:
    """The versions of the packages that decide how a candidate behaves."""
    packages = ("celery_leader", "celery", "redis")
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


@contextlib.contextmanager
def current(app: Celery) -> Iterator[None]:
    """While open, ``app`` is the current app."""
    before = current_app()
    app.set_current()
    try:
        yield
    finally:
        before.set_current()
