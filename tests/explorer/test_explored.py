"""Every course of an election with one fault in it; ``make explore`` goes on to more."""

from __future__ import annotations

import pytest

from celery_leader.core.election import Election
from celery_leader.core.observed_lease import ObservedLease
from tests.explorer.__main__ import scopes
from tests.explorer.explore import SOON, Counterexample, explore

SCOPES = scopes(1)


@pytest.mark.parametrize("name", SCOPES)
def test_in_no_course_do_two_lead_and_in_each_somebody_leads_again(name: str) -> None:
    found = explore(SCOPES[name], candidates=2)
    assert found.complete
    assert found.states > 500
    assert found.longest_wait <= SOON


def test_a_missing_record_that_counts_as_free_is_seen_to_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ObservedLease, "may_make_record", lambda *_: True)
    with pytest.raises(Counterexample, match=r"the record is lost\n(.*\n)*.* lead at once"):
        explore(SCOPES["data loss"], candidates=2)


def test_a_lease_that_does_not_end_by_itself_is_seen_to_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Election, "term", lambda election, now: election._own.term)
    with pytest.raises(Counterexample, match=r"is paused\n(.*\n)*.* lead at once"):
        explore(SCOPES["messages and pauses"], candidates=2)
