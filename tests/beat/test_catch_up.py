"""What is sent of the ticks that fell due while nobody led, and what a beat makes of changes.

Most run in this process with a clock of their own, which is as good as a beat that was away
for hours; the last ones are real beats.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery.schedules import BaseSchedule, crontab, schedstate

from celery_leader.beat import LeaderScheduler
from celery_leader.errors import LeaderError
from tests.support.fixtures import NewFleet
from tests.support.local_beat import Bench
from tests.support.waiting import wait_until

MODES = ("one", "all", "none")
HOUR = 3600.0


def every(seconds: float, **options: Any) -> dict[str, Any]:
    return {"schedule": timedelta(seconds=seconds), "options": options}


def at_each(minute: str, **options: Any) -> dict[str, Any]:
    return {"schedule": crontab(minute=minute), "options": options}


def of_each_mode(make: Any, value: Any) -> dict[str, Any]:
    return {mode: make(value, leader_catch_up=mode) for mode in MODES}


# -- the modes --------------------------------------------------------------------------


def test_an_interval_that_was_due_in_a_gap_is_sent_as_its_mode_says(bench: Bench) -> None:
    entries = of_each_mode(every, 10)
    first = bench.beat(entries)
    bench.clock.advance(10)
    first.settle()
    assert [bench.seconds(mode) for mode in MODES] == [[10], [10], [10]]
    first.stop()
    bench.clock.advance(45)
    second = bench.beat(entries)
    assert bench.seconds("one") == [10, 20]
    assert bench.seconds("all") == [10, 20, 30, 40, 50]
    assert bench.seconds("none") == [10]
    bench.clock.advance(10)
    second.settle()
    # Whoever caught up with all stays on the grid; the others count from when they went on.
    assert bench.seconds("one") == [10, 20, 65]
    assert bench.seconds("all") == [10, 20, 30, 40, 50, 60]
    assert bench.seconds("none") == [10, 65]


def test_a_crontab_that_was_due_in_a_gap_is_sent_as_its_mode_says(bench: Bench) -> None:
    entries = of_each_mode(at_each, "*/10")
    bench.beat(entries).stop()
    bench.clock.advance(35 * 60)
    second = bench.beat(entries)
    assert [bench.seconds(mode) for mode in MODES] == [[600], [600, 1200, 1800], []]
    bench.clock.advance(5 * 60)
    second.settle()
    assert [each[-1] for each in map(bench.seconds, MODES)] == [2400, 2400, 2400]


def test_the_setting_holds_for_entries_that_do_not_say_otherwise(bench: Bench) -> None:
    entries = {"tick": every(10), "own": every(10, leader_catch_up="one")}
    bench.beat(entries, leader_beat_catch_up="all").stop()
    bench.clock.advance(30)
    bench.beat(entries, leader_beat_catch_up="all")
    assert bench.seconds("tick") == [10, 20, 30]
    assert bench.seconds("own") == [10]


def test_the_option_does_not_travel_with_the_message(bench: Bench) -> None:
    beat = bench.beat({"tick": every(10, leader_catch_up="all", queue="other", priority=3)})
    bench.clock.advance(10)
    beat.settle()
    (message,) = bench.messages("other\x06\x163")
    assert "leader_catch_up" not in str(message)


def test_no_more_than_the_most_are_caught_up_with_and_these_are_the_latest(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    entries = {
        "tick": every(10, leader_catch_up="all"),
        "cron": at_each("*", leader_catch_up="all"),
    }
    conf = {"leader_beat_catch_up_max": 3}
    bench.beat(entries, **conf).stop()
    bench.clock.advance(HOUR)
    with caplog.at_level("WARNING"):
        bench.beat(entries, **conf)
    assert bench.seconds("tick") == [3580, 3590, 3600]
    assert bench.seconds("cron") == [3480, 3540, 3600]
    said = [r.getMessage() for r in caplog.records if "leader_beat_catch_up_max" in r.message]
    assert len(said) == 2
    assert any("those before 2026-06-01T12:59:40" in line for line in said)


def test_a_long_gap_of_a_quick_entry_is_skipped_without_counting_through_it(bench: Bench) -> None:
    entries = {"tick": every(0.5, leader_catch_up="all")}
    bench.beat(entries).stop()
    bench.clock.advance(400 * 24 * HOUR)
    bench.beat(entries)
    assert len(bench.sent()) == 100


class Moody(BaseSchedule):
    """A schedule of a user's own, due every minute."""

    def is_due(self, last_run_at: datetime) -> schedstate:
        left = (last_run_at + timedelta(minutes=1) - self.now()).total_seconds()
        return schedstate(is_due=left <= 0, next=left if left > 0 else 60.0)


