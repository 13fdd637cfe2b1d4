"""Rows of django-celery-beat that users make, switch on and reset while beats run.

Each scene is played to its own scheduler and to ours, and both send as many messages. Its own
one writes to the database every three minutes, and a reset before that is lost on it; so it is
told to write after each message. Ours has its defaults.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.beat.test_other_schedulers import COLUMNS, ROWS
from tests.beat.test_other_schedulers import empty_database as empty_database
from tests.support.fixtures import NewFleet, RunPython
from tests.support.fleet import Fleet, Process
from tests.support.waiting import wait_until

OURS, STOCK = "leader-django", "django_celery_beat.schedulers:DatabaseScheduler"
HOUR = timedelta(hours=1)
CHANGED = "INSERT OR REPLACE INTO django_celery_beat_periodictasks VALUES (1, :now)"


def now() -> datetime:
    return datetime.now(timezone.utc)


def sql(moment: datetime | None) -> str | None:
    return None if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S.%f")


class Rows:
    """The table of periodic tasks, each due every hour, and the beats that go by it."""

    def __init__(self, fleet: Fleet, scheduler: str) -> None:
        self.fleet = fleet
        self.scheduler = scheduler
        self.file = fleet.config["django"]
        self._execute(
            "INSERT INTO django_celery_beat_intervalschedule (id, every, period)"
            " VALUES (77, 3600, 'seconds')"
        )

    def start(self, *names: str) -> Process:
        """Start beats; the one that sends."""
        if self.scheduler == OURS:
            self.fleet.beats_of(OURS, *names)
            return self.fleet.leader("beat")
        beat = self.fleet.beat(names[0], "-S", STOCK)
        beat.says("beat: Starting")
        return beat

    def make(self, name: str = "row", clocked: datetime | None = None, **values: Any) -> None:
        """A row as the admin makes it."""
        fields = dict.fromkeys(COLUMNS)
        fields |= {"name": name, "task": f"fleet.{name}", "args": "[]", "kwargs": "{}"}
        fields |= {"enabled": 1, "total_run_count": 0, "date_changed": sql(now())}
        fields |= {"description": "", "one_off": 0, "headers": "{}", "interval_id": 77}
        if clocked is not None:
            self._execute(
                "INSERT OR REPLACE INTO django_celery_beat_clockedschedule (id, clocked_time)"
                " VALUES (77, ?)",
                [sql(clocked)],
            )
            fields |= {"interval_id": None, "clocked_id": 77, "one_off": 1}
        fields |= values
        columns = ", ".join(fields)
        places = ", ".join("?" * len(fields))
        self._execute(f"INSERT INTO {ROWS} ({columns}) VALUES ({places})", list(fields.values()))
        self.changed()

    def set(self, name: str = "row", **values: Any) -> None:
        """Change its row, and say so as ``PeriodicTasks.update_changed`` does."""
        fields = ", ".join(f"{column} = ?" for column in values)
        self._execute(
            f"UPDATE {ROWS} SET {fields} WHERE name = ?",
            [*values.values(), name],
        )
        self.changed()

    def delete(self, name: str = "row") -> None:
        """Take the row out."""
        self._execute(f"DELETE FROM {ROWS} WHERE name = ?", [name])
        self.changed()

    def changed(self) -> None:
        """Say that something changed."""
        self._execute(CHANGED, {"now": sql(now())})

    def read(self, name: str = "row") -> dict[str, Any]:
        """What its row holds."""
        (row,) = self._execute(f"SELECT * FROM {ROWS} WHERE name = ?", [name])
        return row

    def sent(self, name: str = "row") -> int:
        """How many messages there are of it."""
        return len(self.fleet.of(f"fleet.{name}"))

    def had(self, count: int, name: str = "row") -> None:
        """Wait for so many messages of it, and no more."""
        self.fleet.had(count, f"fleet.{name}")
        assert self.sent(name) == count

    def written(self, name: str = "row") -> None:
        """Wait until its last run is in the database.

        A row that is switched off has none: django-celery-beat takes it out. That may come before
        anybody has seen the run, if a beat looks at the row again right after the message.
        """

        def is_written() -> bool:
            row = self.read(name)
            return not row["enabled"] or (row["last_run_at"] or "") > str(sql(now() - HOUR / 2))

        wait_until(is_written, what="the last run in the database")

    def switched_off(self, name: str = "row") -> None:
        """Wait until a beat has done with it."""
        self.written(name)
        self.changed()  # a beat looks at it when something has changed
        wait_until(lambda: not self.read(name)["enabled"], what="the row to be switched off")

    def _execute(self, statement: str, values: Any = ()) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.file, timeout=30)) as database:
            database.row_factory = sqlite3.Row
            found = [dict(row) for row in database.execute(statement, values).fetchall()]
            database.commit()
        return found


@pytest.fixture
def new_rows(
    new_fleet: NewFleet, request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[..., Rows]:
    """Makes the table, for beats of one scheduler."""

    def new(scheduler: str, **settings: Any) -> Rows:
        pytest.importorskip("django_celery_beat", reason="leader-django needs django_celery_beat")
        conf: dict[str, Any] = {"leader_lease_duration": 2.0, "beat_max_loop_interval": 0.2}
        conf |= settings
        if scheduler == STOCK:
            conf["beat_sync_every"] = 1
        fleet = new_fleet(schedule={}, conf=conf)
        file = tmp_path / "db.sqlite3"
        shutil.copy(request.getfixturevalue("empty_database"), file)
        fleet.config["django"] = str(file)
        return Rows(fleet, scheduler)

    return new


#: What stock does is not ours to promise: it is asked where somebody wants to compare.
ASKED = {"ours": OURS} | ({"stock": STOCK} if "CELERY_LEADER_TEST_STOCK" in os.environ else {})


@pytest.fixture(params=ASKED.values(), ids=list(ASKED))
def rows(request: pytest.FixtureRequest, new_rows: Callable[[str], Rows]) -> Rows:
    """The table, for each scheduler."""
    return new_rows(request.param)


def overdue() -> str | None:
    return sql(now() - 2 * HOUR)


MAKERS: dict[str, Callable[[Rows], None]] = {
    "one-off": lambda rows: rows.make(one_off=1, last_run_at=overdue()),
    "clocked": lambda rows: rows.make(clocked=now()),
    "start time": lambda rows: rows.make(start_time=sql(now())),
    "one-off with a start time": lambda rows: rows.make(one_off=1, start_time=sql(now())),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_a_row_that_is_made_again_under_its_name_is_sent_again(
    rows: Rows, make: Callable[[Rows], None]
) -> None:
    rows.start("b1", "b2")
    for count in (1, 2, 3):
        make(rows)
        rows.had(count)
        rows.delete()


def test_a_row_is_made_again_under_a_leader_that_has_led_for_longer_than_clocks_may_differ(
    new_rows: Callable[..., Rows],
) -> None:
    rows = new_rows(OURS, leader_beat_clock_tolerance=0.1)
    rows.start("b1", "b2")
    for count in (1, 2, 3):
        rows.make(clocked=now())
        rows.had(count)
        rows.delete()


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_a_one_off_row_that_is_switched_on_again_is_sent_again(
    rows: Rows, make: Callable[[Rows], None]
) -> None:
    rows.start("b1", "b2")
    make(rows)
    if not rows.read()["one_off"]:
        rows.set(one_off=1)
    before = rows.read()
    for count in (1, 2, 3):
        rows.had(count)
        rows.switched_off()
        again = {"enabled": 1, "total_run_count": 0, "date_changed": sql(now())}
        rows.set(last_run_at=before["last_run_at"], **again)
    rows.had(4)


@pytest.mark.parametrize("value", ["the same each time", "another each time"])
def test_a_row_whose_last_run_is_reset_is_sent_at_once_each_time(rows: Rows, value: str) -> None:
    rows.start("b1", "b2")
    same = overdue()
    rows.make(last_run_at=same)
    for count in (1, 2, 3):
        rows.had(count)
        rows.written()
        rows.set(last_run_at=same if value.startswith("the same") else overdue())
    rows.had(4)


def test_a_row_whose_last_run_is_cleared_counts_from_its_last_change(rows: Rows) -> None:
    rows.start("b1", "b2")
    rows.make(last_run_at=overdue())
    for count in (1, 2, 3):
        rows.had(count)
        rows.written()
        rows.set(last_run_at=None, date_changed=overdue())
    rows.had(4)


def test_what_changes_but_its_runs_sends_nothing_again(rows: Rows) -> None:
    rows.start("b1", "b2")
    rows.make(last_run_at=overdue())
    rows.had(1)
    rows.written()
    for number in range(3):
        rows.set(args=f"[{number}]", date_changed=sql(now()))
        name = f"other{number}"
        rows.make(name, last_run_at=overdue())
        rows.had(1, name)
    assert rows.sent() == 1


# -- ours alone: what passes from one leader to the next --------------------------------------


@pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
def test_a_row_that_is_reset_while_nobody_leads_is_sent_by_the_next_leader_once(
    new_rows: Callable[[str], Rows], written: bool
) -> None:
    rows = new_rows(OURS)
    leader = rows.start("b1")
    rows.make(last_run_at=overdue())
    rows.had(1)
    rows.written()
    if not written:
        rows.set(total_run_count=0, last_run_at=overdue())
        rows.had(2)
    count = rows.sent()
    for number in (2, 3):
        leader.kill()
        rows.set(last_run_at=sql(now() - number * HOUR - HOUR))
        leader = rows.start(f"b{number}")
        count += 1
        rows.had(count)
        leader.kill()
        leader = rows.start(f"c{number}")
        rows.make(f"other{number}", last_run_at=overdue())
        rows.had(1, f"other{number}")
        assert rows.sent() == count
    assert all("Traceback" not in process.log for process in rows.fleet.processes)


def test_a_row_that_was_switched_on_unseen_is_not_sent_again_by_the_next_leader(
    new_rows: Callable[..., Rows],
) -> None:
    rows = new_rows(OURS, beat_max_loop_interval=3)
    leader = rows.start("b1")
    rows.make(one_off=1, last_run_at=overdue())
    before = rows.read()
    rows.had(1)
    rows.switched_off()
    # The beat rests, and will find that the row it has switched off is on.
    rows.set(last_run_at=before["last_run_at"], enabled=1, total_run_count=0)
    rows.had(2)
    time.sleep(0.5)  # its next turn comes at once; only after a rest it writes to the database
    leader.kill()
    rows.start("b2")
    rows.make("other", last_run_at=overdue())
    rows.had(1, "other")
    assert rows.sent() == 2


def test_the_due_time_of_a_row_with_a_start_time_is_that_and_of_a_clocked_one_its_own(
    new_rows: Callable[[str], Rows],
) -> None:
    rows = new_rows(OURS)
    rows.start("b1")
    begins = now() + timedelta(seconds=2)
    rows.make(start_time=sql(begins))
    rows.make("late", start_time=sql(now() - 30 * HOUR))
    made = now()
    rows.make("clocked", clocked=begins)
    for name in ("row", "late", "clocked"):
        rows.had(1, name)
    (tick,) = rows.fleet.ticks("fleet.row")
    assert datetime.fromisoformat(tick) == begins
    (tick,) = rows.fleet.ticks("fleet.clocked")
    assert datetime.fromisoformat(tick) == begins
    (tick,) = rows.fleet.ticks("fleet.late")
    assert abs(datetime.fromisoformat(tick) - made) < timedelta(seconds=30)


FAILED_SWITCH_OFF = """
from tests.support.fleet_app.extras import set_up_django
set_up_django(":memory:")
from celery import Celery
from django.db import DatabaseError
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from celery_leader.beat.django import LeaderModelEntry

class Row(PeriodicTask):
    class Meta:
        app_label = "django_celery_beat"
        proxy = True

    def save(self, *args, **kwargs):
        raise DatabaseError("the database is locked")

model = Row(name="row", one_off=True, interval=IntervalSchedule(every=1, period="hours"))
entry = next(LeaderModelEntry(model, app=Celery()))
ran = entry.last_run_at
for _ in range(2):
    try:
        print(entry.is_due())
    except DatabaseError:
        print(model.enabled, model.total_run_count, model.last_run_at == ran)
"""


def test_a_row_that_the_database_does_not_switch_off_is_tried_again(python: RunPython) -> None:
    pytest.importorskip("django_celery_beat", reason="leader-django needs django_celery_beat")
    done = python("-c", FAILED_SWITCH_OFF)
    assert done.stdout.splitlines() == ["True 1 True"] * 2, done.stderr
