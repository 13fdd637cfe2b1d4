"""Prints what a process can see of how it was started, as JSON, and exits with 7."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from random import random
from typing import Any


def seen() -> dict[str, Any]:
    main = sys.modules["__main__"]
    streams = (sys.stdin, sys.stdout, sys.stderr)
    mask = os.umask(0)
    os.umask(mask)
    return {
        "of its own": {"pid": os.getpid(), "random": random(), "parent": os.getppid()},
        "argv": sys.argv,
        "path": sys.path,
        "flags": list(sys.flags),
        "directory": str(Path.cwd()),
        # Sentry adds such a variable of its own to each process that is started.
        "environment": {k: v for k, v in os.environ.items() if not k.startswith("SUBPROCESS_")},
        "main": [main.__name__, main.__spec__ and main.__spec__.name, main.__file__],
        "group and session": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid()],
        "files": {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in _open_files()},
        "streams": [
            [s.fileno(), s.encoding, s.errors, s.line_buffering, s.write_through] for s in streams
        ],
        "signals": {n: str(signal.getsignal(n)) for n in signal.valid_signals()},
        "blocked": [str(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "umask": mask,
        "threads": threading.active_count(),
        "user": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
    }


def _open_files() -> list[int]:
    return [
        int(name) for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").exists()
    ]


if __name__ == "__main__":
    print(json.dumps(seen()))
    sys.exit(7)
