"""Celery's own unit tests of beat, with our schedulers in the place of Celery's.

The tests come from the source distribution of the Celery that is installed; nothing of it is
kept here. Their broker is in memory, where the one beat there is always leads.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import celery
import pytest

from tests.support import ROOT
from tests.support.services import must_have

PLUGIN = "tests.beat.leader_as_base"

#: What cannot pass, and why. Kept as short as can be.
OWN_QUEUE = "looks into the heap of the stock tick(); ours has a queue of its own"
EARLY = "the stock tick() wakes 10 ms early and asks again; ours wakes when it is due"
OWN_LOG = "has celery.beat's logger called; ours says it in its own"
OWN_CONNECTION = "takes the scheduler's connection for the producer's, which is the dispatcher's"
SHUTDOWN = "test_SchedulerShutdown"
CANNOT_PASS = {
    "test_Scheduler::test_due_tick_returns_delay_when_heap_top_changed": OWN_QUEUE,
    "test_Scheduler::test_ticks_microseconds": OWN_QUEUE,
    "test_Scheduler::test_tick_daily_relative_spring_forward": OWN_QUEUE,
    "test_Scheduler::test_ticks_schedule_change": OWN_QUEUE,
    "test_Scheduler::test_not_due_top_entry_is_rescheduled_behind_due_entry": OWN_QUEUE,
    "test_Scheduler::test_reheap_skipped_when_is_due_mutates_heap": OWN_QUEUE,
    "test_Scheduler::test_tick_uses_fresh_time_when_heap_top_changes": OWN_QUEUE,
    "test_Scheduler::test_pending_tick": EARLY,
    "test_Scheduler::test_pending_left_10_milliseconds_tick": EARLY,
    "test_Scheduler::test_ticks": EARLY,
    "test_Scheduler::test_schedule_no_remain": EARLY,
    "test_Scheduler::test_due_tick_SchedulingError": OWN_LOG,
    "test_Scheduler::test_tick_survives_entry_failing_in_populate_heap": OWN_LOG,
    "test_Scheduler::test_tick_survives_entry_failing_when_due": OWN_LOG,
    f"{SHUTDOWN}::test_close_releases_connection_and_channel": OWN_CONNECTION,
    f"{SHUTDOWN}::test_base_publishing_resources_recreated_after_close": OWN_CONNECTION,
    f"{SHUTDOWN}::test_close_releases_connection_after_producer_creation_fails": OWN_CONNECTION,
    "test_Service::test_start": "LeaderPersistentScheduler is no LeaderScheduler",
}


@pytest.fixture(scope="module")
def source(real: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests of the installed Celery, unpacked."""
    kept = Path(tempfile.gettempdir()) / f"celery-leader-tests-{os.getuid()}"
    archive = kept / f"celery-{celery.__version__}.tar.gz"
    if not archive.exists():
        download(tmp_path_factory.mktemp("download"), archive)
    directory = tmp_path_factory.mktemp("celery")
    with tarfile.open(archive) as packed:
        wanted = [m for m in packed.getmembers() if re.match(r"[^/]+/t/(unit/|[^/]+$)", m.name)]
        for member in wanted:
            if member.isreg():
                target = directory / member.name.partition("/")[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                content = packed.extractfile(member)
                assert content is not None
                target.write_bytes(content.read())
    (directory / "pytest.ini").write_text("[pytest]\npython_classes = test_*\n")
    return directory


def download(directory: Path, archive: Path) -> None:
    """Have pip fetch the source distribution; it also asks it for its metadata."""
    fetch = ("pip", "download", "--quiet", "--no-deps", "--no-binary", "celery")
    result = subprocess.run(
        [sys.executable, "-m", *fetch, "--dest", str(directory), f"celery=={celery.__version__}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    found = list(directory.glob("celery-*.tar.gz"))
    why = result.stderr[-500:]
    must_have(found, f"the source of Celery {celery.__version__} cannot be had: {why}")
    archive.parent.mkdir(mode=0o700, exist_ok=True)
    # In one step: another run may look for it now.
    partial = archive.with_suffix(f".{os.getpid()}")
    partial.write_bytes(found[0].read_bytes())
    partial.replace(archive)


def outcomes(source: Path, *arguments: str) -> dict[str, str]:
    """What became of each test, by its name."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CELERY_", "PYTEST_"))}
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "t/unit/app/test_beat.py"),
            *("-v", "--tb=no", "-p", "no:cacheprovider", "--timeout=60", *arguments),
        ],
        cwd=source,
        env=environment | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    lines = re.findall(
        r"^\S*test_beat\.py::(\S+) (PASSED|FAILED|ERROR|SKIPPED)", result.stdout, re.M
    )
    assert lines, result.stdout[-3000:] + result.stderr[-3000:]
    return dict(lines)


def reason(name: str) -> str | None:
    return CANNOT_PASS.get(name.partition("[")[0])


@pytest.fixture(scope="module")
def with_ours(source: Path) -> dict[str, str]:
    return outcomes(source, "-p", PLUGIN)


def test_celerys_tests_of_beat_pass_with_our_schedulers(
    source: Path, with_ours: dict[str, str]
) -> None:
    failed = {name for name, outcome in with_ours.items() if outcome in ("FAILED", "ERROR")}
    unexpected = sorted(name for name in failed if reason(name) is None)
    if unexpected:  # it may be the tests that do not pass here, whatever the schedulers
        without = outcomes(source)
        unexpected = [name for name in unexpected if without.get(name) == "PASSED"]
    assert unexpected == []
    assert sum(outcome == "PASSED" for outcome in with_ours.values()) > 50


def test_none_of_the_exceptions_is_there_for_nothing(with_ours: dict[str, str]) -> None:
    if celery.__version__ != "5.7.0":
        pytest.skip("the list is that of Celery 5.7.0")
    failed = {name.partition("[")[0] for name, o in with_ours.items() if o != "PASSED"}
    assert set(CANNOT_PASS) - failed == set()
