"""Takes from this process what another system lacks, and then sends a task by celery_leader.

Run as ``python -m tests.package.other_systems windows``. Celery, kombu and what they import are there
before: whether they work elsewhere is their own affair.
"""

from __future__ import annotations

import importlib
import importlib.abc
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from celery import Celery

MISSING: dict[str, dict[ModuleType, str]] = {
    "macos": {
        os: "memfd_create eventfd sched_getaffinity",
        time: "CLOCK_BOOTTIME",
    },
    "windows": {
        os: "memfd_create eventfd sched_getaffinity register_at_fork fork forkpty set_blocking"
        " get_blocking geteuid getuid getegid getgid setsid killpg getpgid getpgrp uname mkfifo"
        " O_NONBLOCK WNOHANG",
        signal: "SIGURG SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGQUIT SIGTSTP SIGCONT"
        " SIGSTOP SIGPIPE pthread_kill pthread_sigmask setitimer alarm siginterrupt",
        time: "CLOCK_BOOTTIME CLOCK_MONOTONIC clock_gettime",
    },
}
NO_MODULES = {"macos": set[str](), "windows": {"fcntl", "resource", "termios", "pwd", "grp", "tty"}}
#: They need an optional package, which may need what is missing.
OPTIONAL = {"celery_leader.beat.django", "celery_leader.beat.redbeat"}


class _Missing(importlib.abc.MetaPathFinder):
    def __init__(self, names: set[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        if name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def become(system: str) -> None:
    """Take away from this process what ``system`` lacks."""
    for module, names in MISSING[system].items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    for name in NO_MODULES[system]:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Missing(NO_MODULES[system]))


def main(system: str) -> None:
    Celery("first", broker="memory://", set_as_current=False).send_task("anything")
    become(system)

    import celery_leader

    app = Celery("proj", broker="memory://")
    celery_leader.install(app)

    @app.task
    @celery_leader.leader_only
    def report() -> None: ...

    @app.task
    def plain() -> None: ...

    print(report.delay().id, plain.delay().id)
    for module in pkgutil.iter_modules(celery_leader.__path__, "celery_leader."):
        if module.name not in OPTIONAL:
            importlib.import_module(module.name)
    print("imported everything")


if __name__ == "__main__":
    main(sys.argv[1])
