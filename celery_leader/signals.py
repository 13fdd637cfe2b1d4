"""Signals of leader elections, for an app's own code.

Receivers run in the process where the event happened, one after another, in a thread of their
own. However slow they are and whatever they raise, renewals, dispatches and tasks go on. So a
signal tells what *has* happened, a little later. Decide and fence nothing by it: ask
``is_leader()``. If receivers fall far behind, further signals are dropped, and the log says so.

Receivers must take ``**kwargs``, because later versions may add arguments. ``sender`` is the
app, or the task for ``task_forwarded`` and ``task_skipped``. ``node`` is the candidate of this
process that the signal is about. ``leader`` and ``reason`` can come from Redis, and are passed on
as they stand there: anybody who can write to Redis can have written them.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

leader_elected = Signal(name="leader_elected", providing_args={"election", "node", "term"})

leader_deposed = Signal(
    name="leader_deposed",
    providing_args={"election", "node", "term", "reason", "sudden", "led_for"},
)

leader_changed = Signal(
    name="leader_changed", providing_args={"election", "node", "term", "leader"}
)

dispatch_refused = Signal(
    name="dispatch_refused", providing_args={"election", "node", "term", "entry", "reason"}
)

task_forwarded = Signal(
    name="task_forwarded", providing_args={"election", "node", "task", "task_id", "queue"}
)

task_skipped = Signal(
    name="task_skipped", providing_args={"election", "node", "task", "task_id", "by"}
)
