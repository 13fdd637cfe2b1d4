"""The group ``celery leader``, which Celery's command line loads as a plugin."""

from __future__ import annotations

import click

from celery_leader.runtime import remote_control

from .commands.doctor import doctor
from .commands.forget import forget
from .commands.healthcheck import healthcheck
from .commands.history import history
from .commands.hold import hold
from .commands.release import release
from .commands.resign import resign
from .commands.status import status
from .commands.transfer import transfer

# `celery inspect` runs in a process that imports this module and no worker.
remote_control.register()


@click.group(name="leader")
def leader() -> None:
    """Show the leaders of the app's workers and beats, and move them.

    Every command has --json. Exit codes: 0 yes or done, 1 no or not done, 2 an error.
    """


for _command in (
    status,
    history,
    resign,
    transfer,
    hold,
    release,
    forget,
    doctor,
    healthcheck,
):
    leader.add_command(_command)
