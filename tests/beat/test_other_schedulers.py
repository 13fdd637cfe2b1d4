"""Real beats whose schedule is kept elsewhere: a local file, redbeat's Redis keys, a database.

Each has two or three beats of one kind, and no worker: what was dispatched waits in the queue.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet, Process
from tests.support.redis_server import RedisServer
from tests.support.side_by_side import made_once
from tests.support.waiting import wait_until

KINDS = ("leader-persistent", "leader-redbeat", "leader-django")
NEEDS = {"leader-redbeat": "redbeat", "leader-django": "django_celery_beat"}
EVERY = 0.4  # seconds
TICK = {"tick": {"task": "plain", "every": EVERY}}
HOURLY = {**TICK, "hourly": {"task": "hourly", "every": 3600.0}}

ROWS = "django_celery_beat_periodictask"

NewKind = Callable[..., Fleet]

_MIGRATE = """
import sys
from tests.support.fleet_app.extras import set_up_django
set_up_django(sys.argv[1])
from django.core.management import call_command
call_command("migrate", verbosity=0)
"""


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the tables of django-celery-beat."""

    def migrate(file: Path) -> None:
        command = [sys.executable, "-c", _MIGRATE, str(file)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=100)

    return made_once("empty.sqlite3", migrate, tmp_path_factory)


@pytest.fixture
def new_kind(new_fleet: NewFleet, request: pytest.FixtureRequest, tmp_path: Path) -> NewKind:
    """Makes a fleet for beats of one kind."""

    def new(kind: str, schedule: dict[str, Any], **conf: Any) -> Fleet:
        if kind in NEEDS:
            pytest.importorskip(NEEDS[kind], reason=f"{kind} needs {NEEDS[kind]}")
        broker = {"broker": conf.pop("broker")} if "broker" in conf else {}
        conf = {"leader_lease_duration": 2.0, "beat_max_loop_interval": 1, **conf}
        fleet = new_fleet(schedule=schedule, conf=conf, **broker)
        if kind == "leader-redbeat":
            fleet.config["conf"]["redbeat_redis_url"] = fleet.config["broker"]
        if kind == "leader-django":
            # A database is given whole seconds; ``start`` makes them shorter.
            fleet.config["schedule"] = {
                name: {**entry, "every": max(1.0, entry["every"])}
                for name, entry in schedule.items()
            }
            file = tmp_path / "db.sqlite3"
            shutil.copy(request.getfixturevalue("empty_database"), file)
            fleet.config["django"] = str(file)
        return fleet

    return new


def start(fleet: Fleet, kind: str, *names: str) -> Process:
    """Start beats of one kind, all that the test has; the leader."""
    fleet.beats_of(kind, *names)
    if kind == "leader-django":
        micros = int(EVERY * 1e6)
        write(
            fleet,
            f"UPDATE django_celery_beat_intervalschedule SET every = {micros},"
            " period = 'microseconds' WHERE every = 1",
        )
    return fleet.leader("beat")


def last_run(fleet: Fleet, entry: str) -> datetime:
    text = fleet.leases.hget(fleet.key("schedule", "beat"), entry)
    return datetime.fromisoformat(json.loads(text)["last_run_at"])


def runs(values: list[int]) -> list[int]:
    return [v for i, v in enumerate(values) if i == 0 or values[i - 1] != v]


def assert_no_beat_failed(fleet: Fleet) -> None:
    assert all("Traceback" not in process.log for process in fleet.processes)


# -- what holds for all kinds --------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_dispatches_and_whatever_becomes_of_it_another_goes_on_and_sends_nothing_twice(
    new_kind: NewKind, kind: str
) -> None:
    fleet = new_kind(kind, TICK)
    frozen = start(fleet, kind, "b1", "b2", "b3")
    fleet.more(4)
    frozen.freeze()
    stopped = fleet.leader("beat", other_than=frozen)
    fleet.more(2)
    frozen.thaw()
    frozen.says("deposed")
    fleet.more(2)
    assert stopped.terminate() == 0
    killed = fleet.leader("beat")
    fleet.more(2)
    killed.kill()
    sent, ran = len(fleet.ticks()), last_run(fleet, "tick")
    last = fleet.leader("beat", other_than=killed)
    fleet.more(2)
    assert len({stopped, killed, last}) == 3
    assert runs(fleet.senders()) == [p.pid for p in (frozen, stopped, killed, last)]
    # The first tick after the kill is the one that follows the last that was sent.
    following = datetime.fromisoformat(fleet.ticks()[sent])
    assert abs((following - ran).total_seconds() - EVERY) < 0.9 * EVERY
    assert_no_beat_failed(fleet)


