"""Real ``celery worker`` and ``celery beat`` processes, with real signals, for one test.

Each process runs in its own process group, with its log in a file. The groups are killed at the
end, whatever happens. Redis shows what the processes did: the records that tasks wrote, the
beliefs that a probe saw, the history stream, the queues.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import redis
from celery import Celery, _state

from tests.support import ROOT, fleet_app
from tests.support.fleet_app.extras import SIGNALLED
from tests.support.fleet_app.recorder import BELIEFS, RECORDS
from tests.support.launching import launch_module, without_celery_variables
from tests.support.waiting import wait_until

#: A short lease, renewed so often that a process may stall for more than a second.
QUICK = {
    "leader_lease_duration": 2.0,
    "leader_renew_interval": 0.4,
    "leader_operation_timeout": 0.3,
    "leader_renew_retry_delay": 0.05,
}
#: A lease that never runs out in a test, for where nobody is killed, frozen or cut off.
LASTING = {**QUICK, "leader_lease_duration": 300.0}
_TAIL = 6000  # characters of a log shown when a test fails

#: Fleets that have processes; their logs are shown when a test fails.
LIVE: list[Fleet] = []


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an election's history."""

    kind: str
    node: str
    term: int
    at: int  # microseconds on the clock of Redis, cut to milliseconds


