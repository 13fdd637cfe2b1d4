"""A process that was forked without Python's knowledge notices it, once."""

from __future__ import annotations

import errno
import mmap
import sys

import pytest

from celery_leader.runtime import forks
from tests.support.fixtures import RunPython

PROGRAM = """
import ctypes, os
from celery_leader.runtime.forks import ForkWatch
watch = ForkWatch()
if {by_process_id}:
    watch._mark = None
told = []
watch.call_in_child(told.append)
watch.notice()
parent = os.getpid()
if ctypes.CDLL(None).fork() == 0:
    watch.notice()
    watch.notice()
    print(told == [parent], watch.owner == os.getpid(), flush=True)
    if ctypes.CDLL(None).fork() == 0:
        watch.notice()
        print(told == [parent, os.getppid()], flush=True)
        os._exit(0)
    os.wait()
    os._exit(0)
os.wait()
print(told == [], flush=True)
"""


@pytest.mark.parametrize("by_process_id", [False, True])
def test_a_fork_in_c_is_noticed_once_in_each_child(by_process_id: bool, python: RunPython) -> None:
    done = python("-c", PROGRAM.format(by_process_id=by_process_id))
    assert done.stdout.split() == ["True"] * 4, done.stderr


@pytest.mark.parametrize("taken", [(), (-1, 18)], ids=["knows no advice", "ignores all advice"])
def test_process_ids_are_compared_where_the_kernel_cannot_empty_a_page(
    taken: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Page(mmap.mmap):
        def madvise(self, advice: int) -> None:  # type: ignore[override]
            if advice not in taken:
                raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(forks.mmap, "mmap", Page)
    monkeypatch.setattr(sys, "platform", "linux")
    watch = forks.ForkWatch()
    told: list[int] = []
    watch.call_in_child(told.append)
    watch.notice()
    assert told == []
    parent, watch.owner = watch.owner, watch.owner + 1
    watch.notice()
    assert told == [parent + 1]
    assert watch.owner == parent
