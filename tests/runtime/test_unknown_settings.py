"""A ``leader_*`` setting that there is none of is told of, with the one that may be meant."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_leader import leader_only
from celery_leader.runtime.settings import known_settings, unknown_settings
from tests.support import readme


def app_with(**conf: Any) -> Celery:
    app = Celery("proj", set_as_current=False)
    app.conf.update(conf)
    return app


def test_the_settings_that_are_known_are_those_of_the_readme() -> None:
    assert known_settings() == readme.settings()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("leader_lease_duraton", "leader_lease_duration"),
        ("leader_lease", "leader_lease_duration"),
        ("leader_candidates", "leader_candidate"),
    ],
)
def test_a_misspelt_setting_is_told_of_with_the_one_that_is_meant(wrong: str, right: str) -> None:
    assert list(unknown_settings(app_with(**{wrong: 1}))) == [
        f"{wrong} is no setting of celery_leader and does nothing; did you mean {right}?"
    ]


def test_one_that_is_like_none_is_told_of_without_a_guess() -> None:
    assert list(unknown_settings(app_with(leader_x=1))) == [
        "leader_x is no setting of celery_leader and does nothing"
    ]


def test_what_is_spelt_well_is_not_told_of_nor_what_belongs_to_others() -> None:
    well = dict.fromkeys(known_settings(), 1)
    assert list(unknown_settings(app_with(**well, timezone="UTC", my_leader_name="x"))) == []


def test_in_django_the_names_have_its_prefix_and_capitals() -> None:
    app = Celery("proj", set_as_current=False)
    settings = SimpleNamespace(
        CELERY_LEADER_LEASE_DURATION=5, CELERY_LEADER_PREEMPTS=True, LEADER_OF_ANOTHER_PACKAGE=1
    )
    app.config_from_object(settings, namespace="CELERY")
    assert list(unknown_settings(app)) == [
        "CELERY_LEADER_PREEMPTS is no setting of celery_leader and does nothing; did you mean"
        " CELERY_LEADER_PREEMPT?"
    ]


def test_what_a_module_of_settings_imports_is_no_setting() -> None:
    app = Celery("proj", set_as_current=False)
    app.config_from_object(SimpleNamespace(leader_only=leader_only, leader_queue="q"))
    assert list(unknown_settings(app)) == []
