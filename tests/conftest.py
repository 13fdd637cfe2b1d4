"""What holds for all tests; their shared fixtures are in ``tests/support/fixtures.py``."""

from __future__ import annotations

import signal

import pytest

pytest_plugins = ["tests.support.fixtures"]


def pytest_configure() -> None:
    """A shell has what it starts in the background ignore SIGINT, and so do its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook, pytest the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start a server or a process, and those that must share one process."""
    for item in items:
        if "real" in item.fixturenames:
            item.add_marker(pytest.mark.real)
        if item.path.parent.name == "store":
            item.add_marker(pytest.mark.store)
        group = _group(item)
        if group:
            item.add_marker(pytest.mark.xdist_group(group))


def _group(item: pytest.Item) -> str | None:
    """Tests that share a fixture of their module run in one process, which makes it once."""
    shared = [name for name in item.fixturenames if _is_of_module(item, name)]
    if not shared:
        return None
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    of_these = [str(parameters[name]) for name in shared if name in parameters]
    # Not its node id: pytest remembers that once it was asked for, and xdist writes the group into it.
    return "-".join([item.path.parent.name, item.path.name, *of_these])


def _is_of_module(item: pytest.Item, fixture: str) -> bool:
    made = item._fixtureinfo.name2fixturedefs.get(fixture)
    return made is not None and made[-1].scope == "module"
