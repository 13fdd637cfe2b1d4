"""Sends leader-only tasks in every way there is, and knows the id of each of them."""

from __future__ import annotations

import datetime
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, chain, chord, group, uuid

from tests.chaos.accounts import Sent
from tests.chaos.task_app import FAR

_BETWEEN_LONG = 10.0  # seconds; more of them would leave no room for others
_BETWEEN_FAR = 0.5  # seconds; so few wait for a late ETA at once that others are sent
_PATIENCE = 2.0  # seconds
_AT_MOST_OPEN = 250  # ids that are sent and not yet ended, or the run would only pile up


class Sender:
    """Sends from ``with`` until ``stop``, as many as the workers can take.

    Args:
        app: the app of the tasks, as a web process has it.
        stranger: an app that shares the broker and knows no task.
        queues: those of single workers.
        ended: how many ids have ended so far.
    """

    def __init__(
        self,
        app: Celery,
        stranger: Celery,
        queues: list[str],
        seed: int,
        ended: Callable[[], int],
    ) -> None:
        self._body = app.tasks["chaos.body"]
        self._again = app.tasks["chaos.again"]
        self._skipped = app.tasks["chaos.skipped"]
        self._long_body = app.tasks["chaos.long"]
        self._early = app.tasks["chaos.early"]
        self._next_long = self._next_far = 0.0
        self._stranger = stranger
        self._queues = queues
        self._chance = random.Random(seed)
        self._ended = ended
        self._ids = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self.sent: list[Sent] = []
        self.error: BaseException | None = None

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more."""
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        ways = {
            "delay": self._delay,
            "countdown": self._countdown,
            "eta": self._eta,
            "far eta": self._far_eta,
            "early ack": self._early_ack,
            "queue of a worker": self._queue,
            "send_task": self._send_task,
            "chain": self._chain,
            "group": self._group,
            "chord": self._chord,
            "retry": self._retry,
            "link": self._link,
            "skip": self._skip,
            "long": self._long,
        }
        # Nobody waits for results here, one by one; each thread has a backend of its own.
        backend = self._body.app.backend
        backend.on_task_call = backend.remove_pending_result = lambda *_: None
        try:
            while not self._over.is_set():
                for way in self._chance.sample(list(ways), len(ways)):
                    if ids := ways[way]():
                        self.sent.append(Sent(way, ids))
                        self._ids += len(ids)
                # What is skipped or gone stays open, so this must not wait for ever.
                patient_until = time.monotonic() + _PATIENCE
                while self._ids - self._ended() > _AT_MOST_OPEN:
                    if self._over.wait(0.05):
                        return
                    if time.monotonic() > patient_until:
                        break
        except BaseException as exc:
            self.error = exc
            raise

    # -- the ways ------------------------------------------------------------------

    def _delay(self) -> tuple[str, ...]:
        return (self._body.delay().id,)

    def _countdown(self) -> tuple[str, ...]:
        return (self._body.apply_async(countdown=self._chance.uniform(0.1, 2.5)).id,)

    def _eta(self) -> tuple[str, ...]:
        later = datetime.timedelta(seconds=self._chance.uniform(0.1, 2.5))
        return (
            self._body.apply_async(eta=datetime.datetime.now(datetime.timezone.utc) + later).id,
        )

    def _far_eta(self) -> tuple[str, ...]:
        if time.monotonic() < self._next_far:
            return ()
        self._next_far = time.monotonic() + _BETWEEN_FAR
        return (self._body.apply_async(countdown=self._chance.uniform(FAR / 2, FAR)).id,)

    def _early_ack(self) -> tuple[str, ...]:
        return (self._early.delay().id,)

    def _queue(self) -> tuple[str, ...]:
        return (self._body.apply_async(queue=self._chance.choice(self._queues)).id,)

    def _send_task(self) -> tuple[str, ...]:
        return (self._stranger.send_task("chaos.body").id,)

    def _chain(self) -> tuple[str, ...]:
        ids, steps = self._steps(3)
        chain(*steps).apply_async()
        return ids

    def _group(self) -> tuple[str, ...]:
        ids, steps = self._steps(3)
        group(steps).apply_async()
        return ids

    def _chord(self) -> tuple[str, ...]:
        ids, (*header, total) = self._steps(4)
        chord(header)(total)
        return ids

    def _retry(self) -> tuple[str, ...]:
        return (self._again.delay().id,)

    def _link(self) -> tuple[str, ...]:
        ids, (first, second) = self._steps(2)
        first.apply_async(link=second)
        return ids

    def _skip(self) -> tuple[str, ...]:
        return (self._skipped.apply_async(queue=self._chance.choice(self._queues)).id,)

    def _long(self) -> tuple[str, ...]:
        if time.monotonic() < self._next_long:
            return ()
        self._next_long = time.monotonic() + _BETWEEN_LONG
        return (self._long_body.delay().id,)

    def _steps(self, count: int) -> tuple[tuple[str, ...], list[Any]]:
        ids = tuple(uuid() for _ in range(count))
        return ids, [self._body.s().set(task_id=task_id) for task_id in ids]
