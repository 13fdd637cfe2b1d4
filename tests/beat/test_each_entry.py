"""A beat asks before each entry whether it leads, and not once for all that are due."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

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


def test_no_tick_is_skipped_after_the_belief_lapsed_for_a_moment_before_a_send(
    bench: Bench, tmp_path: Path
) -> None:
    app = bench.app({"tick": EVERY})
    file = str(tmp_path / "schedule")
    beat = bench.started(app, partial(LeaderPersistentScheduler, schedule_filename=file)).lead()
    beat.settle()
    scheduler = beat.scheduler
    reserve = scheduler.reserve

    def reserve_in_a_lapse(entry: Any) -> Any:
        scheduler.leading_term = lambda: None
        try:
            return reserve(entry)
        finally:
            del scheduler.leading_term

    scheduler.reserve = reserve_in_a_lapse
    bench.clock.advance(10)
    beat.settle()
    del scheduler.reserve
    for _ in range(2):
        bench.clock.advance(10)
        beat.settle()
    assert bench.seconds() == [10, 20, 30]


def test_a_write_that_a_lapse_of_the_belief_has_stopped_is_made_up_for_at_once(
    bench: Bench, tmp_path: Path
) -> None:
    app = bench.app({"tick": EVERY})
    file = tmp_path / "schedule"
    starts = partial(LeaderPersistentScheduler, schedule_filename=str(file))
    scheduler = bench.started(app, starts).lead().scheduler
    scheduler._last_sync = None
    assert scheduler.should_sync()
    scheduler.leading_term = lambda: None
    assert not scheduler.should_sync(), "beat would take this write for done"
    del scheduler.leading_term
    assert scheduler.should_sync()
