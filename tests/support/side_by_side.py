"""What the processes of pytest-xdist share: which of them runs a test, and files that one of them makes.

Tests that share a fixture of their module are one group: one process runs them and makes the fixture
once. ``--dist loadgroup`` tells the groups by writing them into the node ids. Since pytest 9.2 that has
no effect, and ``--last-failed`` never knew such ids. So here the processes write the groups to a file,
and the scheduler reads it.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

_FILE = "file of the groups"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a new process where to write the groups; all of them write the same."""
    node.workerinput[_FILE] = str(_file(node.workerinput["testrunuid"]))


def _file(run: str) -> Path:
    return Path(tempfile.gettempdir(), f"celery-leader-groups-{run}.json")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist says in the same hook that this process is ready
def pytest_collection_finish(session: pytest.Session) -> None:
    """Write down the groups."""
    given = getattr(session.config, "workerinput", {}).get(_FILE)
    if given:
        groups = {item.nodeid: group for item in session.items if (group := _group(item))}
        written = Path(f"{given}.{os.getpid()}")
        written.write_text(json.dumps(groups))
        written.replace(given)


def _group(item: pytest.Item) -> str | None:
    shared = [name for name in item.fixturenames if _is_of_module(item, name)]
    if not shared:
        return None
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    of_these = [str(parameters[name]) for name in shared if name in parameters]
    return "-".join([item.path.parent.name, item.path.name, *of_these])


def _is_of_module(item: pytest.Item, fixture: str) -> bool:
    made = item._fixtureinfo.name2fixturedefs.get(fixture)
    return made is not None and made[-1].scope == "module"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Give out groups, the largest first, and then the other tests as they were collected."""
    from xdist.scheduler import LoadScopeScheduling

    class InGroups(LoadScopeScheduling):
        _groups: dict[str, str] | None = None

        def _split_scope(self, nodeid: str) -> str:
            if self._groups is None:
                file = Path(self.nodes[0].workerinput[_FILE])
                self._groups = json.loads(file.read_text())
                file.unlink()
            return self._groups.get(nodeid, nodeid)

    return InGroups(config, log)


def made_once(name: str, make: Callable[[Path], None], directories: pytest.TempPathFactory) -> Path:
    """A file that the first of all processes makes, for tests that only read it."""
    directory = directories.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent  # which is that of this run
    file = directory / name
    with Path(f"{file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            unfinished = Path(f"{file}.unfinished")
            make(unfinished)
            unfinished.replace(file)
    return file
