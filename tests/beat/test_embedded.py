"""Beats inside workers: ``celery worker -B --scheduler leader``."""

from __future__ import annotations

import os

import psutil

from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet, Process
from tests.support.waiting import wait_until

EMBEDDED = ("-B", "--scheduler", "leader")
OFTEN = {"tick": {"task": "unheard", "every": 0.2}}


def start(fleet: Fleet, *names: str) -> list[Process]:
    """Workers with a beat in each, which do not take the messages that beats send."""
    workers = [
        fleet.worker(name, *EMBEDDED, "-Q", name, "-s", str(fleet.directory / f"{name}.db"))
        for name in names
    ]
    for worker in workers:
        worker.says(" ready.")
    key = fleet.key("candidates", "beat")
    wait_until(lambda: len(workers) == fleet.leases.zcard(key), what="a beat of each to take part")
    return workers


def leading(fleet: Fleet, workers: list[Process], *, besides: int = 0) -> tuple[Process, int]:
    """The worker whose beat leads, and that beat's process id."""

    def found() -> tuple[Process, int] | None:
        record = fleet.record("beat")
        if record.get("state") != "held":
            return None
        pid = int(record["holder"].rpartition(":")[2])
        if pid == besides:
            return None
        # All processes of a worker are in its group.
        return next(((w, pid) for w in workers if group_of(pid) == w.pid), None)

    pair = wait_until(found, what="an embedded beat to lead")
    assert pair is not None
    return pair


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_one_embedded_beat_dispatches_and_ends_with_its_worker_even_when_that_is_killed(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(schedule=OFTEN, conf={"leader_lease_duration": 2.0})
    workers = start(fleet, "w1", "w2")
    worker, beat = leading(fleet, workers)
    fleet.more(3)
    assert set(fleet.senders()) == {beat}
    os.kill(worker.pid, 9)  # the main process alone: its beat is left behind
    wait_until(lambda: ended(beat), what="the beat that was left behind to end")
    assert "the worker this beat belongs to is gone" in worker.log
    other, successor = leading(fleet, workers, besides=beat)
    assert other is not worker
    fleet.more(3)
    assert set(fleet.senders()) == {beat, successor}
    fleet.ticks()
    kinds = [line.kind for line in fleet.history("beat")]
    assert kinds == ["elected", "resigned", "elected"]


def test_neither_a_following_nor_a_leading_embedded_beat_keeps_its_worker_from_a_warm_shutdown(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(schedule=OFTEN)
    workers = start(fleet, "w1", "w2")
    leader, beat = leading(fleet, workers)
    (follower,) = [worker for worker in workers if worker is not leader]
    fleet.more(1)
    assert follower.terminate() == 0
    assert "Traceback" not in follower.log
    assert leading(fleet, workers) == (leader, beat)
    assert leader.terminate() == 0
    assert "Traceback" not in leader.log
    wait_until(lambda: ended(beat), what="the leading beat to end")
    assert fleet.record("beat")["state"] == "released"


def test_an_embedded_beat_of_another_scheduler_class_gives_its_lease_up_with_its_worker(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(schedule=OFTEN)
    worker = fleet.worker("w1", "-B", "-Q", "w1", "-s", str(fleet.directory / "w1.db"))
    worker.says(" ready.")
    wait_until(lambda: fleet.record("beat").get("state") == "held", what="its beat to lead")
    assert worker.terminate() == 0
    assert fleet.record("beat")["state"] == "released"
