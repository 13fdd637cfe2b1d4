"""Three workers and three beats, a leader of each that goes, and what becomes of the tasks.

``make demo`` runs this. ``REDIS_URL`` names a Redis to use instead of a private one; the
demo then keeps to keys of its own and removes them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import redis

from examples.machine import OLDEST_REDIS, version_tuple
from examples.processes import (
    STEP,
    Interrupted,
    Interrupts,
    NoRedisServer,
    Process,
    Processes,
    RedisServer,
    ShowError,
)

from .evidence import Evidence, Run, Witness
from .judge import Report, judge, takeover_ms
from .screen import Row, Screen, screen, sum_up

REPORT = Path("demo-report.json")
SIZE = 3  # workers, and beats
# As in proj.py, which this process must not import: it is for those that run the app.
INTERVAL = 1.0
TASKS = {"plain": "proj.plain", "on-leader": "proj.on_leader"}
LEADER_ONLY = "proj.on_leader"

START = 40.0  # seconds within which everybody is up
TAKEOVER = 20.0  # seconds within which somebody else leads, or a task comes back
REST = 15.0  # seconds after which a task that is not done is lost
# A leader-only body takes half a second and ticks come every second: this far into one, no message
# of the plain task is on its way from Redis to the worker. Celery would lose it, or find it after
# an hour.
INTO_A_BODY = (150, 350)  # ms

ANOTHER_WAY = "  - name a running one:  REDIS_URL=redis://localhost:6379/0 make demo"

T = TypeVar("T")


class Demo:
    """One demo, from the first process to the last look."""

    def __init__(
        self,
        processes: Processes,
        redis_url: str,
        key_prefix: str,
        screen: Screen,
        interrupts: Interrupts,
    ) -> None:
        self._processes = processes
        self._redis_url = redis_url
        self._key_prefix = key_prefix
        self._screen = screen
        self._interrupts = interrupts
        self._witness = Witness(client_of(redis_url), key_prefix)
        self._workers: list[Process] = []
        self._beats: list[Process] = []

    # -- the story -------------------------------------------------------------------

    def run(self) -> Report:
        self._start()
        self._wait(lambda seen: _ran_by(seen, 6), START, "tasks to run")
        self._stop_leading_beat()
        killed_at = self._kill_leading_worker()
        beats_told_at = self._stop_beats()
        evidence = self._wait_for_the_rest()
        self._screen.say("stopping the workers")
        self._processes.stop(self._workers)
        return judge(
            evidence,
            self._witness.due,
            TASKS,
            leader_only=LEADER_ONLY,
            interval=INTERVAL,
            killed_at=killed_at,
            beats_told_at=beats_told_at,
        )

    def _start(self) -> None:
        self._screen.say(f"starting {SIZE} workers")
        for number in range(1, SIZE + 1):
            node = f"worker{number}@demo"
            command = ["worker", "-n", node, "-c", "2", "-l", "INFO"]
            self._workers.append(self._celery(f"worker{number}", command))
        self._wait(lambda seen: _all_take_part(seen, "worker"), START, "all workers to be up")
        self._screen.say(f"{self._leader('worker').name} leads the workers; starting {SIZE} beats")
        for number in range(1, SIZE + 1):
            command = ["beat", "-S", "leader", "-l", "INFO"]
            self._beats.append(self._celery(f"beat{number}", command))
        self._wait(lambda seen: _all_take_part(seen, "beat"), START, "all beats to be up")
        self._screen.say(f"{self._leader('beat').name} leads the beats")

    def _stop_leading_beat(self) -> None:
        leader, term = self._leader("beat"), self._term("beat")
        self._screen.say(f"SIGTERM to {leader.name}, the leading beat")
        leader.terminate()
        new = self._next_leader("beat", term)
        resigned = _first(self._look().history["beat"], lambda event: event.kind == "resigned")
        took = takeover_ms(self._look().history["beat"], resigned.at if resigned else None)
        self._screen.say(f"{new.name} took over {took} ms after {leader.name} resigned")
        self._wait(lambda seen: _ran_by(seen, 4, self._term("beat")), TAKEOVER, "its ticks")

    def _kill_leading_worker(self) -> int:
        leader, term = self._leader("worker"), self._term("worker")
        node = self._look().records["worker"]["holder"]
        self._screen.say(f"waiting for a leader-only task to be under way on {leader.name}")
        victim = self._wait(lambda seen: _under_way(seen, node), TAKEOVER, "one to be under way")
        task = f"{victim.task}[{victim.id[:8]}]"
        killed_at = self._look().now
        leader.kill()
        self._screen.say(f"SIGKILL to {leader.name}, the leading worker, with {task} under way")
        new = self._next_leader("worker", term)
        took = takeover_ms(self._look().history["worker"], killed_at)
        self._screen.say(f"{new.name} took over {took} ms after {leader.name} was killed")
        self._wait(lambda seen: victim.id in seen.done(), TAKEOVER, f"{task} to come back")
        again = [run for run in self._look().started() if run.id == victim.id][-1]
        node, later = again.node.split("@")[0], again.at - killed_at
        self._screen.say(f"{task} came back and started on {node} {later} ms after the kill")
        self._wait(
            lambda seen: _led_by(seen, new, 4), TAKEOVER, f"{new.name} to work as the leader"
        )
        return killed_at

    def _stop_beats(self) -> float:
        self._screen.say("stopping the beats, then waiting for what is still to run")
        told_at = time.time()
        self._processes.stop(self._beats)
        return told_at

    def _wait_for_the_rest(self) -> Evidence:
        """The evidence when all is done, or when what is not will never be."""
        give_up_at = time.monotonic() + REST
        self._wait(
            lambda seen: _all_done(seen) or time.monotonic() > give_up_at,
            REST + TAKEOVER,
            "the tasks to be done",
        )
        return self._look()

    # -- parts of it -----------------------------------------------------------------

    def _celery(self, name: str, arguments: list[str]) -> Process:
        # Celery's own variables would have a say in the app's settings.
        env = {key: value for key, value in os.environ.items() if not key.startswith("CELERY_")}
        env["PYTHONPATH"] = str(Path(__file__).resolve().parent)
        env["DEMO_REDIS_URL"] = self._redis_url
        env["DEMO_KEY_PREFIX"] = self._key_prefix
        command = [sys.executable, "-m", "celery", "-A", "proj", *arguments]
        return self._processes.start(name, command, env)

    def _next_leader(self, election: str, after: int) -> Process:
        self._wait(
            lambda seen: seen.leader(election) and int(seen.records[election]["term"]) > after,
            TAKEOVER,
            f"another {election} to lead",
        )
        return self._leader(election)

    def _leader(self, election: str) -> Process:
        node = self._look().records[election].get("holder", "")
        for process in self._of(election):
            if _is(process, node):
                return process
        raise ShowError(f"{node!r} leads the {election}s, and is none of ours")

    def _term(self, election: str) -> int:
        return int(self._look().records[election]["term"])

    def _of(self, election: str) -> list[Process]:
        return self._beats if election == "beat" else self._workers

    # -- looking and waiting ----------------------------------------------------------

    def _wait(
        self,
        condition: Callable[[Evidence], T | None],
        timeout: float,
        what: str,
    ) -> T:
        """The first true answer, while looking and showing.

        Raises:
            ShowError: there was none in time, or a process ended by itself.
            Interrupted: somebody asked the demo to end.
        """
        deadline = time.monotonic() + timeout
        while True:
            seen = self._look()
            self._screen.show(self._rows(seen), seen)
            answer = condition(seen)
            if answer:
                return answer
            if self._processes.unexpected_ends():
                raise ShowError(f"a process ended by itself\n{self._processes.epitaphs()}")
            if time.monotonic() > deadline:
                raise ShowError(
                    f"waited {timeout:g} s in vain for {what}\n{self._processes.epitaphs()}"
                )
            time.sleep(STEP)

    def _look(self) -> Evidence:
        self._interrupts.obey()
        return self._witness.look()

    def _rows(self, seen: Evidence) -> list[Row]:
        return [
            self._row(seen, election, process)
            for election in ("worker", "beat")
            for process in self._of(election)
        ]

    def _row(self, seen: Evidence, election: str, process: Process) -> Row:
        work = _work(seen, election, process)
        if process.fate:
            return Row(process.name, election, process.fate, work=work)
        if not _is(process, seen.leader(election) or ""):
            known = any(_is(process, node) for node in seen.candidates[election])
            state = "follows" if known else "starting"
            return Row(process.name, election, state, work=work)
        term = int(seen.records[election]["term"])
        left = seen.seconds_left(election)
        return Row(process.name, election, "leads", term, left, work)


def _is(process: Process, node: str) -> bool:
    """Whether ``node`` is the name of ``process``: worker1@demo, or beat@host:pid."""
    return node.startswith(f"{process.name}@") or node.endswith(f":{process.pid}")


def _work(seen: Evidence, election: str, process: Process) -> str:
    if election == "worker":
        mine = [run.task for run in seen.started() if _is(process, run.node)]
        return f"{len(mine)} runs, {mine.count(LEADER_ONLY)} leader-only"
    terms = {event.term for event in seen.history["beat"] if _is(process, event.node)}
    return f"{len({(run.task, run.tick) for run in seen.started() if run.term in terms})} ticks"


def _all_take_part(seen: Evidence, election: str) -> bool:
    return seen.leader(election) is not None and len(seen.candidates[election]) >= SIZE


def _ran_by(seen: Evidence, ticks: int, term: int = 0) -> bool:
    """Whether ``ticks`` of each task have run, those of the beat with ``term`` only, if given."""
    ran = {(run.task, run.tick) for run in seen.started() if run.term >= term}
    return all(sum(task == each for task, _ in ran) >= ticks for each in TASKS.values())


def _led_by(seen: Evidence, worker: Process, runs: int) -> bool:
    """Whether ``worker`` has done ``runs`` leader-only tasks."""
    tasks = (run.task for run in seen.runs if run.event == "done" and _is(worker, run.node))
    return sum(task == LEADER_ONLY for task in tasks) >= runs


def _under_way(seen: Evidence, node: str) -> Run | None:
    """A leader-only body on ``node`` that has begun, and not just now, beside no plain one.

    A plain one that is cut short comes back after Celery's visibility timeout, an hour.
    """
    soonest, latest = INTO_A_BODY
    done = seen.done()
    begun = [run for run in seen.started() if run.node == node and run.id not in done]
    if any(run.task != LEADER_ONLY for run in begun):
        return None
    return _first(
        seen.started(),
        lambda run: (
            run.node == node
            and run.task == LEADER_ONLY
            and run.id not in done
            and soonest <= seen.now - run.at <= latest
        ),
    )


def _all_done(seen: Evidence) -> bool:
    ran = {(run.task, run.tick) for run in seen.started() if run.id in seen.done()}
    left = seen.waiting + seen.unacknowledged
    return left == 0 and len(ran) >= seen.dispatched()


def _first(among: tuple[T, ...] | list[T], wanted: Callable[[T], bool]) -> T | None:
    return next((each for each in among if wanted(each)), None)


# -- the command -----------------------------------------------------------------------


def main() -> int:
    """Run the demo; the exit code says what came of it."""
    interrupts = Interrupts()
    REPORT.unlink(missing_ok=True)
    try:
        report = demonstrate(interrupts)
    except Interrupted:
        print("interrupted; everything was stopped", file=sys.stderr)
        return 128 + interrupts.received
    except NoRedisServer as exc:
        print(f"error: {exc}\n{ANOTHER_WAY}", file=sys.stderr)
        return 2
    except ShowError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except redis.RedisError as exc:
        print(f"error: Redis does not answer as it should: {exc}", file=sys.stderr)
        return 2
    REPORT.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    sum_up(report, REPORT)
    return 1 if report.broken else 0


def demonstrate(interrupts: Interrupts) -> Report:
    """Run one demo, of which nothing is left afterwards."""
    theirs = os.environ.get("REDIS_URL")
    key_prefix = f"celery-leader-demo:{secrets.token_hex(4)}:"
    with Processes() as processes:
        if theirs:
            check_server(theirs)
        url = theirs or RedisServer(processes).url
        title = f"celery_leader on {'your Redis' if theirs else 'a Redis of its own'}"
        try:
            with screen(title) as shown:
                return Demo(processes, url, key_prefix, shown, interrupts).run()
        finally:
            processes.stop_all()
            if theirs:
                remove_keys(theirs, key_prefix)


def check_server(url: str) -> None:
    """Refuse a Redis that cannot be used.

    Raises:
        ShowError: why not.
    """
    if not url.startswith(("redis://", "rediss://")):
        raise ShowError(f"REDIS_URL must begin with redis:// or rediss://, and is {url!r}")
    version = str(client_of(url).info("server")["redis_version"])
    if version_tuple(version) < OLDEST_REDIS:
        oldest = ".".join(map(str, OLDEST_REDIS))
        raise ShowError(f"the Redis in REDIS_URL is {version}; {oldest} or newer is needed")


def remove_keys(url: str, key_prefix: str) -> None:
    """Remove the keys of this demo, and no others."""
    client = client_of(url)
    for key in client.scan_iter(match=f"{key_prefix}*", count=1000):
        client.unlink(key)


def client_of(url: str) -> redis.Redis:
    """A client that does not wait for ever."""
    return redis.Redis.from_url(
        url, socket_timeout=5, socket_connect_timeout=5, decode_responses=True
    )


if __name__ == "__main__":
    sys.exit(main())
