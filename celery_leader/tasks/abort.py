"""Stops a body when its worker stops leading: raises in the body, then kills its process.

A thread watches each body. It needs no I/O and no other process, because the worker's main
process may be paused. Guaranteed: in a main thread the error also interrupts a system call in
which the body waits. A pool process whose body goes on is killed before the lease that it knew
of has run out. Not guaranteed: anything while C code keeps the GIL or the machine stands still.
In other threads, a call in which the body waits may have to return before the error is raised.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from celery_leader.compat.celery import worker_pid
from celery_leader.compat.kombu import detect_environment
from celery_leader.errors import NotLeader
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.clock import now

from .admission import NotLeading
from .bodies import term_here

#: The signal that interrupts a body in a main thread. No other code in a worker uses it, and it
#: is ignored by default, so a late one does no harm. Windows has no such signal: there the error
#: is raised in a main thread as in any other thread.
STRIKE: Any = getattr(signal, "SIGURG", None)

_STEP = 0.02  # seconds between looks

T = TypeVar("T")


def aborted_when_deposed(task: Any, run: Callable[..., T], election: str) -> Callable[..., T]:
    """Wrap ``run``, the body of ``task``: stop it when its worker no longer leads."""

    @functools.wraps(run)
    def watched(*args: Any, **kwargs: Any) -> T:
        runtime = runtime_of(task.app)
        if task.request.called_directly or task.request.is_eager or runtime.always_leads():
            return run(*args, **kwargs)
        if detect_environment() != "default":  # greenlets: the worker has logged a warning
            return run(*args, **kwargs)
        term = term_here(runtime, election)
        if term is None:
            raise NotLeading(f"{election} is not led here")
        with stopped_when_lost(
            lambda: runtime.beliefs.valid_until(election, term),
            f"{election}: deposed, term {term}, while {task.name} ran",
            spare=runtime.settings.timing.margin / 2,
            process_is_ours=worker_pid() is not None,
        ):
            return run(*args, **kwargs)

    return watched


@contextlib.contextmanager
def stopped_when_lost(
    led_until: Callable[[], float | None], message: str, *, spare: float, process_is_ours: bool
) -> Iterator[None]:
    """Raise ``NotLeader`` in this thread as soon as ``led_until`` answers ``None``.

    Args:
        led_until: tells until when this process leads at least; called again and again.
        message: the text of the error.
        spare: for how many seconds after that moment no other process can lead.
        process_is_ours: whether the process may be killed when ``spare`` is over.
    """
    watch = _Watch(led_until, spare, process_is_ours)
    try:
        try:
            watch.begin()
            yield
        finally:
            watch.end()
    except NotLeader as exc:
        watch.end()  # the one strike may have interrupted the first ``end``
        if watch.struck and not exc.args:
            exc.args = (message,)
        raise


class _Watch:
    """One body, and the thread that watches over it."""

    def __init__(
        self, led_until: Callable[[], float | None], spare: float, process_is_ours: bool
    ) -> None:
        self.struck = False
        self._led_until = led_until
        self._spare = spare
        self._process_is_ours = process_is_ours
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._body = threading.get_ident()
        in_main = threading.current_thread() is threading.main_thread()
        self._by_signal = in_main and STRIKE is not None
        self._handler: Any = None

    def begin(self) -> None:
        if self._by_signal:
            self._handler = signal.signal(STRIKE, self._on_strike)
        threading.Thread(target=self._watch, name="leader-abort", daemon=True).start()

    def end(self) -> None:
        with self._lock:
            self._ended.set()
            if not self._by_signal:
                _raise_in(self._body, None)  # an error not yet raised must not hit other code
        if self._by_signal:
            signal.signal(STRIKE, self._handler or signal.SIG_DFL)

    def _on_strike(self, *_: Any) -> None:
        if not self._ended.is_set():
            raise NotLeader

    def _watch(self) -> None:
        safe_until = now() + self._spare
        while not self._ended.wait(_STEP):
            until = self._led_until()
            if until is None:
                break
            safe_until = until + self._spare
        self._strike()
        if self._process_is_ours and not self._ended.wait(max(0.0, safe_until - now())):
            os.kill(os.getpid(), signal.SIGKILL)

    def _strike(self) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            self.struck = True
            if self._by_signal:
                signal.pthread_kill(self._body, STRIKE)
            else:
                _raise_in(self._body, NotLeader)


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    argument = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), argument)
