"""Shows of examples."""

from __future__ import annotations

from tests.examples.shows import new_show as new_show
