"""The command line of ``celery worker`` and ``celery beat``, seen from inside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from celery_leader.errors import LeaderError

from .settings import BEAT


def beat_hostname() -> str | None:
    """The ``--hostname`` given to ``celery beat``; Celery does not pass it to schedulers."""
    context = click.get_current_context(silent=True)
    if context is None or context.command.name != BEAT:
        return None
    hostname = context.params.get("hostname")
    return hostname if isinstance(hostname, str) and hostname else None


@contextlib.contextmanager
def refusing_clearly() -> Iterator[None]:
    """Turn a ``LeaderError`` into one line for a command line; elsewhere it stays as it is."""
    try:
        yield
    except LeaderError as exc:
        if click.get_current_context(silent=True) is None:
            raise
        raise click.ClickException(str(exc)) from exc
