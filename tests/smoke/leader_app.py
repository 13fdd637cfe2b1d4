"""The app of the containers; pytest-celery writes into it what it knows of the test."""

from __future__ import annotations

from celery import Celery

from celery_leader import install

imports = None

app = Celery("celery_test_app")
config = None

if config:
    app.config_from_object(config)

install(app)