def test_what_cannot_be_told_in_advance_is_caught_up_with_once_and_that_is_said_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    entries = {"tick": {"schedule": Moody(), "options": {"leader_catch_up": "all"}}}
    bench.beat(entries).stop()
    bench.clock.advance(10 * 60)
    with caplog.at_level("WARNING"):
        beat = bench.beat(entries)
        bench.clock.advance(60)
        beat.settle()
    assert bench.seconds() == [60, 660]
    assert len([r for r in caplog.records if "cannot be told" in r.message]) == 1


def test_the_state_of_a_users_own_schedule_outlives_its_beat(bench: Bench) -> None:
    entries = {"tick": {"schedule": Moody()}}
    bench.beat(entries).stop()
    before = bench.states()
    bench.clock.advance(30)
    bench.beat(entries)
    assert bench.states() == before


@pytest.mark.parametrize("value", ["every", "All", 1, True])
def test_a_mode_that_does_not_exist_is_refused_at_the_start(bench: Bench, value: Any) -> None:
    with pytest.raises(LeaderError, match=r"entry 'tick' is .*: it must be 'one', 'all' or 'none'"):
        LeaderScheduler(bench.app({"tick": every(10, leader_catch_up=value)}))
    with pytest.raises(LeaderError, match=r"leader_beat_catch_up is .*'one', 'all' or 'none'"):
        LeaderScheduler(bench.app({"tick": every(10)}, leader_beat_catch_up=value))


@pytest.mark.parametrize("value", [0, -1, "many", True])
def test_a_most_that_makes_no_sense_is_refused_at_the_start(bench: Bench, value: Any) -> None:
    with pytest.raises(LeaderError, match="leader_beat_catch_up_max is"):
        LeaderScheduler(bench.app({"tick": every(10)}, leader_beat_catch_up_max=value))


# -- Celery's own settings for what was missed ------------------------------------------


@pytest.mark.parametrize(("late", "expected"), [(5 * 60, 1), (25 * 60, 0)])
def test_a_crontab_that_is_too_late_for_its_starting_deadline_is_not_sent(
    bench: Bench, late: float, expected: int
) -> None:
    entries = {"tick": at_each("10")}
    conf = {"beat_cron_starting_deadline": 15 * 60}
    bench.beat(entries, **conf).stop()
    bench.clock.advance(10 * 60 + late)
    second = bench.beat(entries, **conf)
    assert len(bench.sent()) == expected
    bench.clock.advance(HOUR - late)
    second.settle()
    assert bench.seconds()[expected:] == [4200]


def test_of_all_that_a_crontab_missed_what_is_too_late_to_start_is_not_sent(bench: Bench) -> None:
    quarterly = {"schedule": crontab(minute="*/15"), "options": {"leader_catch_up": "all"}}
    conf = {"beat_cron_starting_deadline": 40 * 60}
    bench.beat({"tick": quarterly}, **conf).stop()
    bench.clock.advance(2 * 3600 + 60)
    bench.beat({"tick": quarterly}, **conf)
    assert bench.seconds() == [minutes * 60 for minutes in (90, 105, 120)]


def test_a_relative_interval_stays_on_the_round_hour_across_beats(bench: Bench) -> None:
    entries = {"tick": {"schedule": timedelta(hours=1), "relative": True}}
    bench.clock.advance(7 * 60)
    bench.beat(entries).stop()
    bench.clock.advance(53 * 60)
    beat = bench.beat(entries)
    bench.clock.advance(HOUR)
    beat.settle()
    assert bench.seconds() == [3600, 7200]


