"""celery-redbeat with an elected leader: ``celery beat -S leader-redbeat``.

Needs the package celery-redbeat. redbeat's own lock is not used: the election takes its
place, so a beat that loses the lead follows and goes on where redbeat's would end.
"""

from __future__ import annotations

from typing import Any

from redbeat import RedBeatScheduler

from .beat import LeaderMixin


class LeaderRedBeatScheduler(LeaderMixin, RedBeatScheduler):  # type: ignore[misc]
    """``RedBeatScheduler`` that dispatches on the leading beat only."""

    lock_key = None

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(app, *args, **kwargs)
        self.lock_key = None

    def entries_in_memory(self) -> dict[str, Any]:
        """None: redbeat reads its entries from Redis at each turn."""
        return {}
