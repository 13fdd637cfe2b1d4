"""``celery -A proj leader …``: see the elections, move them, trust them."""

from __future__ import annotations

import click

from celery_leader.runtime import remote_control as control

from .cli_check import doctor, healthcheck
from .cli_move import forget, hold, release, resign, transfer
from .cli_see import history, status, watch

# Celery's command line imports this module, and must know what nodes can be asked.
control.register()


@click.group(name="leader")
def leader() -> None:
    """See and move the leaders of the app's workers and beats.

    Every command has --json. Exit codes: 0 yes or done, 1 no or not done, 2 an error.
    """


for _each in (status, watch, history, resign, transfer, hold, release, forget, doctor, healthcheck):
    leader.add_command(_each)
