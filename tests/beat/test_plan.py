"""What is due when: occurrences, the text that is stored of them, and what is caught up with."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import VERSION, Celery
from celery.beat import ScheduleEntry
from celery.schedules import BaseSchedule, crontab, schedstate, schedule, solar
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_leader.beat.entry_state import amended, last_run
from celery_leader.beat.moments import utc_text
from celery_leader.beat.plan import CATCH_UP_OPTION, Plan, Tick, catch_up_of, task_id_of
from celery_leader.beat.planner import Planner
from celery_leader.beat.timetable import due_of, fingerprint, latest_missed, occurrence_after
from celery_leader.errors import LeaderError
from celery_leader.runtime.settings import CatchUp, Settings
from tests.support.fixtures import RunPython

UTC = timezone.utc
PARIS = ZoneInfo("Europe/Paris")
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def in_zone(zone: str) -> Celery:
    app = Celery(set_as_current=False)
    app.conf.timezone = zone
    return app


APP, IN_PARIS = in_zone("UTC"), in_zone("Europe/Paris")


def entry_of(timetable: Any, name: str = "tick", **fields: Any) -> ScheduleEntry:
    fields.setdefault("last_run_at", NOON)
    return ScheduleEntry(name=name, task="a.task", schedule=timetable, app=APP, **fields)


def every(seconds: float, **options: Any) -> schedule:
    return schedule(timedelta(seconds=seconds), app=APP, **options)


def occurrences(timetable: Any, start: datetime, end: datetime) -> list[datetime]:
    """As the leader finds them: each from the stored, UTC, one before."""
    found = []
    moment = occurrence_after(timetable, start)
    while moment is not None and moment <= end:
        found.append(datetime.fromisoformat(utc_text(moment)))
        moment = occurrence_after(timetable, found[-1])
    return found


def fires_by_itself(timetable: Any, start: datetime, end: datetime) -> list[datetime]:
    """When Celery's own beat would find it due, looking every minute."""
    now = last = start
    timetable.nowfun = lambda: now.astimezone(PARIS)
    fired = []
    while now <= end:
        if timetable.is_due(last.astimezone(PARIS)).is_due:
            fired.append(now)
            last = now
        now += MINUTE
    return fired


class Unforeseeable(BaseSchedule):
    """A schedule of a user's own, of which only ``is_due`` is known."""

    def __init__(self, limit: int, app: Celery | None = None) -> None:
        super().__init__(app=app)
        self.limit = limit

    def is_due(self, last_run_at: datetime) -> schedstate:
        return schedstate(is_due=True, next=1.0)


class Slower(schedule):
    """A subclass may count otherwise than its parent."""


# -- occurrences --------------------------------------------------------------------


def test_an_interval_occurs_one_interval_after_any_moment() -> None:
    assert occurrence_after(every(90.2), NOON) == NOON + timedelta(seconds=90.2)


@pytest.mark.parametrize("day", [datetime(2026, 3, 29), datetime(2026, 10, 25)], ids=str)
def test_an_interval_is_one_of_real_time_where_the_clocks_change(day: datetime) -> None:
    start = (day + HOUR / 2).replace(tzinfo=UTC)
    expected = [start + n * every(600).run_every for n in range(1, 10)]
    moment = start.astimezone(PARIS)
    found = []
    for _ in expected:
        following = occurrence_after(every(600), moment)
        assert following is not None
        moment = following
        found.append(moment.astimezone(UTC))
    assert found == expected
    assert latest_missed(every(600), start.astimezone(PARIS), moment, 4) == found[-4]


def test_an_interval_of_no_length_has_no_next_occurrence() -> None:
    assert occurrence_after(every(0), NOON) is None


def test_a_relative_interval_occurs_on_the_round_minute_or_hour() -> None:
    moment = NOON + timedelta(minutes=7, seconds=13)
    assert occurrence_after(every(3600, relative=True), moment) == NOON + HOUR
    assert occurrence_after(every(60, relative=True), moment) == NOON + 8 * MINUTE


