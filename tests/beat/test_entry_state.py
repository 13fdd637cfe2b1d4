"""The text that is stored of a schedule entry: what is kept of it, for how long, and by whom."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from celery_leader.beat.entry_state import FORMAT, Tidying, is_later, read, written

NOW = 1_780_000_000.0  # seconds
DAY = 86400.0
STATE = written({"last_run_at": "2026-05-01T06:00:00+00:00", "total_run_count": 3})


def marked(since: Any, stored: str = STATE) -> str:
    return json.dumps({**json.loads(stored), "unknown_since": since})


def tidying(states: dict[str, str], *known: str, now: float = NOW) -> Tidying:
    return Tidying.of(states, known, now, 30 * DAY, 60.0)


def test_a_state_says_its_format_and_is_read_as_it_was_written() -> None:
    assert json.loads(STATE)["format"] == FORMAT
    assert read(STATE)["total_run_count"] == 3


def test_more_fields_than_this_version_knows_do_no_harm() -> None:
    assert read(json.dumps({**json.loads(STATE), "colour": "blue"}))["total_run_count"] == 3


def test_a_later_format_is_not_read_and_not_taken_for_damaged() -> None:
    later = json.dumps({**json.loads(STATE), "format": FORMAT + 1})
    assert read(later) == {}
    assert is_later(later)


@pytest.mark.parametrize(
    "number", [0, -1, False, None, "2", 1.5, 2.0, [], 10**6, 10**300, float("nan")], ids=str
)
def test_a_number_that_no_version_has_written_is_damage(number: Any) -> None:
    stored = json.dumps({**json.loads(STATE), "format": number})
    assert not is_later(stored)
    assert read(stored) == {}


@pytest.mark.parametrize("stored", ["", "{", "[]", "7", "null", "[" * 100_000])
def test_what_is_no_state_has_no_fields_and_no_format(stored: str) -> None:
    assert read(stored) == {}
    assert not is_later(stored)


def test_what_the_leader_knows_is_left_as_it_is() -> None:
    assert tidying({"a": STATE, "b": "damaged"}, "a", "b") == Tidying({}, [])


def test_what_it_does_not_know_is_marked_once_with_the_time_and_its_fields_stay() -> None:
    first = tidying({"a": STATE})
    assert first.gone == []
    assert first.marks == {"a": (STATE, marked(int(NOW * 1000)))}
    again = tidying({"a": first.marks["a"][1]}, now=NOW + 29 * DAY)
    assert again == Tidying({}, [])


def test_what_nobody_has_known_for_the_retention_is_gone() -> None:
    state = marked(int(NOW * 1000))
    assert tidying({"a": state}, now=NOW + 30 * DAY - 1).gone == []
    assert tidying({"a": state}, now=NOW + 30 * DAY + 1).gone == ["a"]


def test_what_is_known_again_loses_its_mark_and_nothing_else() -> None:
    later = json.dumps({**json.loads(STATE), "format": FORMAT + 1, "colour": "blue"})
    for stored in (STATE, later):
        state = marked(int((NOW - 99 * DAY) * 1000), stored)
        assert tidying({"a": state}, "a") == Tidying({"a": (state, stored)}, [])


@pytest.mark.parametrize("since", [NOW * 1000 + 1, -1, "0", None, True, 1e308, []], ids=str)
def test_a_mark_that_no_leader_has_written_is_made_anew(since: Any) -> None:
    state = marked(since)
    assert tidying({"a": state}) == Tidying({"a": (state, marked(int(NOW * 1000)))}, [])


def test_what_is_no_state_at_all_of_an_entry_that_nobody_knows_is_gone_at_once() -> None:
    assert tidying({"a": "\udcff", "b": "7", "c": ""}).gone == ["a", "b", "c"]


@pytest.mark.parametrize("ahead", [61.0, 3600.0, 365 * DAY])
def test_a_state_from_the_future_is_counted_anew_and_its_due_time_is_not_believed(
    ahead: float,
) -> None:
    fields = {**json.loads(STATE), "last_run_at": at(NOW + ahead), "schedule": "<every minute>"}
    state = json.dumps(fields)
    new = json.loads(tidying({"a": state}, "a").marks["a"][1])
    assert new.pop("last_run_at") == at(NOW)
    assert new == {k: v for k, v in fields.items() if k not in ("schedule", "last_run_at")}


@pytest.mark.parametrize(
    "fields",
    [
        {"last_run_at": "PAST"},
        {"last_run_at": "FUTURE", "claimed": True},
        {"last_run_at": "FUTURE", "format": FORMAT + 1},
        {"last_run_at": "nonsense"},
        {"last_run_at": 7},
    ],
    ids=str,
)
def test_a_state_within_the_tolerance_or_claimed_or_of_a_later_format_stays(
    fields: dict[str, Any],
) -> None:
    moments = {"PAST": at(NOW + 59), "FUTURE": at(NOW + 3600)}
    last = fields["last_run_at"]
    said = {**json.loads(STATE), **fields, "last_run_at": moments.get(last, last)}
    assert tidying({"a": json.dumps(said)}, "a") == Tidying({}, [])


def at(seconds: float) -> str:
    """A moment as it is stored."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="microseconds")
