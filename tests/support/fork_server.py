"""A process that has imported Celery, and forks what a test starts: a fifth of the work of a start.

``python -m tests.support.fork_server`` reads requests from its standard input, a line of JSON each,
and answers each with a line:

``{"module", "arguments", "log", "errors", "environment"}``
    Fork a process that goes on as ``python -m module arguments`` with that environment. Its output
    goes to the end of the file ``log``, its errors to that of ``errors``. The answer is its process
    id.
``{"look": pid}``
    The exit status of a process that has ended, which keeps its process id; ``null`` while it runs.
``{"reap": pid}``
    Forget a process that has ended; another may get its id.

It ends when its input does. ``tests/support/launching.py`` asks it, and says what it is not asked for.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
from importlib import import_module
from typing import Any

from tests.support.lean_celery import leave_out_what_none_uses

#: What workers and beats import; a test sees to it that these bring nothing that they do not.
IMPORTED = (
    "celery.__main__",
    "celery.bin.celery",
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.concurrency.prefork",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.control",
    "celery_leader",
    "celery_leader.worker.consumer_step",
    "kombu.transport.redis",
)


def serve() -> dict[str, Any] | None:
    """Answer requests until there are no more. In each forked process, return what it is to be."""
    for line in sys.stdin:
        request = json.loads(line)
        if "look" in request:
            looked = os.waitid(os.P_PID, request["look"], os.WEXITED | os.WNOHANG | os.WNOWAIT)
            _answer(None if looked is None else looked.si_status)
        elif "reap" in request:
            os.waitpid(request["reap"], 0)
            _answer(None)
        elif os.fork() == 0:
            # It answers itself, once it is in a group that can be killed.
            os.setsid()
            _answer(os.getpid())
            return dict(request)
    return None


def _answer(value: int | None) -> None:
    os.write(1, f"{json.dumps(value)}\n".encode())


def become(request: dict[str, Any]) -> None:
    """Go on as the process that was asked for."""
    to_the_end = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), (request["log"], to_the_end), (request["errors"], to_the_end)]
    ):
        descriptor = os.open(path, flags)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    leave_out_what_none_uses()
    del sys.modules[leave_out_what_none_uses.__module__]  # the forks run it
    for module in IMPORTED:
        import_module(module)
    gc.freeze()
    asked_for = serve()
    if asked_for is not None:
        become(asked_for)