@pytest.mark.xfail(
    VERSION < (5, 6), strict=True, reason="Celery 5.5 counts a day as 24 hours across the change"
)
def test_a_relative_day_occurs_at_local_midnight_on_both_sides_of_a_change_of_the_clocks() -> None:
    daily = schedule(DAY, relative=True, app=IN_PARIS)
    start = datetime(2026, 3, 27, 12, tzinfo=PARIS)
    local = [at.astimezone(PARIS) for at in occurrences(daily, start, start + 5 * DAY)]
    assert [(at.day, at.hour) for at in local] == [(28, 0), (29, 0), (30, 0), (31, 0), (1, 0)]


CRONTABS: list[dict[str, Any]] = [
    {"minute": "*/10"},
    {"minute": 0},
    {"minute": 0, "hour": "*/2"},
    {"minute": 30, "hour": 2},
    {"minute": "*/20", "hour": 2},
    {"minute": 0, "hour": 3},
    {"minute": 59, "hour": 23},
    {"minute": 30, "hour": 1, "day_of_week": "sun"},
]


@pytest.mark.parametrize("fields", CRONTABS, ids=str)
@pytest.mark.parametrize(
    "start",
    [datetime(2026, 3, 28, 20, 3, tzinfo=UTC), datetime(2026, 10, 24, 20, 3, tzinfo=UTC)],
    ids=["clocks forward", "clocks back"],
)
def test_a_crontab_occurs_when_celerys_beat_would_fire_also_where_the_clocks_change(
    start: datetime, fields: dict[str, Any]
) -> None:
    if VERSION < (5, 6) and start.month == 3 and fields == {"minute": 30, "hour": 2}:
        pytest.xfail("Celery 5.5 fires it at three o'clock where 2:30 does not exist")
    end = start + timedelta(hours=14)
    expected = fires_by_itself(crontab(app=IN_PARIS, **fields), start, end)
    assert occurrences(crontab(app=IN_PARIS, **fields), start, end) == expected
    assert expected or fields["hour"] in (1, 23)


def test_a_local_hour_that_does_not_exist_occurs_an_hour_later_and_once() -> None:
    at_half_past_two = crontab(minute=30, hour=2, app=IN_PARIS)
    start = datetime(2026, 3, 28, 12, tzinfo=PARIS)
    first, second = occurrences(at_half_past_two, start, start + 2 * DAY)
    assert first.astimezone(PARIS).strftime("%d %H:%M") == "29 03:30"
    assert second.astimezone(PARIS).strftime("%d %H:%M") == "30 02:30"


def test_a_local_hour_that_exists_twice_occurs_once() -> None:
    at_half_past_two = crontab(minute=30, hour=2, app=IN_PARIS)
    start = datetime(2026, 10, 24, 12, tzinfo=PARIS)
    first, second = occurrences(at_half_past_two, start, start + 2 * DAY)
    assert second - first == DAY + HOUR


@pytest.mark.parametrize(
    ("fields", "start", "expected"),
    [
        ({"day_of_month": 31}, "2026-01-31", ["2026-03-31", "2026-05-31", "2026-07-31"]),
        ({"day_of_month": 30}, "2026-01-30", ["2026-03-30", "2026-04-30"]),
        ({"day_of_month": 29, "month_of_year": 2}, "2026-01-01", ["2028-02-29", "2032-02-29"]),
        ({"day_of_month": "28-31"}, "2026-02-27", ["2026-02-28", "2026-03-28", "2026-03-29"]),
        ({"day_of_month": 1}, "2026-12-31", ["2027-01-01", "2027-02-01"]),
    ],
)
def test_a_crontab_skips_the_months_that_lack_its_day(
    fields: dict[str, Any], start: str, expected: list[str]
) -> None:
    timetable = crontab(minute=0, hour=6, app=APP, **fields)
    moment = datetime.fromisoformat(start).replace(hour=7, tzinfo=UTC)
    found = []
    for _ in expected:
        following = occurrence_after(timetable, moment)
        assert following is not None
        moment = following
        found.append(moment.date().isoformat())
    assert found == expected