def test_a_relative_day_begins_at_local_midnight_also_after_a_change_of_beats(
    bench: Bench,
) -> None:
    entries = {"tick": {"schedule": timedelta(days=1), "relative": True}}
    conf = {"timezone": "Europe/Paris"}
    for _ in range(3):
        bench.beat(entries, **conf).stop()
        bench.clock.advance(12 * HOUR)
        bench.beat(entries, **conf).stop()
        bench.clock.advance(12 * HOUR)
    assert [due.isoformat() for due in bench.sent()] == [
        f"2026-06-0{day}T22:00:00+00:00" for day in (1, 2, 3)
    ][: len(bench.sent())]
    assert len(bench.sent()) >= 2


# -- what changes between and under beats ------------------------------------------------


def test_a_crontab_in_another_timezone_goes_on_at_its_new_hour(bench: Bench) -> None:
    entries = {"tick": {"schedule": crontab(minute=0, hour=15)}}
    bench.beat(entries, timezone="UTC").stop()
    assert bench.states()["tick"]["due"] == "2026-06-01T15:00:00.000000+00:00"
    entries = {"tick": {"schedule": crontab(minute=0, hour=15)}}
    beat = bench.beat(entries, timezone="Europe/Paris")
    assert bench.states()["tick"]["due"] == "2026-06-01T13:00:00.000000+00:00"
    bench.clock.advance(HOUR)
    beat.settle()
    bench.clock.advance(2 * HOUR)
    beat.settle()
    assert bench.seconds() == [HOUR]


@pytest.mark.parametrize("mode", MODES)
def test_a_new_interval_counts_on_from_the_last_run(bench: Bench, mode: str) -> None:
    bench.beat({"tick": every(10, leader_catch_up=mode)}).stop()
    bench.clock.advance(5)
    beat = bench.beat({"tick": every(20, leader_catch_up=mode)})
    bench.clock.advance(14)
    beat.settle()
    assert bench.sent() == []
    bench.clock.advance(1)
    beat.settle()
    assert bench.seconds() == [20]


def test_of_what_a_new_schedule_missed_the_latest_alone_is_sent_if_any(bench: Bench) -> None:
    bench.beat(of_each_mode(every, HOUR)).stop()
    bench.clock.advance(35)
    beat = bench.beat(of_each_mode(every, 10))
    assert [bench.seconds(mode) for mode in MODES] == [[30], [30], []]
    bench.clock.advance(10)
    beat.settle()
    assert [bench.seconds(mode) for mode in MODES] == [[30, 45], [30, 40], [45]]


def test_an_entry_of_add_periodic_task_is_shared_like_any_other(bench: Bench) -> None:
    def started() -> Any:
        app = bench.app()

        @app.task(name="bench.tick", shared=False)
        def tick() -> None: ...

        app.add_periodic_task(10, tick.s(), name="added")
        app.add_periodic_task(crontab(minute="*/10"), tick.s())
        return bench.started(app).lead()

    first = started()
    first.settle()
    assert "added" in bench.states()
    assert len(bench.states()) == 2
    first.stop()
    bench.clock.advance(10)
    started().settle()
    assert bench.seconds() == [10]


def test_an_entry_that_is_added_while_beat_runs_is_anchored_and_sent(bench: Bench) -> None:
    beat = bench.beat({"tick": every(60)})
    beat.scheduler.add(name="new", task="bench.new", schedule=timedelta(seconds=5))
    beat.settle()
    assert set(bench.states()) == {"tick", "new"}
    bench.clock.advance(5)
    beat.settle()
    assert (bench.seconds("new"), bench.seconds("tick")) == ([5], [])


def test_an_entry_that_is_taken_out_while_beat_runs_is_not_sent(bench: Bench) -> None:
    beat = bench.beat({"tick": every(60), "other": every(5)})
    del beat.scheduler.schedule["other"]
    bench.clock.advance(60)
    beat.settle()
    assert (bench.seconds("other"), bench.seconds("tick")) == ([], [60])


def test_one_entry_that_is_taken_out_for_another_is_not_sent_and_the_other_is(
    bench: Bench,
) -> None:
    beat = bench.beat({"tick": every(60), "old": every(5)})
    del beat.scheduler.schedule["old"]
    beat.scheduler.add(name="new", task="bench.new", schedule=timedelta(seconds=3))
    beat.settle()
    assert set(bench.states()) == {"tick", "old", "new"}
    bench.clock.advance(5)
    beat.settle()
    assert (bench.seconds("old"), bench.seconds("new")) == ([], [3])


