"""Finds the name that somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_CLOSE = 0.5  # as close as "lease" is to "lease_duration"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that is spelt most like ``name``; ``None`` if none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=_CLOSE)), None)