def test_a_sunrise_occurs_once_a_day_and_at_the_same_moment_whenever_it_is_asked_for() -> None:
    pytest.importorskip("ephem", reason="solar schedules need ephem")
    sunrise = solar("sunrise", 48.85, 2.35, app=APP)
    start = datetime(2026, 3, 20, tzinfo=UTC)
    found = occurrences(sunrise, start, start + 20 * DAY)
    assert [at.date() for at in found] == [(start + n * DAY).date() for n in range(20)]
    assert found == occurrences(sunrise, start, start + 20 * DAY)


@pytest.mark.xfail(
    VERSION < (5, 7), strict=True, raises=AssertionError, reason="Celery before 5.7 raises there"
)
def test_the_sun_that_does_not_rise_for_weeks_occurs_when_it_does() -> None:
    pytest.importorskip("ephem", reason="solar schedules need ephem")
    tromso = solar("sunrise", 69.65, 18.96, app=APP)
    following = occurrence_after(tromso, datetime(2026, 12, 10, tzinfo=UTC))
    assert following is not None
    assert (following.year, following.month) == (2027, 1)


@pytest.mark.parametrize(
    "timetable",
    [Unforeseeable(1, app=APP), Slower(5, app=APP)],
    ids=["a class of its own", "a subclass"],
)
def test_the_occurrences_of_a_schedule_of_the_users_own_cannot_be_told(timetable: Any) -> None:
    assert occurrence_after(timetable, NOON) is None