def test_an_entry_that_is_replaced_by_one_of_its_name_follows_its_new_schedule(
    bench: Bench,
) -> None:
    beat = bench.beat({"tick": every(60)})
    beat.scheduler.add(name="tick", task="bench.tick", schedule=timedelta(seconds=5))
    beat.settle()
    bench.clock.advance(5)
    beat.settle()
    assert bench.seconds() == [5]


def test_an_empty_schedule_rests_and_takes_what_comes(bench: Bench) -> None:
    beat = bench.beat()
    assert beat.settle() == beat.scheduler.max_interval
    beat.scheduler.add(name="tick", task="bench.tick", schedule=timedelta(seconds=5))
    beat.settle()
    bench.clock.advance(5)
    beat.settle()
    assert bench.seconds() == [5]


# -- clocks ------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_under_a_beat_does_not_silence_an_interval(bench: Bench) -> None:
    beat = bench.beat({"tick": every(10)})
    bench.clock.advance(10)
    beat.settle()
    bench.clock.advance(-HOUR)
    beat.settle()
    assert len(bench.sent()) == 1
    for _ in range(2):
        bench.clock.advance(10)
        beat.settle()
    assert bench.seconds() == [10, 20 - HOUR, 30 - HOUR]
    assert bench.states()["tick"]["total_run_count"] == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_clock_that_is_behind_the_last_leaders_does_not_silence_an_interval(
    bench: Bench, mode: str
) -> None:
    entries = {"tick": every(10, leader_catch_up=mode)}
    first = bench.beat(entries)
    bench.clock.advance(10)
    first.settle()
    first.stop()
    bench.clock.advance(-HOUR)
    beat = bench.beat(entries)
    assert len(bench.sent()) == 1
    bench.clock.advance(10)
    beat.settle()
    assert bench.seconds() == [10, 20 - HOUR]


def test_a_crontab_does_not_fire_again_when_the_clock_is_set_back(bench: Bench) -> None:
    beat = bench.beat({"tick": at_each("0")})
    bench.clock.advance(HOUR)
    beat.settle()
    bench.clock.advance(-HOUR / 2)
    beat.settle()
    bench.clock.advance(HOUR / 2)
    beat.settle()
    assert bench.seconds() == [HOUR]
    bench.clock.advance(HOUR)
    beat.settle()
    assert bench.seconds() == [HOUR, 2 * HOUR]


def test_clocks_that_differ_by_less_than_a_second_change_nothing(bench: Bench) -> None:
    entries = {"tick": every(10)}
    first = bench.beat(entries)
    bench.clock.advance(10)
    first.settle()
    before = bench.states()
    first.stop()
    bench.clock.advance(-0.5)
    bench.beat(entries)
    assert bench.states() == before


def test_a_clock_that_is_set_forward_sends_what_it_passed_over_once(bench: Bench) -> None:
    beat = bench.beat({"tick": every(10)})
    bench.clock.advance(HOUR)
    beat.settle()
    assert bench.seconds() == [10]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "change",
    [datetime(2026, 3, 29, 1, tzinfo=timezone.utc), datetime(2026, 10, 25, 1, tzinfo=timezone.utc)],
    ids=["clocks forward", "clocks back"],
)
def test_an_interval_goes_through_a_change_of_the_clocks_as_through_any_hour(
    bench: Bench, change: datetime, mode: str
) -> None:
    bench.clock.now = start = change - timedelta(minutes=13)
    beat = bench.beat({"tick": every(300, leader_catch_up=mode)}, timezone="Europe/Paris")
    for minute in range(1, 26):
        bench.clock.advance(60)
        beat.settle()
        assert len(bench.sent()) == minute // 5
    assert bench.sent() == [start + n * timedelta(minutes=5) for n in range(1, 6)]


