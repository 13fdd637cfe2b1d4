"""A beat asks before each entry whether it leads, and not once for all that are due."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path

from celery_leader.beat import LeaderPersistentScheduler
from tests.support.local_beat import Bench

EVERY = {"schedule": timedelta(seconds=10)}


def test_what_is_due_after_a_beat_has_stopped_leading_is_not_sent(
    bench: Bench, tmp_path: Path
) -> None:
    app = bench.app({"first": EVERY, "second": EVERY})
    file = str(tmp_path / "schedule")
    beat = bench.started(app, partial(LeaderPersistentScheduler, schedule_filename=file)).lead()
    beat.settle()
    bench.clock.advance(10)
    scheduler = beat.scheduler
    scheduler.apply_async(scheduler.schedule["first"])
    scheduler._candidate.local.view.withdraw()
    scheduler.apply_async(scheduler.schedule["second"])
    assert [message["headers"]["task"] for message in bench.messages()] == ["bench.first"]
