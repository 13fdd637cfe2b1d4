"""Whatever stands in the shared schedule, the leading beat lives on and goes by it or anew."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from celery.schedules import crontab

from celery_leader.beat import LeaderPersistentScheduler
from tests.support.local_beat import KEY, Bench, LocalBeat
from tests.support.waiting import wait_until

SCHEDULE = {
    "tick": {"schedule": 10.0},
    "cron": {"schedule": crontab(minute="*/5")},
    "all": {"schedule": 30.0, "options": {"leader_catch_up": "all"}},
}
TEXTS = [
    "", "null", "true", "0", "-1", "1e999", "NaN", "Infinity", "[]", "{}", '"x"', "{", "\x00",
    "[" * 100_000, "9" * 5000, "x" * 2_000_000, '{"schedule": {}}', "\N{SNOWMAN}", '"\\ud800"',
]  # fmt: skip
MOMENTS = [
    "0001-01-01T00:00:00+00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
    "1969-12-31T23:59:59+00:00", "2026-06-01T11:59:00", "2026-06-01", "noon", "", None, 7, [],
]  # fmt: skip
NUMBERS = [-1, 0, 2**63, 10**300, 1.5, 1e308, float("inf"), float("nan"), True, None, "7", "x", {}]


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("CELERY_LEADER_TEST_SEED") or random.SystemRandom().randrange(10**9))
    print(f"CELERY_LEADER_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def raw(bench: Bench) -> Iterator[redis.Redis]:
    """A client that takes bytes as they are."""
    client = redis.Redis.from_url(bench.url)
    yield client
    client.close()


def spoiled(stored: bytes, chance: random.Random) -> bytes:
    """What an attacker, an accident or an older program may have left in place of ``stored``."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randint(0, 60))
    if kind == 1:
        return chance.choice(TEXTS).encode()
    state = json.loads(stored)
    for _ in range(chance.randint(1, 2)):
        field = chance.choice(sorted(state))
        if kind == 2 and chance.random() < 0.3:
            state.pop(field)
            return json.dumps(state).encode()
        moment = field in ("due", "last_run_at", "tick")
        state[field] = chance.choice(MOMENTS if moment else NUMBERS)
    return json.dumps(state).encode()


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said above INFO, and every traceback; but for a due time that is long past."""
    return [
        f"{record.getMessage()} {record.exc_info}"
        for record in caplog.records
        if record.levelno > logging.INFO or record.exc_info
        if "leader_beat_catch_up_max" not in record.getMessage()
    ]


def settles(beat: LocalBeat) -> None:
    """It comes to rest with a state that is its own for every entry."""
    assert beat.settle() > 0
    assert beat.scheduler.leading_term() is not None


def test_no_state_of_an_entry_harms_a_leading_beat(
    bench: Bench, raw: redis.Redis, chance: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    beat = bench.beat(SCHEDULE)
    for _ in range(120):
        fine = raw.hgetall(KEY)
        names = chance.sample(sorted(fine), chance.randint(1, len(fine)))
        values = {name: spoiled(fine[name], chance) for name in names}
        raw.hset(KEY, mapping=values)
        raw.hset(KEY, chance.randbytes(chance.randint(1, 20)), b"\xff")
        # Half of the time as who is just elected, otherwise as who finds it while sending.
        if chance.random() < 0.5:
            beat.scheduler._led_term = None
        bench.clock.advance(chance.choice([0, 11, 400]))
        settles(beat)
        bench.clock.advance(301)
        raw.delete("celery")
        settles(beat)
        for name, value in values.items():
            if not _is_plausible(value):
                assert bench.sent(name.decode()), f"{name} is silent after {value[:200]!r}"
        raw.hset(KEY, mapping=dict.fromkeys(names, b"{}"))  # the next round is a fresh one
        beat.scheduler._led_term = None
        settles(beat)
        assert set(raw.hgetall(KEY)) == set(fine)
    assert complaints(caplog) == []


def _is_plausible(value: bytes) -> bool:
    """Whether this may well be what a beat wrote: a due time that is years ahead, say."""
    try:
        state = json.loads(value)
        return isinstance(state["due"], str) and not state["due"].startswith(("0001", "9999"))
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def test_no_state_of_an_entry_harms_another_scheduler_that_takes_part(
    bench: Bench,
    raw: redis.Redis,
    chance: random.Random,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    scheduler = partial(LeaderPersistentScheduler, schedule_filename=str(tmp_path / "schedule"))
    beat = bench.started(bench.app({"tick": {"schedule": 10.0}}), scheduler).lead()
    beat.settle()
    bench.clock.advance(11)
    beat.settle()
    fine = raw.hget(KEY, "tick")
    for _ in range(60):
        value = spoiled(fine, chance)
        raw.hset(KEY, "tick", value)
        beat.scheduler._led_term = None
        settles(beat)
        raw.hset(KEY, "tick", spoiled(fine, chance))  # found while sending
        bench.clock.advance(11)
        settles(beat)
        raw.delete(KEY, "celery")
        beat.scheduler._led_term = None
        beat.scheduler.schedule["tick"].last_run_at = bench.clock.now
        settles(beat)
        bench.clock.advance(11)
        settles(beat)
        assert bench.messages(), value
    assert complaints(caplog) == []


@pytest.mark.parametrize("kind", ["string", "list", "set"])
def test_a_schedule_of_another_type_is_named_once_and_waited_for(
    kind: str, bench: Bench, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    beat = bench.beat({"tick": {"schedule": 10.0}})
    raw.delete(KEY)
    {"string": raw.set, "list": raw.lpush, "set": raw.sadd}[kind](KEY, "x")
    bench.clock.advance(11)
    for newly_elected in (False, True):
        if newly_elected:
            beat.scheduler._led_term = None
        for _ in range(10):
            assert 0 <= beat.scheduler.tick() < 1
    (said,) = complaints(caplog)
    assert f"the key {KEY} is a {kind} and must be a hash; delete that key" in said
    assert bench.messages() == []
    raw.delete(KEY)
    wait_until(lambda: beat.scheduler.tick() >= 1, what="the schedule to be anchored anew")
    bench.clock.advance(11)
    settles(beat)
    assert bench.messages()


@pytest.mark.parametrize("declared", [False, True])
def test_a_queue_of_another_type_is_named(
    declared: bool, bench: Bench, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    beat = bench.beat({"tick": {"schedule": 10.0, "options": {"queue": "odd"}}})
    if declared:  # else it is kombu that stumbles, before anything is sent
        bench.clock.advance(11)
        settles(beat)
        assert raw.delete("odd")
    raw.set("odd", "x")
    bench.clock.advance(11)
    for _ in range(4):
        beat.scheduler.tick()
    (said,) = complaints(caplog)
    assert ("the key odd is a string and must be a list" if declared else "(LLEN odd)") in said
    raw.delete("odd")
    bench.clock.advance(60)
    settles(beat)
    assert len(bench.messages("odd")) == 1