def test_the_occurrences_of_a_schedule_that_raises_cannot_be_told() -> None:
    class Broken(crontab):
        def remaining_delta(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("broken")

    assert occurrence_after(Broken(app=APP), NOON) is None


# -- what of a gap is caught up with --------------------------------------------------


@pytest.mark.parametrize("missed", [0, 1, 4, 5, 6, 1000])
def test_of_a_missed_interval_the_latest_are_kept_and_stay_on_their_grid(missed: int) -> None:
    timetable, due = every(10), NOON
    now = due + missed * timedelta(seconds=10) + SECOND
    start = latest_missed(timetable, due, now, 5)
    left = [start, *occurrences(timetable, start, now)]
    assert len(left) == min(missed + 1, 5)
    assert left[-1] == due + missed * timedelta(seconds=10)
    assert (start - due) % timedelta(seconds=10) == timedelta(0)


@pytest.mark.parametrize("gap", [MINUTE, HOUR, 30 * HOUR, 400 * DAY], ids=str)
def test_of_a_missed_crontab_the_latest_are_kept(gap: timedelta) -> None:
    timetable = crontab(minute="*/15", app=IN_PARIS)
    now = NOON + gap
    every_one = [NOON, *occurrences(timetable, NOON, now)] if gap < 40 * HOUR else []
    start = latest_missed(timetable, NOON, now, 7)
    left = [start, *occurrences(timetable, start, now)]
    assert len(left) <= 7
    if every_one:
        assert left == every_one[-7:]
    else:
        assert len(left) == 7


def test_of_a_rare_crontab_nothing_is_dropped_that_there_is_room_for() -> None:
    yearly = crontab(minute=0, hour=0, day_of_month=1, month_of_year=1, app=APP)
    due = datetime(2020, 1, 1, tzinfo=UTC)
    now = datetime(2026, 6, 1, tzinfo=UTC)
    assert latest_missed(yearly, due, now, 100) == due
    assert latest_missed(yearly, due, now, 3) == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("value", ["ONE", "", "every", 1, True, ["one"]])
def test_an_unknown_way_to_catch_up_is_refused_and_the_entry_is_named(value: Any) -> None:
    with pytest.raises(LeaderError) as refused:
        catch_up_of("nightly", {CATCH_UP_OPTION: value}, CatchUp.ONE)
    assert str(refused.value) == (
        f"options['leader_catch_up'] of the entry 'nightly' is {value!r}:"
        " it must be 'one', 'all' or 'none'"
    )


def test_an_entry_without_the_option_catches_up_as_the_setting_says() -> None:
    for options in ({}, None, {"queue": "q"}, {CATCH_UP_OPTION: None}):
        assert [catch_up_of("tick", options, mode) for mode in CatchUp] == list(CatchUp)
    assert catch_up_of("tick", {CATCH_UP_OPTION: "none"}, CatchUp.ALL) is CatchUp.NONE


# -- telling one schedule from another ------------------------------------------------

_IN_ANOTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.beat.test_plan import some_timetables, fingerprint
print("\\n".join(fingerprint(each) for each in some_timetables()))
"""


def some_timetables() -> list[Any]:
    return [
        every(90),
        every(90.2),
        every(90, relative=True),
        schedule(timedelta(seconds=90), relative=True, app=IN_PARIS),
        crontab(minute={30, 0, 15}, hour="*/2", app=APP),
        crontab(minute={30, 0, 15}, hour="*/2", app=IN_PARIS),
        crontab(minute=0, app=APP),
        Unforeseeable(1, app=APP),
        Unforeseeable(2, app=APP),
    ]


def test_a_schedule_has_the_same_fingerprint_in_every_process(python: RunPython) -> None:
    here = [fingerprint(each) for each in some_timetables()]
    root = str(Path(__file__).resolve().parents[2])
    there = python("-c", _IN_ANOTHER_PROCESS, root)
    assert there.stdout.splitlines() == here


def test_any_two_schedules_that_differ_have_different_fingerprints() -> None:
    fingerprints = [fingerprint(each) for each in some_timetables()]
    assert len(set(fingerprints)) == len(fingerprints)


def test_asking_a_schedule_something_does_not_change_its_fingerprint() -> None:
    for timetable in some_timetables():
        before = fingerprint(timetable)
        timetable.is_due(NOON)
        _ = timetable.tz, timetable.utc_enabled, timetable.now()
        assert fingerprint(timetable) == before


# -- plans --------------------------------------------------------------------------


def a_plan(timetable: Any = None, sequence: int = 7, **fields: Any) -> Plan:
    entry = entry_of(timetable or every(60), **fields)
    return Plan.to_dispatch(entry, sequence, NOON + MINUTE)


def test_a_plan_is_restored_as_it_was_stored() -> None:
    plan = a_plan(total_run_count=5, args=(1,), options={"queue": "q"})
    fresh = entry_of(every(60), last_run_at=NOON + DAY, args=(1,), options={"queue": "q"})
    restored = Plan.restored(fresh, plan.state)
    assert restored is not None
    assert (restored.sequence, restored.due, restored.state) == (7, plan.due, plan.state)
    assert restored.entry.last_run_at == NOON
    assert restored.entry.total_run_count == 5
    assert (restored.entry.args, restored.entry.options) == ((1,), {"queue": "q"})
    assert not restored.claimed
    assert fresh.last_run_at == NOON + DAY


@pytest.mark.parametrize(
    "other",
    [every(61), every(60.5), every(60, relative=True), crontab(app=APP), Unforeseeable(1, app=APP)],
    ids=["longer", "a bit longer", "relative", "a crontab", "a class of its own"],
)
def test_a_plan_for_another_schedule_is_not_restored_and_its_number_goes_on(other: Any) -> None:
    stored = a_plan().state
    assert Plan.restored(entry_of(other), stored) is None
    assert Plan.anchored(entry_of(other), stored, NOON).sequence == 8


def test_a_crontab_in_another_timezone_is_another_schedule() -> None:
    stored = a_plan(crontab(hour=4, minute=0, app=APP)).state
    assert Plan.restored(entry_of(crontab(hour=4, minute=0, app=IN_PARIS)), stored)
    moved = ScheduleEntry(
        name="tick", task="a.task", schedule=crontab(hour=4, minute=0), app=IN_PARIS
    )
    assert Plan.restored(moved, stored) is None


DAMAGED = [
    "",
    "{",
    "null",
    "[]",
    "17",
    '"text"',
    "{}",
    '{"schedule": "every 60.0 s"}',
    '{"tick": "2026-06-01T12:00:00+00:00", "last_run_at": "2026-06-01", "total_run_count": 1}',
    a_plan().state[:-5],
    json.dumps({**json.loads(a_plan().state), "sequence": "many"}),
    json.dumps({**json.loads(a_plan().state), "due": 12}),
    json.dumps({**json.loads(a_plan().state), "due": "soon"}),
    json.dumps({**json.loads(a_plan().state), "last_run_at": None}),
    json.dumps({**json.loads(a_plan().state), "total_run_count": [1]}),
]


@pytest.mark.parametrize("stored", DAMAGED)
def test_what_cannot_be_read_is_not_restored_and_is_written_anew(stored: str) -> None:
    assert Plan.restored(entry_of(every(60)), stored) is None
    anchored = Plan.anchored(entry_of(every(60)), stored, NOON)
    assert anchored.sequence >= 1
    assert Plan.restored(entry_of(every(60)), anchored.state) == anchored


def test_fields_of_a_later_version_do_no_harm() -> None:
    stored = json.dumps({**json.loads(a_plan().state), "colour": "blue"})
    restored = Plan.restored(entry_of(every(60)), stored)
    assert restored is not None
    assert restored.state == stored


def test_a_claim_changes_nothing_but_that_it_is_claimed() -> None:
    plan = a_plan(total_run_count=3)
    claim = plan.claim()
    assert claim.claimed
    assert (claim.sequence, claim.due, claim.entry) == (plan.sequence, plan.due, plan.entry)
    assert {**json.loads(claim.state), "claimed": False} == {
        **json.loads(plan.state),
        "claimed": False,
    }
    restored = Plan.restored(entry_of(every(60)), claim.state)
    assert restored is not None
    assert restored.claimed
    assert restored.claim().state == claim.state


def test_a_dispatched_tick_is_followed_by_the_next_number() -> None:
    plan = a_plan(total_run_count=3).claim()
    following = plan.dispatched(NOON + MINUTE, NOON + 2 * MINUTE)
    assert (following.sequence, following.due) == (8, NOON + 2 * MINUTE)
    assert following.entry.last_run_at == NOON + MINUTE
    assert following.entry.total_run_count == 4
    assert not following.claimed
    assert plan.entry.total_run_count == 3


def test_a_postponed_tick_keeps_its_number_and_its_last_run() -> None:
    postponed = a_plan(total_run_count=3).postponed(NOON + HOUR)
    assert (postponed.sequence, postponed.due) == (7, NOON + HOUR)
    assert postponed.entry.last_run_at == NOON
    assert postponed.entry.total_run_count == 3


def test_a_restarted_entry_is_counted_from_then_and_has_not_run() -> None:
    restarted = a_plan(total_run_count=3).restarted(NOON + HOUR, NOON + 2 * HOUR)
    assert (restarted.sequence, restarted.due) == (7, NOON + 2 * HOUR)
    assert restarted.entry.last_run_at == NOON + HOUR
    assert restarted.entry.total_run_count == 3


def test_moments_are_stored_in_utc_whatever_zone_they_come_in() -> None:
    moment = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=PARIS)
    assert utc_text(moment) == "2026-10-25T01:30:00.000000+00:00"
    assert utc_text(moment.replace(fold=0)) == "2026-10-25T00:30:00.000000+00:00"
    assert utc_text(datetime(2026, 1, 1)) == "2026-01-01T00:00:00.000000+00:00"


# -- ticks of entries that another scheduler plans -----------------------------------


def test_a_tick_is_known_by_the_run_it_is_counted_from() -> None:
    entry = entry_of(every(60))
    tick = Tick.of(entry)
    assert (tick.counted_from, tick.label) == (utc_text(NOON), utc_text(NOON + MINUTE))
    assert Tick.of(entry) == tick
    assert Tick.of(next(entry)) != tick


def test_a_tick_is_sent_once_it_is_stored_as_sent_and_not_while_it_is_claimed() -> None:
    entry = entry_of(every(60), total_run_count=4)
    tick = Tick.of(entry)
    before = ""
    claimed = tick.claimed(before)
    sent = tick.sent(entry)
    assert not tick.is_in(before)
    assert not tick.is_in(claimed)
    assert tick.is_in(sent)
    assert not Tick.of(next(entry)).is_in(sent)
    assert all(not tick.is_in(text) for text in DAMAGED)


def test_a_claim_does_not_count_as_a_run_and_what_was_sent_does() -> None:
    entry = entry_of(every(60), total_run_count=4)
    tick = Tick.of(entry)
    assert last_run(tick.claimed("")) == (NOON, 0)
    assert last_run(tick.claimed(tick.sent(entry))) == (NOON, 5)
    at, count = last_run(tick.sent(entry)) or (None, 0)
    assert count == 5
    assert at is not None
    assert at > NOON - DAY
    assert last_run("") is None
    assert last_run("{}") is None


def test_a_tick_that_was_noted_where_its_entry_is_kept_is_another_when_it_is_there_again() -> None:
    entry = entry_of(every(60))
    tick = replace(Tick.of(entry), facts={"noted": False})
    sent = tick.sent(entry)
    assert tick.is_in(sent)
    assert not tick.is_in(amended(sent, noted=True))
    assert not tick.is_in(tick.claimed(amended(sent, noted=True)))


def test_a_tick_that_is_claimed_keeps_its_label_whoever_goes_on_with_it() -> None:
    entry = entry_of(Unforeseeable(1, app=APP))
    claimed = replace(Tick.of(entry), label=utc_text(NOON - HOUR)).claimed("")
    assert Tick.of(entry, claimed).label == utc_text(NOON - HOUR)
    assert Tick.of(next(entry), claimed).label != utc_text(NOON - HOUR)


def test_an_entry_is_due_at_its_occurrence_to_the_microsecond_whenever_it_is_asked() -> None:
    at_one = crontab(minute=0, hour=13, nowfun=lambda: NOON + MINUTE + SECOND / 7, app=APP)
    entry = entry_of(at_one, last_run_at=NOON)
    assert due_of(entry, *entry.is_due()) == NOON + HOUR
    late = crontab(minute=0, hour=13, nowfun=lambda: NOON + 2 * HOUR + SECOND / 7, app=APP)
    entry = entry_of(late, last_run_at=NOON)
    due_now, next_in = entry.is_due()
    assert due_now
    assert due_of(entry, due_now, next_in) == NOON + HOUR
    assert due_of(entry, False, next_in) == NOON + HOUR + DAY


def test_a_schedule_that_was_changed_goes_on_from_the_last_run_with_the_next_number() -> None:
    stored = a_plan(total_run_count=5).state
    plan = Plan.of_another_schedule(entry_of(every(61), last_run_at=NOON + DAY), stored)
    assert plan is not None
    assert (plan.sequence, plan.entry.last_run_at, plan.entry.total_run_count) == (8, NOON, 5)
    assert plan.is_for(every(61))
    claimed = Plan.of_another_schedule(entry_of(every(61)), a_plan().claim().state)
    assert claimed is not None
    assert (claimed.sequence, claimed.claimed, claimed.due) == (7, True, NOON + MINUTE)


def test_the_label_of_an_entry_that_cannot_tell_is_the_moment_it_is_sent() -> None:
    class Raising(Unforeseeable):
        def __repr__(self) -> str:
            return "raising"

    entry = entry_of(Raising(1, app=APP))
    assert datetime.fromisoformat(Tick.of(entry).label) > NOON - 365 * DAY


def test_a_task_id_is_the_same_for_the_same_tick_only() -> None:
    one = task_id_of("celery", "tick", utc_text(NOON))
    assert one == task_id_of("celery", "tick", utc_text(NOON))
    others = {
        task_id_of("other", "tick", utc_text(NOON)),
        task_id_of("celery", "tock", utc_text(NOON)),
        task_id_of("celery", "tick", utc_text(NOON + SECOND)),
    }
    assert len(others) == 3
    assert one not in others


# -- a leader's loop, without its leader ------------------------------------------------


def run_through(
    seconds: float, gaps: list[tuple[float, float]], mode: CatchUp
) -> tuple[list[datetime], list[int]]:
    """Leaders one after the other: each leads a while, then nobody does for a while.

    Returns the due times that were sent, and how many of them each leader found overdue.
    """
    now = [NOON]
    timetable = schedule(timedelta(seconds=seconds), nowfun=lambda: now[0], app=APP)
    stored = Plan.anchored(entry_of(timetable), "", NOON + timedelta(seconds=seconds)).state
    sent: list[datetime] = []
    missed: list[int] = []
    for led, gap in gaps:
        plan = Plan.restored(entry_of(timetable), stored)
        assert plan is not None
        elected = now[0]
        missed.append(0)
        if mode is CatchUp.NONE and plan.due < elected:
            plan = plan.restarted(elected, elected + timedelta(seconds=seconds))
        until = elected + timedelta(seconds=led)
        while plan.due <= until or plan.due <= now[0]:
            now[0] = max(now[0], plan.due)
            due, next_in = timetable.is_due(plan.entry.last_run_at)
            assert due, f"{plan.entry.last_run_at} at {now[0]}"
            sent.append(plan.due)
            missed[-1] += plan.due < elected
            following = occurrence_after(timetable, plan.due) if mode is CatchUp.ALL else None
            if following is not None:
                plan = plan.dispatched(plan.due, following)
            else:
                plan = plan.dispatched(now[0], now[0] + timedelta(seconds=next_in))
        stored = plan.state
        now[0] = max(now[0], until) + timedelta(seconds=gap)
    return sent, missed


lengths = st.floats(0.0, 500.0)
runs = st.lists(st.tuples(lengths, lengths), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(seconds=st.floats(20.0, 300.0), gaps=runs)
def test_where_all_are_caught_up_with_each_occurrence_is_sent_once_in_order(
    seconds: float, gaps: list[tuple[float, float]]
) -> None:
    sent, _ = run_through(seconds, gaps, CatchUp.ALL)
    step = timedelta(seconds=seconds)
    assert sent == [NOON + (n + 1) * step for n in range(len(sent))]


@settings(max_examples=100, deadline=None)
@given(seconds=st.floats(20.0, 300.0), gaps=runs)
def test_where_one_is_caught_up_with_a_gap_sends_at_most_one_and_nothing_twice(
    seconds: float, gaps: list[tuple[float, float]]
) -> None:
    sent, missed = run_through(seconds, gaps, CatchUp.ONE)
    assert sent == sorted(set(sent))
    assert max(missed) <= 1


@settings(max_examples=100, deadline=None)
@given(seconds=st.floats(20.0, 300.0), gaps=runs)
def test_where_none_is_caught_up_with_a_gap_sends_nothing(
    seconds: float, gaps: list[tuple[float, float]]
) -> None:
    sent, missed = run_through(seconds, gaps, CatchUp.NONE)
    assert sent == sorted(set(sent))
    assert not any(missed)


def test_a_crontab_that_cannot_tell_when_to_ask_is_not_due_early_in_a_repeated_hour() -> None:
    class Vague(crontab):
        def is_due(self, last_run_at: Any) -> Any:
            return True, math.nan

    class InParis(Celery):
        def now(self) -> datetime:
            return datetime(2026, 10, 25, 1, 5, tzinfo=UTC).astimezone(PARIS)

    app = InParis(set_as_current=False)
    app.conf.timezone = "Europe/Paris"
    timetable = Vague(minute="30", app=app)
    ran = datetime(2026, 10, 25, 1, tzinfo=UTC).astimezone(PARIS)
    entry = ScheduleEntry("tick", "a.task", ran, 1, timetable, app=app)
    planner = Planner(app, Settings.of(app), lambda each: each.is_due(), 5.0)
    assert planner.is_due(entry) == (False, 85 * 60), "at half past three: that hour is silent"


def test_a_crontab_of_the_users_own_that_does_not_go_on_ends_the_search() -> None:
    class Stuck(crontab):
        def remaining_delta(self, last_run_at: Any, *args: Any, **kwargs: Any) -> Any:
            return last_run_at, timedelta(), last_run_at

    assert occurrence_after(Stuck(), NOON) is None
