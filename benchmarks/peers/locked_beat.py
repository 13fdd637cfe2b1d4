"""Stock beat under redis-py's Lock, as one writes it by hand: ``python -m … SCHEDULE_FILE``.

The lock is taken before beat starts, renewed in a thread, and given back at the end. Beat
is told to end once the lock is another's, or could not be renewed for a whole lease.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

import redis
from redis.exceptions import LockError, RedisError

from benchmarks.peers.app import app, config


def main() -> None:
    lease = config["lease"]
    client = redis.Redis.from_url(config["broker"])
    lock = client.lock("beat", timeout=lease, thread_local=False)
    lock.acquire()

    def renew() -> None:
        renewed = time.monotonic()
        while time.monotonic() < renewed + lease:
            time.sleep(lease / 5)
            try:
                lock.reacquire()
                renewed = time.monotonic()
            except LockError:
                break
            except RedisError:
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=renew, daemon=True).start()
    try:
        app.Beat(loglevel="INFO", schedule=sys.argv[1]).run()
    finally:
        with contextlib.suppress(RedisError):
            lock.release()


if __name__ == "__main__":
    main()
