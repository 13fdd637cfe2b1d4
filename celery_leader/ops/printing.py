"""Prints text for people and JSON for scripts, and makes both safe.

Node names, app names and reasons come from Redis, and anybody who can write to Redis can put
anything there. Guaranteed: no value can control a terminal, begin a new line, or make JSON
invalid. All output of ``celery leader`` goes through ``safe``.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

import click

from celery_leader.core.names import printable

T = TypeVar("T")


def safe(value: T) -> T:
    """``value`` without control characters, and with ``None`` for each number that is not finite.

    Works on text and on values that become JSON.
    """
    made_safe: Any = value
    match value:
        case str():
            made_safe = printable(value)
        case dict():
            made_safe = {safe(key): safe(each) for key, each in value.items()}
        case list() | tuple():
            made_safe = [safe(each) for each in value]
        case float() if not math.isfinite(value):
            made_safe = None
    result: T = made_safe
    return result


def say(line: str, *, error: bool = False) -> None:
    """Print one line, on standard error if it is an error."""
    click.echo(safe(line), err=error)


def say_json(value: Any, indent: int | None = None) -> None:
    """Print ``value`` as JSON, in one line unless it is to be indented."""
    click.echo(json.dumps(safe(value), indent=indent, allow_nan=False))