@pytest.mark.parametrize("kind", KINDS)
def test_no_beat_dies_while_redis_is_away_and_what_fell_due_is_sent_once(
    new_kind: NewKind, kind: str
) -> None:
    with RedisServer(("--appendonly", "yes", "--appendfsync", "always")) as server:
        fleet = new_kind(kind, TICK, broker=server.url)
        leader = start(fleet, kind, "b1", "b2")
        fleet.more(2)
        server.pause()
        leader.says("lost contact")
        server.resume()
        fleet.more(2)
        server.restart()
        fleet.more(2)
        fleet.ticks()
        assert all(process.alive for process in fleet.processes)


# -- redbeat ----------------------------------------------------------------------------


def test_a_redbeat_entry_s_first_run_is_not_repeated_when_redbeat_has_no_note_of_it(
    new_kind: NewKind,
) -> None:
    fleet = new_kind("leader-redbeat", TICK)
    from celery.schedules import schedule
    from redbeat import RedBeatSchedulerEntry

    app = fleet.sender()
    leader = start(fleet, "leader-redbeat", "b1", "b2")
    entry = RedBeatSchedulerEntry("first", "fleet.first", schedule(3600, app=app), app=app)
    entry.last_run_at = None  # due at once
    entry.save()
    fleet.had(1, "fleet.first")
    leader.kill()
    # As if it had been killed after the push, before it could say that the entry ran.
    fleet.redis.hdel(entry.key, "meta")
    entry.save()
    states = fleet.key("schedule", "beat")
    stored = json.loads(fleet.leases.hget(states, "first"))
    fleet.leases.hset(states, "first", json.dumps({**stored, "noted": False}))
    assert fleet.leader("beat", other_than=leader)
    wait_until(lambda: entry.from_key(entry.key, app=app).last_run_at, what="the note of the run")
    fleet.more(2, "fleet.plain")
    assert len(fleet.of("fleet.first")) == 1
    assert_no_beat_failed(fleet)


def test_the_next_tick_of_a_redbeat_entry_counts_from_a_run_that_redbeat_has_no_note_of(
    new_kind: NewKind,
) -> None:
    fleet = new_kind("leader-redbeat", TICK)
    from celery.schedules import schedule
    from redbeat import RedBeatSchedulerEntry

    app = fleet.sender()
    leader = start(fleet, "leader-redbeat", "b1", "b2")
    entry = RedBeatSchedulerEntry("often", "fleet.often", schedule(1.0, app=app), app=app)
    entry.save()
    fleet.had(2, "fleet.often")
    leader.kill()
    # As if it had been killed after the push, before it could say that the entry ran.
    ran = last_run(fleet, "often")
    before = json.loads(fleet.leases.hget(fleet.key("schedule", "beat"), "often"))["tick"]
    entry = RedBeatSchedulerEntry.from_key(entry.key, app=app)
    entry._next_instance(last_run_at=datetime.fromisoformat(before))
    sent = len(fleet.of("fleet.often"))
    assert fleet.leader("beat", other_than=leader)
    fleet.had(sent + 1, "fleet.often")
    following = datetime.fromisoformat(fleet.ticks("fleet.often")[sent])
    assert (following - ran).total_seconds() == pytest.approx(1.0, abs=0.1)
    assert_no_beat_failed(fleet)


def test_a_redbeat_entry_that_is_told_to_run_now_runs_each_time(new_kind: NewKind) -> None:
    fleet = new_kind("leader-redbeat", TICK)
    from celery.schedules import schedule
    from redbeat import RedBeatSchedulerEntry

    app = fleet.sender()
    leader = start(fleet, "leader-redbeat", "b1", "b2")
    key = RedBeatSchedulerEntry("now", "fleet.now", schedule(3600, app=app), app=app).save().key

    def run_now() -> None:
        long_ago = datetime(2026, 1, 1, tzinfo=timezone.utc)
        RedBeatSchedulerEntry.from_key(key, app=app).reschedule(last_run_at=long_ago)

    def noted() -> bool:
        stored = json.loads(fleet.leases.hget(fleet.key("schedule", "beat"), "now"))
        return bool(stored.get("noted"))

    for count in (1, 2, 3):
        run_now()
        fleet.had(count, "fleet.now")
        wait_until(noted, what="the note of the run")
    leader.kill()
    run_now()
    fleet.had(4, "fleet.now")
    fleet.more(2, "fleet.plain")
    assert len(fleet.of("fleet.now")) == 4
    assert len(set(fleet.ticks("fleet.now"))) == 4
    assert_no_beat_failed(fleet)


