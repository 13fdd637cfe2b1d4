"""Two versions of an app in one fleet: what each knows, and what becomes of what it does not.

Beats of both lead in turn, and it does not matter which of them has waited for how long.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from celery.beat import Scheduler
from celery.schedules import crontab

from celery_leader.beat import (
    LeaderMixin,
    LeaderPersistentScheduler,
    LeaderScheduler,
    shared_states,
)
from celery_leader.beat.projects import Project
from celery_leader.core.kinship import sketch
from celery_leader.errors import LeaderError, StoreUnavailable
from celery_leader.runtime import clock
from celery_leader.runtime.app_runtime import runtime_of
from tests.support.fixtures import NewFleet
from tests.support.local_beat import KEY, Bench, LocalBeat
from tests.support.waiting import wait_until

PROJECTS = "celery-leader:celery:projects:beat"
HOUR = 3600.0
DAY = 24 * HOUR

Start = Callable[..., LocalBeat]


class OwnScheduler(LeaderMixin, Scheduler):
    """Any scheduler there is, made to take part."""


def every(seconds: float) -> dict[str, Any]:
    return {"schedule": timedelta(seconds=seconds)}


def daily(hour: int) -> dict[str, Any]:
    return {"schedule": crontab(minute=0, hour=hour)}


@pytest.fixture(params=["leader", "leader-persistent"])
def start(request: pytest.FixtureRequest, bench: Bench, tmp_path: Path) -> Start:
    """Starts a beat with a schedule, of either class; each has a file of its own."""
    count = 0

    def start(schedule: dict[str, Any], **conf: Any) -> LocalBeat:
        nonlocal count
        count += 1
        if request.param == "leader":
            return bench.started(bench.app(schedule, **conf))
        file = str(tmp_path / f"schedule{count}")
        scheduler = partial(LeaderPersistentScheduler, schedule_filename=file)
        return bench.started(bench.app(schedule, **conf), scheduler)

    return start


def lead(beat: LocalBeat) -> LocalBeat:
    beat.lead().settle()
    return beat


def advance(bench: Bench, seconds: float, leader: LocalBeat) -> None:
    """Let time pass as a beat sees it that looks every second, or every minute of a long time."""
    step = 1.0 if seconds < HOUR else 60.0
    end = bench.clock.now + timedelta(seconds=seconds)
    while bench.clock.now < end:
        bench.clock.advance(step)
        leader.settle()


# -- what a beat of another version made of it --------------------------------------------


def test_a_crontab_is_not_sent_again_because_a_version_without_it_led_in_between(
    bench: Bench, start: Start
) -> None:
    new = {"cron": daily(13), "tick": every(HOUR)}
    first = lead(start(new))
    standby, old = start(new), start({"tick": every(HOUR)})
    bench.clock.advance(HOUR)
    first.settle()
    assert bench.seconds("cron") == [HOUR]
    first.hand_over(old)
    bench.clock.advance(300)
    old.settle()
    old.hand_over(standby)
    advance(bench, DAY - HOUR, standby)
    assert bench.seconds("cron") == [HOUR]
    advance(bench, HOUR, standby)
    assert bench.seconds("cron") == [HOUR, HOUR + DAY]


def test_what_fell_due_while_a_version_led_that_does_not_know_it_is_sent_once_when_one_does(
    bench: Bench, start: Start
) -> None:
    new = {"cron": daily(13)}
    first = lead(start(new))
    old, standby = start({}), start(new)
    first.hand_over(old)
    advance(bench, 2 * HOUR, old)
    assert bench.messages() == []
    old.hand_over(standby)
    assert bench.seconds("cron") == [HOUR]


def test_an_interval_of_two_lengths_counts_on_from_its_last_run_whoever_leads(
    bench: Bench, start: Start
) -> None:
    first = lead(start({"tick": every(20)}))
    ours, theirs = [first, start({"tick": every(20)})], start({"tick": every(30)})
    advance(bench, 20, first)
    assert bench.seconds() == [20]
    advance(bench, 5, first)
    first.hand_over(theirs)
    advance(bench, 10, theirs)
    theirs.hand_over(ours[1])
    assert bench.seconds() == [20]
    advance(bench, 5, ours[1])
    assert bench.seconds() == [20, 40]
    ours[1].hand_over(theirs)
    advance(bench, 29, theirs)
    assert bench.seconds() == [20, 40]
    advance(bench, 1, theirs)
    assert bench.seconds() == [20, 40, 70]


def test_what_is_new_counts_from_the_moment_a_leader_takes_it_up_and_not_from_a_standbys_start(
    bench: Bench, start: Start
) -> None:
    old = lead(start({"tick": every(HOUR)}))
    new = start({"tick": every(HOUR), "new": every(60), "cron": {"schedule": crontab("30")}})
    advance(bench, 45 * 60, old)
    old.hand_over(new)
    assert bench.messages() == []
    advance(bench, 59, new)
    assert bench.messages() == []
    advance(bench, 1, new)
    assert bench.seconds("new") == [45 * 60 + 60]
    assert bench.seconds("cron") == []


def test_a_key_of_beat_schedule_that_is_no_string_is_an_entry_like_any_other(
    bench: Bench, start: Start
) -> None:
    entries: dict[Any, Any] = {1: every(10), None: every(HOUR)}
    first, second = lead(start(entries)), start(entries)
    advance(bench, 10, first)
    assert bench.seconds("1") == [10]
    first.hand_over(second)
    advance(bench, 10, second)
    assert bench.seconds("1") == [10, 20]
    assert set(bench.states()) >= {"1", "None"}


def test_the_register_shows_a_scheduler_by_the_name_that_users_know(
    bench: Bench, start: Start
) -> None:
    beat = lead(start({}))
    with runtime_of(beat.app).redis.session() as session:
        (candidate,) = session.store.register.candidates("beat")
    assert candidate.info is not None
    module, _, name = candidate.info.scheduler.rpartition(".")
    assert (module, name) == ("celery_leader.beat", type(beat.scheduler).__name__)


def test_what_never_ran_does_not_count_anew_at_each_change_of_the_leader(
    bench: Bench, start: Start
) -> None:
    entries = {"tick": every(60)}
    beats = [lead(start(entries)), start(entries), start(entries)]
    for giver, taker in pairwise(beats):
        advance(bench, 25, giver)
        giver.hand_over(taker)
    advance(bench, 9, beats[2])
    assert bench.messages() == []
    advance(bench, 1, beats[2])
    assert bench.seconds() == [60]


def test_what_is_new_is_shared_although_the_first_try_to_share_it_failed(
    bench: Bench, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = start({"tick": every(10)})
    store: Any = beat.scheduler._shared_store
    write, failed = store.write, []

    def write_at_second_try(term: int, states: dict[str, Any]) -> bool:
        if states and not failed:
            failed.append(states)
            raise StoreUnavailable("cut")
        return bool(write(term, states))

    monkeypatch.setattr(store, "write", write_at_second_try)
    bench.clock.advance(5)
    lead(beat)
    wait_until(lambda: beat.settle() > 0 and bench.states(), what="the entry to be shared")
    assert failed
    assert "tick" in bench.states()


def test_a_leader_adopts_what_another_project_left_once_that_is_forgotten(
    bench: Bench, start: Start
) -> None:
    other = Project("other|0|" + sketch(f"other.t{n}" for n in range(4)), sketch(["x", "y"]))
    first = lead(start({"tick": every(10)}))
    bench.redis.hset(PROJECTS, "0123abcd", other.text())
    bench.redis.hset(KEY, "tick", json.dumps({**bench.states()["tick"], "project": "0123abcd"}))
    beat = first.hand_over(start({"tick": every(10)}))
    advance(bench, 30, beat)
    assert bench.sent() == []
    bench.redis.hdel(PROJECTS, "0123abcd")
    beat.scheduler._states._tidies_at = 0.0
    advance(bench, 30, beat)
    assert len(bench.sent()) > 1
    assert bench.states()["tick"]["project"] != "0123abcd"


def test_what_is_of_the_future_is_judged_by_the_present_and_not_by_the_takeover(
    bench: Bench, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = lead(start({"tick": every(10)}))
    present, led = bench.clock.now, timedelta(seconds=HOUR)
    assert beat.scheduler.is_future(present + led)
    monkeypatch.setattr(shared_states, "now", lambda: clock.now() + HOUR)
    assert not beat.scheduler.is_future(present + led)
    assert beat.scheduler.is_future(present + led + timedelta(minutes=5))


def test_where_nothing_is_shared_nothing_is_of_the_future(bench: Bench) -> None:
    beat = bench.started(bench.app({"tick": every(10)}, broker="memory://"), OwnScheduler).lead()
    beat.settle()
    assert not beat.scheduler.is_future(datetime.now(timezone.utc))


def test_a_beat_that_leads_again_does_not_go_by_what_it_remembers(
    bench: Bench, start: Start
) -> None:
    first, second = lead(start({"tick": every(60)})), start({"tick": every(60)})
    advance(bench, 30, first)
    first.hand_over(second)
    advance(bench, 60, second)
    assert bench.seconds() == [60]
    second.hand_over(first)
    assert bench.seconds() == [60]
    advance(bench, 30, first)
    assert bench.seconds() == [60, 120]


# -- how long the state of what nobody knows is kept ----------------------------------------


def test_the_state_of_an_entry_goes_when_no_leader_has_known_it_for_the_retention(
    bench: Bench, start: Start
) -> None:
    both = {"tick": every(HOUR), "other": every(HOUR)}
    first = lead(start(both))
    old = start({"tick": every(HOUR)}, leader_schedule_retention=0.5)
    first.hand_over(old)
    assert {"tick", "other"} <= set(bench.states())
    bench.clock.advance(1)
    wait_until(lambda: old.settle() and "other" not in bench.states(), what="the state to go")
    assert "unknown_since" not in bench.states()["tick"]


def test_an_entry_that_is_known_again_is_kept_for_good(bench: Bench, start: Start) -> None:
    both = {"tick": every(HOUR), "other": every(HOUR)}
    first, old = lead(start(both)), start({"tick": every(HOUR)})
    before = bench.states()["other"]
    first.hand_over(old)
    assert "unknown_since" in bench.states()["other"]
    old.hand_over(first)
    assert bench.states()["other"] == before


def test_a_takeover_writes_nothing_of_what_is_known(bench: Bench, start: Start) -> None:
    entries = {f"tick{n}": every(HOUR) for n in range(20)}
    first, second = lead(start(entries)), start(entries)
    bench.redis.config_resetstat()
    first.hand_over(second)
    calls = bench.redis.info("commandstats")
    # The two elections' own, and nothing for each entry.
    assert calls["cmdstat_hset"]["calls"] < 12
    assert "cmdstat_hdel" not in calls or calls["cmdstat_hdel"]["calls"] < 12


@pytest.mark.parametrize("value", [0, -1, "month", True])
def test_a_retention_that_makes_no_sense_is_refused_at_the_start(bench: Bench, value: Any) -> None:
    with pytest.raises(LeaderError, match="leader_schedule_retention is"):
        LeaderScheduler(bench.app(leader_schedule_retention=value))


# -- states of a later version ---------------------------------------------------------------


def test_the_state_of_a_later_version_is_left_alone_and_its_entry_is_not_sent(
    bench: Bench, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    entries = {"tick": every(10), "other": every(10)}
    first, second = lead(start(entries)), start(entries)
    advance(bench, 10, first)
    later = json.dumps({**bench.states()["tick"], "format": 2, "colour": "blue"})
    bench.redis.hset(KEY, "tick", later)
    first.hand_over(second)
    advance(bench, 30, second)
    assert bench.redis.hget(KEY, "tick") == later
    assert len(bench.sent("other")) == 4
    assert len(bench.sent("tick")) == 1
    said = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(said) == 1
    assert "a later version of celery_leader wrote the state of tick" in said[0]


def test_more_fields_of_a_later_version_do_no_harm(
    bench: Bench, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = lead(start({"tick": every(10)})), start({"tick": every(10)})
    advance(bench, 10, first)
    bench.redis.hset(KEY, "tick", json.dumps({**bench.states()["tick"], "colour": "blue"}))
    first.hand_over(second)
    advance(bench, 10, second)
    assert bench.seconds() == [10, 20]
    assert [r for r in caplog.records if r.levelno > 20] == []


# -- real beats ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["leader", "leader-persistent"])
def test_real_beats_of_two_versions_in_turn_send_nothing_early_and_forget_nothing(
    new_fleet: NewFleet, kind: str
) -> None:
    every = 2.0
    shared = {"tick": {"task": "plain", "every": every}}
    extra = {"extra": {"task": "unknown.extra", "every": every}}
    versions = {"old": shared, "new": {**shared, **extra}}
    fleet = new_fleet(conf={"leader_lease_duration": 2.0, "beat_max_loop_interval": 1})
    order = ["new", "old", "new", "old", "new"]
    beats = fleet.beats_of(kind, "b0", schedule=versions[order[0]])
    for number, version in enumerate(order[1:], start=1):
        # The next one waits from now on, for as long as the one before it leads.
        beats += [fleet.beat(f"b{number}", "-S", kind, schedule=versions[version])]
        fleet.takes_part(beats[-1], "beat")
        assert fleet.leader("beat") is beats[-2]
        fleet.more(2, "fleet.plain")
        if version == "old":
            fleet.had(1 + len(fleet.of("fleet.unknown.extra")), "fleet.unknown.extra")
        stop = beats[-2].kill if number % 2 else beats[-2].terminate
        stop()
        assert fleet.leader("beat", other_than=beats[-2]) is beats[-1]
    fleet.more(2, "fleet.plain")
    fleet.more(1, "fleet.unknown.extra")
    for task in ("fleet.plain", "fleet.unknown.extra"):
        ticks = sorted(datetime.fromisoformat(tick).timestamp() for tick in fleet.ticks(task))
        assert all(b - a > every - 0.1 for a, b in pairwise(ticks)), ticks
    knowing = {beat.pid for beat, version in zip(beats, order, strict=True) if version == "new"}
    assert set(fleet.senders("fleet.unknown.extra")) <= knowing


def test_a_redis_that_does_not_answer_is_not_asked_to_tidy_in_every_turn(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise StoreUnavailable("away")

    scheduler = start({"tick": every(10)}).lead().scheduler
    states = scheduler._states
    monkeypatch.setattr(states._store, "load", away)
    monkeypatch.setattr(states, "_tidies_at", 0.0)
    assert states.is_tidying_due
    assert states.tidy(scheduler.leading_term(), ["tick"]), "the others stand"
    assert not states.is_tidying_due
