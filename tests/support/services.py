"""Services that a test needs and a machine may lack."""

from __future__ import annotations

import os

import pytest


def must_have(there: object, reason: str) -> None:
    """Skip on a laptop that lacks something, and fail in CI, which must not."""
    if there:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
