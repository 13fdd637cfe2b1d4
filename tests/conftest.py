"""What holds for all tests; their shared fixtures are in ``tests/support/fixtures.py``."""

from __future__ import annotations

import signal

import pytest

pytest_plugins = ["tests.support.fixtures", "tests.support.side_by_side"]


def pytest_configure() -> None:
    """A shell has what it starts in the background ignore SIGINT, and so do its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # pytest reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start a server or a process."""
    for item in items:
        if "real" in item.fixturenames:
            item.add_marker(pytest.mark.real)
        if item.path.parent.name == "store":
            item.add_marker(pytest.mark.store)
