"""A process that only sends works on systems that have less than Linux has."""

from __future__ import annotations

import pytest

from tests.package.other_systems import MISSING
from tests.support.fixtures import RunPython


@pytest.mark.parametrize("system", MISSING)
def test_a_process_that_only_sends_works_without_what_another_system_lacks(
    system: str, python: RunPython
) -> None:
    done = python("-W", "error", "-m", "tests.package.other_systems", system)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("imported everything\n")


#: In a process of its own: some tracers of coverage go round and round when an error is raised in
#: their thread from another one.
BODY = """
import time
from celery_leader import NotLeader
from celery_leader.tasks import abort

abort.STRIKE = None
try:
    with abort.stopped_when_lost(lambda: None, "lost", spare=0.0, process_is_ours=False):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(0.01)
except NotLeader as exc:
    print(exc)
"""


def test_a_body_that_lost_the_lead_is_stopped_where_there_is_no_signal_to_do_it(
    python: RunPython,
) -> None:
    done = python("-W", "error", "-c", BODY)
    assert (done.returncode, done.stdout, done.stderr) == (0, "lost\n", "")