def test_redbeat_entries_made_or_changed_while_beats_run_are_picked_up_also_by_the_next(
    new_kind: NewKind,
) -> None:
    fleet = new_kind("leader-redbeat", TICK)
    from celery.schedules import schedule
    from redbeat import RedBeatSchedulerEntry

    app = fleet.sender()

    def save(name: str, every: float) -> Any:
        entry = RedBeatSchedulerEntry(name, f"fleet.{name}", schedule(every, app=app), app=app)
        return entry.save()

    save("changed", 3600)
    leader = start(fleet, "leader-redbeat", "b1", "b2")
    save("new", EVERY)
    fleet.more(2, "fleet.new")
    assert fleet.of("fleet.changed") == []
    save("changed", EVERY)
    fleet.more(2, "fleet.changed")
    leader.kill()
    left = len(fleet.ticks("fleet.new"))
    save("later", EVERY)
    successor = fleet.leader("beat", other_than=leader)
    for name in ("new", "changed", "later"):
        fleet.more(2, f"fleet.{name}")
        fleet.ticks(f"fleet.{name}")
    assert set(fleet.senders("fleet.new")[left:]) == {successor.pid}
    RedBeatSchedulerEntry("new", app=app).delete()
    gone = len(fleet.of("fleet.new"))
    fleet.more(3, "fleet.later")
    assert len(fleet.of("fleet.new")) <= gone + 1  # one may have been on its way
    assert fleet.redis.keys("redbeat*lock*") == []
    assert_no_beat_failed(fleet)


# -- django-celery-beat ----------------------------------------------------------------------


def test_a_beat_that_does_not_read_the_database_says_so(new_kind: NewKind) -> None:
    fleet = new_kind("leader-django", HOURLY)
    (reader,) = fleet.beats_of("leader-django", "b1")  # which writes the app's own rows
    assert "not read" not in reader.log
    missed = "the entries in the database of django-celery-beat"
    write(fleet, f"UPDATE {ROWS} SET name = 'from the admin' WHERE name = 'hourly'")
    fleet.beat("b2", "-S", "leader").says(
        f"WARNING/MainProcess] beat: {missed} (1 enabled) are not read by this scheduler and"
    ).says('set CELERY_BEAT_SCHEDULER = "leader-django" in Django')
    findings = fleet.run("leader", "doctor").stdout
    assert "are not read by this scheduler and never sent. To do: set CELERY_BEAT_" in findings
    loose = fleet.beat("loose", "-S", "django")
    loose.says(
        'twice; to have only the leading beat send, set CELERY_BEAT_SCHEDULER = "leader-django"'
    )
    assert_no_beat_failed(fleet)


