"""The demo on a Redis of somebody else, and one that is broken off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from tests.support import ROOT
from tests.support.waiting import wait_until


@pytest.fixture
def demo(redis_url: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo, on the session's Redis, writing to ``tmp_path``."""
    env = {**os.environ, "REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait(30)
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_broken_off_leaves_no_process_and_no_key(
    demo: subprocess.Popen[str], redis_url: str, number: signal.Signals
):
    with redis.Redis.from_url(redis_url) as client:
        client.set("somebody-else's", 1)
        assert demo.stdout is not None
        for line in demo.stdout:
            if "leads the beats" in line:
                break
        started = psutil.Process(demo.pid).children(recursive=True)
        assert len(started) >= 6

        demo.send_signal(number)

        assert demo.wait(30) == 128 + number
        wait_until(lambda: not any(map(_runs, started)), what="all to be gone")
        assert client.keys() == [b"somebody-else's"]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
