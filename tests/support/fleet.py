"""Real ``celery worker`` and ``celery beat`` processes over one broker, for one test.

Each process runs in its own process group, with its log in a file. The groups are killed at the
end, whatever happens.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from celery import Celery, _state

from tests.support import ROOT, fleet_app
from tests.support.launching import run_module, without_celery_variables
from tests.support.process import Process as Process
from tests.support.seen import Seen

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


class Fleet(Seen):
    """Starts the processes of one app over one broker, and sends to them.

    Args:
        directory: for logs and other files.
        broker: the broker's URL, also for results and for what the tasks record.
        config: for ``fleet_app.build``: ``conf`` (Celery settings), ``conf_after_install``,
            ``schedule`` (name to ``task``, ``every``, ``args``, ``options``,
            ``unsendable``), ``install``, ``unknown`` (tasks it lacks), ``probe``,
            ``backend``, ``record``, ``limited`` (tasks with ``max_running``). Values that are given for one process override these.
    """

    #: What its processes are.
    process = Process

    def __init__(self, directory: Path, broker: str, **config: Any) -> None:
        super().__init__(_merged({"broker": broker, "record": broker, "conf": QUICK}, config))
        self.directory = directory

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

    def flower(self, port: int) -> Process:
        """A Flower that serves on ``port``."""
        options = ("--address=127.0.0.1", f"--port={port}", "--inspect_timeout=1000")
        return self._start("flower", "", ("flower", *options), {})

    def run(self, *arguments: str, **config: Any) -> subprocess.CompletedProcess[str]:
        """Run a ``celery`` command to its end."""
        command = ["-A", self.process.app, *arguments]
        return run_module("tests.support.lean_celery", command, self._environment(config), 60)

    def python(self, code: str, **config: Any) -> subprocess.CompletedProcess[str]:
        """Run ``code`` to its end, which finds its app in ``proj``."""
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=self._environment(config),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def _environment(self, config: dict[str, Any]) -> dict[str, str]:
        configured = {fleet_app.VARIABLE: json.dumps(_merged(self.config, config))}
        return without_celery_variables(PYTHONUNBUFFERED="1", **configured)

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
