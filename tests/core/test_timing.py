"""Settings of time that cannot be safe are refused, and the message says what to change."""

from __future__ import annotations

import dataclasses

import pytest

from celery_leader.core.names import check_name
from celery_leader.core.timing import Timing
from celery_leader.errors import LeaderError


def test_the_defaults_are_those_of_the_seed() -> None:
    timing = Timing()
    assert timing.lease_duration == 25
    assert timing.renew_interval == 10
    assert timing.renew_attempts == 3
    assert timing.renew_retry_delay == 0.5


@pytest.mark.parametrize("lease", [0.5, 1, 3, 5, 10, 25, 60, 3600])
def test_who_sets_only_the_lease_gets_the_rest_in_a_proportion_that_is_valid(lease: float) -> None:
    timing = Timing.of_lease(lease)
    assert timing.renewal_budget < timing.lease_duration
    assert timing.renew_interval == pytest.approx(0.4 * lease)
    assert timing.operation_timeout <= 1


def test_the_proportions_of_the_default_lease_are_the_defaults() -> None:
    assert Timing.of_lease(25) == Timing()


@pytest.mark.parametrize("lease", [0.5, 3, 25, 600])
def test_the_margin_is_a_twentieth_of_the_lease_but_never_below_a_tenth_of_a_second(
    lease: float,
) -> None:
    assert Timing.of_lease(lease).margin == max(0.05 * lease, 0.1)


def test_a_lease_too_short_for_its_renewals_is_refused_with_both_numbers_and_all_settings() -> None:
    with pytest.raises(LeaderError) as refusal:
        Timing(lease_duration=7.5, renew_interval=6.0, operation_timeout=0.75)
    message = str(refusal.value)
    for setting in (
        "leader_lease_duration",
        "leader_renew_interval",
        "leader_renew_attempts",
        "leader_operation_timeout",
        "leader_renew_retry_delay",
    ):
        assert setting in message
    assert "7.5 s" in message
    assert f"{6.0 + 3 * (0.75 + 0.5) + 0.375:g} s" in message


def test_a_renewal_budget_of_exactly_the_lease_is_refused() -> None:
    fits = Timing(lease_duration=20, renew_interval=17, renew_attempts=1, renew_retry_delay=0.0)
    assert fits.renewal_budget == 19
    with pytest.raises(LeaderError, match="longer than"):
        dataclasses.replace(fits, renew_interval=18)


@pytest.mark.parametrize("field", ["lease_duration", "renew_interval", "operation_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_duration_that_must_be_above_zero_is_named_with_its_value(
    field: str, value: float
) -> None:
    with pytest.raises(LeaderError, match=rf"leader_{field} is {value!r}: .*above 0"):
        Timing(**{field: value})


@pytest.mark.parametrize("field", ["renew_retry_delay", "election_jitter", "bootstrap_delay"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_delay_below_zero_is_named_with_its_value(field: str, value: float) -> None:
    with pytest.raises(LeaderError, match=rf"leader_{field} is {value!r}: .*0 or more"):
        Timing(**{field: value})


def test_no_renew_attempt_at_all_is_refused() -> None:
    with pytest.raises(LeaderError, match="leader_renew_attempts is 0: .*1 or more"):
        Timing(renew_attempts=0)


def test_times_do_not_change_once_they_are_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Timing().lease_duration = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("name", ["beat", "a", "nightly-reports_2.eu", "X" * 64])
def test_a_name_that_can_be_a_key_and_a_queue_is_allowed(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a b", "a:b", "ü", "X" * 65, "a\n", 7, None])
def test_a_name_that_cannot_is_refused_and_quoted(name: object) -> None:
    with pytest.raises(LeaderError) as refusal:
        check_name(name)  # type: ignore[arg-type]
    assert repr(name) in str(refusal.value)
