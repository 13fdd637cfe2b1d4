"""What is said of entries that the chosen scheduler does not read."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from django.apps import apps

from celery_leader.runtime import schedulers

OWN = {"tick": {"task": "tick", "schedule": 1.0}}


@pytest.mark.parametrize(
    ("own", "rows", "said"),
    [
        ({}, 2, "django-celery-beat (2 enabled) are not read"),
        (OWN, 2, "django-celery-beat (2 enabled) are not read"),
        ({}, 0, None),
        (OWN, 0, None),
        # The database cannot be asked: who has no entries elsewhere has them there.
        ({}, None, "django-celery-beat are not read"),
        (OWN, None, None),
    ],
)
def test_rows_are_unread_only_where_there_are_rows(
    own: dict[str, Any], rows: int | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps, "ready", True)
    monkeypatch.setattr(apps, "is_installed", lambda name: True)
    monkeypatch.setattr(schedulers, "_enabled_rows", lambda own: rows)
    app = Celery("proj", set_as_current=False)
    app.conf.beat_schedule = own
    unread = schedulers.unread(app)
    assert (said in unread) if said and unread else unread is said