def test_a_beat_that_cannot_write_its_state_at_its_end_still_resigns(bench: Bench) -> None:
    class Failing(LeaderScheduler):
        def sync(self) -> None:
            raise RuntimeError("the disk is full")

    first = bench.started(bench.app({"tick": every(10)}), Failing).lead()
    with pytest.raises(RuntimeError, match="the disk is full"):
        first.stop()
    bench.beat({"tick": every(10)})


# -- real beats ---------------------------------------------------------------------------


def test_real_beats_catch_up_as_each_entry_says(new_fleet: NewFleet) -> None:
    tasks = {"one": "unknown.one", "all": "unknown.all", "none": "unknown.none"}
    fleet = new_fleet(
        schedule={
            mode: {"task": task, "every": 0.4, "options": {"leader_catch_up": mode}}
            for mode, task in tasks.items()
        },
        conf={"leader_lease_duration": 2.0},
    )
    first, second = fleet.beats("b1", "b2")
    leader = fleet.leader("beat")
    fleet.more(2, "fleet.unknown.none")
    leader.kill()
    sent = {mode: len(fleet.ticks(f"fleet.{task}")) for mode, task in tasks.items()}
    successor = fleet.leader("beat", other_than=leader)
    assert successor in (first, second)
    fleet.more(3, "fleet.unknown.none")
    elected = fleet.history("beat")[-1].at / 1e6
    after = {
        mode: [
            datetime.fromisoformat(tick).timestamp()
            for tick in fleet.ticks(f"fleet.{task}")[sent[mode] :]
        ]
        for mode, task in tasks.items()
    }
    overdue = {mode: [tick for tick in ticks if tick < elected] for mode, ticks in after.items()}
    assert len(overdue["one"]) == 1
    assert len(overdue["all"]) >= 3
    assert overdue["none"] == []
    steps = [b - a for a, b in zip(after["all"], after["all"][1:], strict=False)]
    assert steps == pytest.approx([0.4] * len(steps), abs=1e-4)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {
                "schedule": {
                    "tick": {"task": "plain", "every": 9, "options": {"leader_catch_up": 5}}
                }
            },
            "options['leader_catch_up'] of the entry 'tick' is 5: it must be",
        ),
        (
            {"conf": {"leader_beat_catch_up": "some"}},
            "leader_beat_catch_up is 'some': it must be",
        ),
    ],
    ids=["option", "setting"],
)
def test_a_real_beat_refuses_an_unknown_mode_with_one_line(
    new_fleet: NewFleet, config: dict[str, Any], says: str
) -> None:
    fleet = new_fleet()
    beat = fleet.beat("b1", **config)
    assert beat.wait() == 1
    assert f"Error: {says} 'one', 'all' or 'none'" in beat.log
    assert "Traceback" not in beat.log
    assert fleet.history("beat") == []


def test_a_real_beat_sends_what_add_periodic_task_added(new_fleet: NewFleet) -> None:
    fleet = new_fleet(periodic=[{"name": "added", "every": 0.2}])
    fleet.beats("b1", "b2")
    fleet.more(3, "fleet.plain")
    assert len(fleet.ticks()) >= 3
    assert fleet.leases.hkeys(fleet.key("schedule", "beat")) == ["added"]


def test_a_real_beat_sends_a_crontab_that_fell_due_before_it_was_started(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(crontabs={"cron": {"task": "plain", "crontab": {"minute": "0", "hour": "0"}}})
    first = fleet.beats("b1")[0]
    key = fleet.key("schedule", "beat")
    wait_until(lambda: fleet.leases.hget(key, "cron"), what="the entry to be anchored")
    first.terminate()
    state = json.loads(fleet.leases.hget(key, "cron"))
    for part in ("due", "last_run_at"):
        days_ago = datetime.fromisoformat(state[part]) - timedelta(days=3)
        state[part] = days_ago.isoformat(timespec="microseconds")
    fleet.leases.hset(key, "cron", json.dumps(state))
    fleet.beats("b2", "b3")
    fleet.arrived(1)
    assert fleet.ticks() == [state["due"]]
    fleet.renewed(1, "beat")
    assert fleet.ticks() == [state["due"]]
    assert datetime.now(timezone.utc) < datetime.fromisoformat(
        json.loads(fleet.leases.hget(key, "cron"))["due"]
    )