class Process:
    """One worker or beat, which runs from its start to ``close``."""

    #: The module its app is in.
    app = "tests.support.fleet_app"

    def __init__(self, name: str, node: str, command: Sequence[str], config: Any, log: Path):
        self.name = name
        self._node = node
        self.log_file = log
        configured = {fleet_app.VARIABLE: json.dumps(config)}
        self._running = launch_module(
            "tests.support.lean_celery",
            ["-A", self.app, *command],
            log,
            without_celery_variables(PYTHONUNBUFFERED="1", **configured),
        )

    @property
    def pid(self) -> int:
        """Its process id, and that of its group."""
        return self._running.pid

    @property
    def node(self) -> str:
        """The node name it campaigns under."""
        return self._node or f"beat@{socket.gethostname()}:{self.pid}"

    @property
    def log(self) -> str:
        """Everything it has said."""
        return self.log_file.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it runs or is stopped; a look does not reap it, so its id stays its own."""
        return self._running.exit_status() is None

    def says(self, text: str) -> Process:
        """Wait until its log has ``text``."""

        def said() -> bool:
            if text in self.log:
                return True
            assert self.alive, f"{self.name} ended before it said {text!r}"
            return False

        wait_until(said, what=f"{self.name} to say {text!r}")
        return self

    def tell(self, number: int) -> None:
        """Send ``number`` to the main process alone."""
        os.kill(self.pid, number)

    def freeze(self) -> None:
        """Stop all its processes in their tracks."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Have them go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End all its processes at once."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def kill_child(self, pid: int) -> None:
        """End one of its pool processes at once."""
        assert os.getpgid(pid) == self.pid, f"{pid} is none of {self.name}'s"
        os.kill(pid, signal.SIGKILL)

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end, and return its exit code when it has."""
        self.tell(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        wait_until(lambda: not self.alive, what=f"{self.name} to end")
        status = self._running.exit_status()
        assert status is not None
        return status

    def close(self) -> None:
        """Kill whatever of it is left."""
        self._running.kill_and_reap()


class Fleet:
    """The processes of one app over one broker, and ways to read what they did.

    Args:
        directory: for logs and other files.
        broker: the broker's URL, also for results and for what the tasks record.
        config: for ``fleet_app.build``: ``conf`` (Celery settings), ``conf_after_install``,
            ``schedule`` (name to ``task``, ``every``, ``args``, ``options``,
            ``unsendable``), ``install``, ``unknown`` (tasks it lacks), ``probe``,
            ``backend``, ``record``. Values that are given for one process override these.
    """

    #: What its processes are.
    process = Process

    def __init__(self, directory: Path, broker: str, **config: Any) -> None:
        self.directory = directory
        self.config = _merged({"broker": broker, "record": broker, "conf": QUICK}, config)
        at = self.config["record"] if broker.startswith("sentinel:") else broker
        self.redis = redis.Redis.from_url(at, decode_responses=True)
        self.leases = self.redis
        self._recorded = redis.Redis.from_url(self.config["record"], decode_responses=True)
        self.prefix = ""
        self.processes: list[Process] = []
        self._open = contextlib.ExitStack()

    def look_for_leases_in(self, url: str) -> None:
        """Read elections from another Redis than the broker."""
        self.leases = redis.Redis.from_url(url, decode_responses=True)
        self._open.callback(self.leases.close)

    # -- processes -----------------------------------------------------------

    def worker(self, name: str, *arguments: str, quiet: bool = True, **config: Any) -> Process:
        """Start a worker ``name@fleet`` that also consumes from a queue called ``name``."""
        chatter = ("--without-mingle", "--without-gossip") if quiet else ()
        if "-Q" not in arguments:
            arguments = (*arguments, "-Q", f"celery,{name}")
        if "-c" not in arguments and "solo" not in arguments:
            arguments = (*arguments, "-c", "1")
        node = f"{name}@fleet"
        command = ("worker", "-n", node, "-l", "info", *chatter, *arguments)
        return self._start(name, node, command, config)

    def workers(self, *names: str, pool: str = "prefork", **config: Any) -> list[Process]:
        """Start workers, and wait until they are ready and one leads."""
        started = [self.worker(name, "-P", pool, **config) for name in names]
        for process in started:
            process.says(" ready.")
        self.leader()
        return started

    def beat(self, name: str, *arguments: str, node: str = "", **config: Any) -> Process:
        """Start a beat; ``-S leader`` unless another scheduler is named.

        ``node`` is the name it takes part under, if not one with its process id.
        """
        if "-S" not in arguments:
            arguments = (*arguments, "-S", "leader")
        if "-s" not in arguments:
            arguments = (*arguments, "-s", str(self.directory / f"{name}.schedule"))
        return self._start(name, node, ("beat", "-l", "info", *arguments), config)

    def beats(self, *names: str, **config: Any) -> list[Process]:
        """Start beats, and wait until each takes part and one leads."""
        started = [self.beat(name, **config) for name in names]
        for process in started:
            self.takes_part(process, "beat")
        self.leader("beat")
        return started

    def beats_of(self, scheduler: str, *names: str, **config: Any) -> list[Process]:
        """Start beats of one scheduler, and wait until each takes part and one leads."""
        started = [self.beat(name, "-S", scheduler, **config) for name in names]
        for process in started:
            self.takes_part(process, "beat")
        self.leader("beat")
        return started

    def monitor(self) -> Process:
        """``celery events --dump``, which has begun to listen."""
        dump = self._start("dump", "", ("events", "--dump"), {})
        self.is_listened_to()
        return dump

    def is_listened_to(self) -> None:
        """Wait until somebody listens to the event stream; only workers with gossip do, too."""
        wait_until(self.redis.pubsub_numpat, what="somebody to listen to events")

    def flower(self, port: int) -> Process:
        """A Flower that serves on ``port``."""
        options = ("--address=127.0.0.1", f"--port={port}", "--inspect_timeout=1000")
        return self._start("flower", "", ("flower", *options), {})

    def run(self, *arguments: str, **config: Any) -> subprocess.CompletedProcess[str]:
        """Run a ``celery`` command to its end."""
        return self._python(
            "-m", "tests.support.lean_celery", "-A", self.process.app, *arguments, **config
        )

    def python(self, code: str, **config: Any) -> subprocess.CompletedProcess[str]:
        """Run ``code`` to its end, which finds its app in ``proj``."""
        return self._python("-c", code, **config)

    def _python(self, *arguments: str, **config: Any) -> subprocess.CompletedProcess[str]:
        configured = {fleet_app.VARIABLE: json.dumps(_merged(self.config, config))}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=without_celery_variables(**configured),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def _start(self, name: str, node: str, command: Sequence[str], config: Any) -> Process:
        log = self.directory / f"{name}.{len(self.processes)}.log"
        process = self.process(name, node, command, _merged(self.config, config), log)
        self.processes.append(process)
        return process

    def __enter__(self) -> Fleet:
        LIVE.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        LIVE.remove(self)
        for process in self.processes:
            process.close()
        self._open.close()
        self._recorded.close()
        self.redis.close()

    def logs(self) -> Iterator[tuple[str, str]]:
        """The end of every log."""
        for process in self.processes:
            yield f"{process.name} ({process.node})", process.log[-_TAIL:]

    # -- sending ---------------------------------------------------------------

    @cached_property
    def app(self) -> Celery:
        """The app in this process, as a web process has it."""
        app = self.sender()
        before = _state.get_current_app()
        app.set_current()
        self._open.callback(before.set_current)
        return app

    def sender(self, **config: Any) -> Celery:
        """The app in this process, with a configuration of its own."""
        app = fleet_app.build(_merged(self.config, config))
        self._open.callback(_close, app)
        return app

    @cached_property
    def stranger(self) -> Celery:
        """An app that shares the broker and knows nothing of leaders or tasks."""
        broker = self.config["broker"]
        app = Celery("stranger", broker=broker, backend=broker, set_as_current=False)
        app.conf.update(
            {k: v for k, v in self.config["conf"].items() if not k.startswith("leader_")}
        )
        self._open.callback(_close, app)
        return app

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        """Send ``fleet.<name>`` as the stranger does: by name, to the default queue."""
        return self.stranger.send_task(f"fleet.{name}", args, **options)

    def open(self, gate: str) -> None:
        """Let a body go on that waits at ``gate``."""
        self._recorded.rpush(f"fleet:gate:{gate}", "open")

    # -- reading -----------------------------------------------------------------

    def records(self, event: str | None = None, label: str | None = None) -> list[dict[str, Any]]:
        """What the tasks recorded, in order."""
        seen = [json.loads(text) for text in self._recorded.lrange(RECORDS, 0, -1)]
        return [
            each
            for each in seen
            if event in (None, each["event"]) and label in (None, each.get("label"))
        ]

    def saw(self, event: str, label: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until ``event`` was recorded ``count`` times for ``label``."""

        def enough() -> list[dict[str, Any]] | None:
            seen = self.records(event, label)
            return seen if len(seen) >= count else None

        return wait_until(enough, what=f"{count} x {event!r} of {label!r}") or []

    def key(self, kind: str, election: str) -> str:
        """A key of the public layout."""
        namespace = self.config["conf"].get("task_default_queue", "celery")
        return f"{self.prefix}celery-leader:{namespace}:{kind}:{election}"

    def record(self, election: str = "worker") -> dict[str, str]:
        """The record of an election, as it stands."""
        return self.leases.hgetall(self.key("election", election))

    def history(self, election: str = "worker") -> list[Line]:
        """Who was elected and who resigned, in order."""
        return [
            Line(line["kind"], line["node"], int(line["term"]), int(at.split("-")[0]) * 1000)
            for at, line in self.leases.xrange(self.key("history", election))
            if line["kind"] in ("elected", "resigned", "reserved")
        ]

    def leader(self, election: str = "worker", *, other_than: Process | None = None) -> Process:
        """Wait until one of these processes leads, and return it."""

        def leading() -> Process | None:
            record = self.record(election)
            if record.get("state") != "held" or not self._still_runs(record):
                return None
            named = [p for p in self.processes if p.node == record["holder"] and p.alive]
            return named[0] if named and named[0] is not other_than else None

        process = wait_until(leading, what=f"a leader of {election}")
        assert process is not None
        return process

    def _still_runs(self, record: dict[str, str]) -> bool:
        return int(record["expires_at"]) > 1000 * self.moment()

    def wait_without_leader(self) -> None:
        """Wait until the lease of the one that leads has run out."""
        record = self.record()
        wait_until(lambda: not self._still_runs(record), what="the lease to run out")

    def signalled(self, name: str, **arguments: Any) -> list[dict[str, Any]]:
        """Wait until a signal of ``name`` with ``arguments`` was received; all of them."""

        def told() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in self.redis.lrange(SIGNALLED, 0, -1)]
            return [
                line
                for line in lines
                if line["signal"] == name and arguments.items() <= line.items()
            ]

        return wait_until(told, what=f"the signal {name} with {arguments}")

    def followers(self, election: str = "worker") -> list[Process]:
        """The processes that do not lead."""
        leader = self.leader(election)
        return [p for p in self.processes if p.alive and p is not leader]

    def takes_part(self, process: Process, election: str = "worker") -> None:
        """Wait until ``process`` has asked for the lease."""
        wait_until(
            lambda: self.leases.zscore(self.key("candidates", election), process.node),
            what=f"{process.name} to take part in {election}",
        )

    def renewed(self, times: int, election: str = "worker") -> dict[str, str]:
        """Wait until the leader has renewed its lease ``times`` times from now on."""
        before = self.record(election)
        goal = int(before["renewals"]) + times

        def enough() -> dict[str, str] | None:
            record = self.record(election)
            assert record["term"] == before["term"], f"another leads: {before}, then {record}"
            return record if int(record["renewals"]) >= goal else None

        return wait_until(enough, what=f"{times} renewals of {election}") or {}

    def outlives_its_lease(self, election: str = "worker") -> dict[str, str]:
        """Wait until the lease would have run out had the leader not renewed it since."""
        before = self.record(election)

        def later() -> dict[str, str] | None:
            record = self.record(election)
            assert record["term"] == before["term"], f"another leads: {before}, then {record}"
            assert record["state"] == "held", record
            return record if 1000 * self.moment() > int(before["expires_at"]) else None

        record = wait_until(later, what=f"the leader of {election} to outlive its lease") or {}
        assert self._still_runs(record), record
        return record

    @property
    def lease(self) -> float:
        """How long a lease lasts, in seconds."""
        return float(self.config["conf"]["leader_lease_duration"])

    def moment(self) -> float:
        """Seconds, on the clock of the Redis that keeps the leases."""
        seconds, micros = self.leases.time()
        return float(seconds) + micros / 1_000_000

    def beliefs(self) -> list[dict[str, Any]]:
        """What the probes saw believed, in the order of the clock of Redis."""
        seen = [json.loads(text) for text in self._recorded.lrange(BELIEFS, 0, -1)]
        return sorted(seen, key=lambda belief: belief["at"])

    def assert_beliefs_never_overlapped(self) -> None:
        """No two processes ever believed, at one moment, that they lead one election."""
        everything = self.beliefs()
        assert everything, "the probes saw nobody lead"
        for election in {belief["election"] for belief in everything}:
            beliefs = [belief for belief in everything if belief["election"] == election]
            for before, after in itertools.pairwise(beliefs):
                assert after["term"] >= before["term"], f"{before}, and later {after}"
            holders = {(belief["term"], belief["node"]) for belief in beliefs}
            assert len({term for term, _ in holders}) == len(holders), holders

    def messages(self, queue: str = "celery") -> list[dict[str, Any]]:
        """The messages that wait in ``queue``, the oldest first: their headers."""
        raw = self.redis.lrange(f"{self.prefix}{queue}", 0, -1)
        return [json.loads(text)["headers"] for text in reversed(raw)]

    def arrived(self, count: int, queue: str = "celery") -> list[dict[str, Any]]:
        """Wait until ``count`` messages wait in ``queue``."""

        def enough() -> list[dict[str, Any]] | None:
            messages = self.messages(queue)
            return messages if len(messages) >= count else None

        return wait_until(enough, what=f"{count} messages in {queue}") or []

    def more(self, count: int, task: str | None = None) -> None:
        """Wait until ``count`` further messages were dispatched, of ``task`` if it is named."""
        self.had(len(self.of(task)) + count, task)

    def had(self, count: int, task: str | None = None) -> None:
        """Wait until ``count`` messages were dispatched, of ``task`` if it is named."""
        wait_until(lambda: len(self.of(task)) >= count, what=f"{count} messages of {task or 'any'}")

    def of(self, task: str | None = None) -> list[dict[str, Any]]:
        """The headers of the messages in the default queue, of one task if it is named."""
        return [m for m in self.messages() if task in (None, m["task"])]

    def senders(self, task: str | None = None) -> list[int]:
        """The pids of who sent them."""
        return [int(m["origin"].removeprefix("gen").split("@")[0]) for m in self.of(task)]

    def ticks(self, task: str | None = None) -> list[str]:
        """Their due times, no two of which may be alike."""
        ticks = [message["leader_tick"] for message in self.of(task)]
        assert len(set(ticks)) == len(ticks), ticks
        return ticks


def _close(app: Celery) -> None:
    # Before Celery 5.7 a result that is garbage asks for its Redis until there is one again.
    if app._backend is not None:
        app._backend.remove_pending_result = lambda _: None
    app.close()


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = {**base, **over}
    if "conf" in base and "conf" in over:
        merged["conf"] = {**base["conf"], **over["conf"]}
    return merged
