"""A process of a fleet is as a Python of its own would be, although it is a fork."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support import launching
from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet
from tests.support.launching import FRESH_VARIABLE, launch_module, without_celery_variables
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="there are no forks here")


@pytest.fixture(autouse=True)
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FRESH_VARIABLE, raising=False)


def told(directory: Path, name: str, **env: str) -> tuple[bool, dict[str, Any]]:
    """Whether it was forked, and what it saw."""
    log = directory / name
    environment = without_celery_variables(PYTHONUNBUFFERED="1", **env)
    running = launch_module("tests.support.describe_process", ["a", "b c"], log, environment)
    try:
        assert wait_until(running.exit_status, what="it to end") == 7
        seen = json.loads(log.read_text().splitlines()[-1])  # LD_PRELOAD may complain first
        assert seen["of its own"].pop("pid") == running.pid
    finally:
        running.kill_and_reap()
    return isinstance(running, launching._Forked), seen


def test_a_forked_process_sees_what_a_fresh_one_sees(
    real: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked, one = told(tmp_path, "log", FLEET="configured")
    again, other = told(tmp_path, "other", FLEET="configured")
    assert (forked, again) == (True, True)
    monkeypatch.setenv(FRESH_VARIABLE, "1")
    (tmp_path / "log").unlink()
    fresh, same = told(tmp_path, "log", FLEET="configured")
    assert not fresh
    own = [seen.pop("of its own") for seen in (one, other, same)]
    assert one == same
    assert one["environment"]["FLEET"] == "configured"
    assert len({each["random"] for each in own}) == 3


@pytest.mark.parametrize("name", ["PYTHONHASHSEED", "LD_PRELOAD", "TZ", "FAKETIME_NO_CACHE"])
def test_what_a_python_reads_at_its_start_starts_one(real: None, tmp_path: Path, name: str) -> None:
    forked, seen = told(tmp_path, "log", **{name: "0"})
    assert not forked
    assert seen["environment"][name] == "0"


def test_what_stops_and_kills_a_fresh_process_does_so_to_a_forked_one(
    fleet: Fleet,
) -> None:
    beat = fleet.beats("b1")[0]
    assert isinstance(beat._running, launching._Forked)
    beat.freeze()
    assert beat.alive
    wait_until(lambda: _state(beat.pid) == "T", what="it to be stopped")
    beat.thaw()
    beat.kill()
    assert not beat.alive
    assert beat.wait() == signal.SIGKILL
    assert _state(beat.pid) == "Z"  # so that nobody else gets its id
    beat.close()
    with pytest.raises(ProcessLookupError):
        os.kill(beat.pid, 0)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_forked_worker_has_imported_nothing_that_a_fresh_one_has_not(
    new_fleet: NewFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = new_fleet()
    fleet.worker("w1").says(" ready.")
    forked = set(fleet.send("modules", queue="w1").get(timeout=30))
    monkeypatch.setenv(FRESH_VARIABLE, "1")
    fleet.worker("w2").says(" ready.")
    fresh = set(fleet.send("modules", queue="w2").get(timeout=30))
    assert forked - fresh == {"celery.apps.beat"}