def write(fleet: Fleet, *statements: str) -> None:
    """Change rows as the admin does, which also says that something changed."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")
    with closing(sqlite3.connect(fleet.config["django"], timeout=30)) as database:
        for statement in statements:
            database.execute(statement)
        database.execute(
            "INSERT OR REPLACE INTO django_celery_beat_periodictasks VALUES (1, ?)", (now,)
        )
        database.commit()


def read(fleet: Fleet, query: str) -> list[Any]:
    with closing(sqlite3.connect(fleet.config["django"], timeout=30)) as database:
        return database.execute(query).fetchall()


def a_new_row(name: str) -> str:
    """A row like that of the entry ``tick``, which never ran."""
    values = {"id": "NULL", "name": f"'{name}'", "task": f"'fleet.{name}'"}
    fresh = {"last_run_at": "NULL", "total_run_count": "0"}
    return _copied("tick", {**values, **fresh})


def _copied(name: str, values: dict[str, str]) -> str:
    from_there = ", ".join(values.get(column, column) for column in COLUMNS)
    columns = ", ".join(COLUMNS)
    table = "django_celery_beat_periodictask"
    return f"INSERT INTO {table} ({columns}) SELECT {from_there} FROM {table} WHERE name = '{name}'"


COLUMNS = (
    *("id", "name", "task", "args", "kwargs", "queue", "exchange", "routing_key", "expires"),
    *("enabled", "last_run_at", "total_run_count", "date_changed", "description", "crontab_id"),
    *("interval_id", "solar_id", "one_off", "start_time", "priority", "headers", "clocked_id"),
    "expire_seconds",
)


def ago(**delta: float) -> str:
    moment = datetime.now(timezone.utc) - timedelta(**delta)
    return moment.strftime("'%Y-%m-%d %H:%M:%S.%f'")


def test_rows_made_or_changed_while_beats_run_are_picked_up_also_by_the_next(
    new_kind: NewKind,
) -> None:
    fleet = new_kind("leader-django", HOURLY)
    leader = start(fleet, "leader-django", "b1", "b2")
    fleet.more(1, "fleet.plain")
    write(fleet, a_new_row("new"))
    fleet.more(2, "fleet.new")
    write(
        fleet,
        f"UPDATE {ROWS} SET interval_id = (SELECT interval_id"
        f" FROM {ROWS} WHERE name = 'tick') WHERE name = 'hourly'",
    )
    fleet.more(2, "fleet.hourly")
    leader.kill()
    write(fleet, a_new_row("later"))
    successor = fleet.leader("beat", other_than=leader)
    for name in ("new", "hourly", "later"):
        fleet.more(2, f"fleet.{name}")
        fleet.ticks(f"fleet.{name}")
    assert set(fleet.senders("fleet.later")) == {successor.pid}
    write(fleet, f"UPDATE {ROWS} SET enabled = 0 WHERE name = 'new'")
    gone = len(fleet.of("fleet.new"))
    fleet.more(3, "fleet.later")
    assert len(fleet.of("fleet.new")) <= gone + 2  # what was due before the rows were read
    assert_no_beat_failed(fleet)


def test_rows_the_killed_leader_could_not_write_are_not_sent_again_when_they_are_read_anew(
    new_kind: NewKind,
) -> None:
    fleet = new_kind("leader-django", HOURLY)
    leader = start(fleet, "leader-django", "b1", "b2")
    fleet.more(1, "fleet.plain")
    overdue = ago(hours=2)
    once = {"id": "NULL", "name": "'once'", "task": "'fleet.once'", "one_off": "1"}
    write(
        fleet,
        f"UPDATE {ROWS} SET last_run_at = {overdue} WHERE name = 'hourly'",
        _copied("tick", {**once, "last_run_at": overdue, "total_run_count": "0"}),
    )
    fleet.had(1, "fleet.hourly")
    fleet.had(1, "fleet.once")
    leader.kill()
    left = read(fleet, f"SELECT last_run_at FROM {ROWS} WHERE name IN ('hourly', 'once')")
    # The leader had it in memory alone, as it has for minutes; that is what the test is about.
    assert f"'{left[0][0]}'" == overdue
    assert fleet.leader("beat", other_than=leader)
    fleet.more(2, "fleet.plain")
    write(fleet, a_new_row("other"))
    fleet.more(2, "fleet.other")
    assert len(fleet.of("fleet.hourly")) == 1
    assert len(fleet.of("fleet.once")) == 1
    fleet.ticks("fleet.plain")
    assert_no_beat_failed(fleet)


def test_a_leader_whose_rows_cannot_be_read_lives_on_and_reads_them_when_they_can(
    new_kind: NewKind,
) -> None:
    fleet = new_kind("leader-django", TICK)
    leader = start(fleet, "leader-django", "b1")
    fleet.more(1)
    write(fleet, f"ALTER TABLE {ROWS} RENAME TO away")
    leader.says(f"the schedule stays due and is tried again: no such table: {ROWS}")
    write(fleet, f"ALTER TABLE away RENAME TO {ROWS}", a_new_row("new"))
    fleet.had(2, "fleet.new")
    fleet.ticks("fleet.plain")
    assert leader.alive


# -- a local file ----------------------------------------------------------------------------


def test_each_beat_has_a_file_of_its_own_and_goes_on_from_what_they_share(
    new_kind: NewKind,
) -> None:
    fleet = new_kind("leader-persistent", {"slow": {"task": "plain", "every": 2.0}})
    first = fleet.beats_of("leader-persistent", "b1")[0]
    fleet.more(1)
    # A beat of Celery's own would begin its two seconds here, at its start.
    second = fleet.beats_of("leader-persistent", "b2")[0]
    assert first.terminate() == 0
    ran, sent = last_run(fleet, "slow"), len(fleet.ticks())
    fleet.more(1)
    assert fleet.senders()[-1] == second.pid
    due = datetime.fromisoformat(fleet.ticks()[sent])
    assert abs((due - ran).total_seconds() - 2.0) < 1.0
    assert files(fleet, first) != files(fleet, second)


def files(fleet: Fleet, process: Process) -> set[str]:
    found = {path.name for path in fleet.directory.glob(f"{process.name}.schedule*")}
    assert found
    return found
