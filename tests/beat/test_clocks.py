"""Beats whose clocks are ahead, behind, set or of another speed: real processes under libfaketime.

What a beat is told of the time of day is faked; what it measures durations by is not.
"""

from __future__ import annotations

import glob
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, QUICK, Fleet, Process
from tests.support.services import must_have
from tests.support.waiting import wait_until

LIBRARY = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), "")
OFTEN = {"tick": {"task": "plain", "every": 1}}
HOUR, YEAR = timedelta(hours=1), timedelta(days=365)
_LONG = 90.0  # seconds; a process whose clock is faked needs many times the work of another


class Clock:
    """The time of day as some processes are told it; it can be set while they run."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = directory / "clock"
        self._monkeypatch = monkeypatch

    def set(self, ahead: timedelta = timedelta(), speed: float = 1.0) -> None:
        """Go ``ahead`` of the machine's own, at so many seconds a second."""
        rate = "" if speed == 1.0 else f" x{speed:g}"
        self._file.write_text(f"{ahead.total_seconds():+.0f}{rate}\n")

    def beat(self, fleet: Fleet, name: str, *arguments: str, **config: Any) -> Process:
        """Start a beat that goes by this clock."""
        with self._monkeypatch.context() as environment:
            environment.setenv("LD_PRELOAD", LIBRARY)
            environment.setenv("FAKETIME_TIMESTAMP_FILE", str(self._file))
            environment.setenv("FAKETIME_NO_CACHE", "1")
            environment.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            return fleet.beat(name, *arguments, **config)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for some of the beats; the others go by that of this machine, as Redis does."""
    must_have(LIBRARY, "needs libfaketime (Debian: faketime)")
    return Clock(tmp_path, monkeypatch)


def state(fleet: Fleet, entry: str) -> dict[str, Any]:
    """The shared state of ``entry``; empty before there is one."""
    return dict(json.loads(fleet.leases.hget(fleet.key("schedule", "beat"), entry) or "{}"))


def sent(fleet: Fleet) -> list[str]:
    """The due times of what was sent, the oldest first."""
    messages = [json.loads(each) for each in reversed(fleet.redis.lrange("celery", 0, -1))]
    return [str(each["headers"]["leader_tick"]) for each in messages]


def unfit(fleet: Fleet) -> list[str]:
    """Why candidates are not fit to lead, as the status says."""
    told = json.loads(fleet.run("leader", "status", "--json").stdout)
    every = [each for election in told["elections"] for each in election["candidates"]]
    return [each["unfit"] for each in every if each.get("unfit")]


def assert_none_from_the_future(fleet: Fleet) -> None:
    """Nothing was sent before it was due by the clock of Redis."""
    soon = datetime.now(timezone.utc) + timedelta(seconds=5)
    assert all(datetime.fromisoformat(each) < soon for each in sent(fleet))


@pytest.mark.parametrize("ahead", [HOUR, YEAR, -HOUR], ids=["an hour", "a year", "behind"])
def test_a_beat_whose_clock_is_off_does_not_lead_and_says_so_until_it_is_right(
    new_fleet: NewFleet, clock: Clock, ahead: timedelta
) -> None:
    fleet = new_fleet(schedule=OFTEN)
    clock.set(ahead)
    wrong = clock.beat(fleet, "wrong")
    fleet.takes_part(wrong, "beat")
    seconds = abs(ahead.total_seconds())
    which = "ahead of" if ahead > timedelta() else "behind"
    wrong.says(f" s {which} that of Redis (")
    # It was told the time while it started, which may take a busy machine a while.
    assert abs(float(wrong.log.split(f" s {which}")[0].split()[-1]) - seconds) < 30
    assert "ERROR" in wrong.log
    assert "NTP" in wrong.log
    # It stays a candidate, for all to see, while the right one leads, and when that goes.
    wait_until(
        lambda: any(f" s {which} that of Redis" in each for each in unfit(fleet)),
        what="the status to say why it does not lead",
    )
    assert f" s {which} that of Redis" in fleet.run("leader", "doctor").stdout
    right = fleet.beat("right")
    assert fleet.leader("beat") is right
    wait_until(lambda: len(sent(fleet)) >= 2, what="ticks of the right beat")
    assert_none_from_the_future(fleet)
    assert right.terminate() == 0
    assert fleet.record("beat")["state"] != "held"
    clock.set()
    wrong.says("its clock agrees with that of Redis again")
    assert fleet.leader("beat") is wrong
    count = len(sent(fleet))
    wait_until(lambda: len(sent(fleet)) >= count + 2, what="ticks of the beat that is right again")
    assert_none_from_the_future(fleet)


@pytest.mark.parametrize("speed", [1.0, 200.0], ids=["set", "too fast"])
def test_a_leader_whose_clock_goes_wrong_sends_nothing_more_and_gives_its_lease_up(
    new_fleet: NewFleet, clock: Clock, speed: float
) -> None:
    # One whose clock is too fast waits too short, and may lose its lease before it gives way.
    fleet = new_fleet(schedule=OFTEN, conf=LASTING if speed == 1.0 else QUICK)
    clock.set()
    leader = clock.beat(fleet, "leader")
    wait_until(lambda: len(sent(fleet)) >= 2, _LONG, "ticks of the first leader")
    follower = fleet.beat("follower")
    fleet.takes_part(follower, "beat")
    clock.set(HOUR, speed)
    assert fleet.leader("beat", other_than=leader) is follower
    leader.says(": clock, after")
    if speed == 1.0:
        assert fleet.history("beat")[-2].kind == "resigned"
    count = len(sent(fleet))
    wait_until(lambda: len(sent(fleet)) >= count + 2, what="ticks of the next leader")
    assert_none_from_the_future(fleet)


@pytest.mark.parametrize("scheduler", ["leader", "leader-persistent", "leader-redbeat"])
@pytest.mark.parametrize("ahead", [HOUR, YEAR], ids=["an hour", "a year"])
def test_what_a_leader_of_the_future_wrote_does_not_silence_the_next(
    new_fleet: NewFleet, clock: Clock, scheduler: str, ahead: timedelta
) -> None:
    fleet = new_fleet(schedule=OFTEN)
    clock.set(ahead)
    # As a beat of before: it leads with whatever clock it has.
    wrong = clock.beat(fleet, "wrong", "-S", scheduler, conf={"leader_beat_clock_tolerance": 0})
    wait_until(lambda: len(sent(fleet)) >= 2, _LONG, "ticks of the wrong beat")
    assert wrong.terminate() == 0
    count = len(sent(fleet))
    right = fleet.beat("right", "-S", scheduler)
    assert fleet.leader("beat") is right
    wait_until(lambda: len(sent(fleet)) >= count + 3, what="ticks of the right beat")
    now = datetime.now(timezone.utc)
    last = datetime.fromisoformat(state(fleet, "tick")["last_run_at"])
    assert abs(last - now) < timedelta(seconds=30)
