"""One candidate in a process of its own, which writes down what it believes.

``python -m tests.runtime.candidate URL ELECTION NODE LEASE LOG`` campaigns until its
standard input is closed. Every line of its log is a question "do I lead?": a moment
before it, a moment after it, and the term it answered (``-`` for none), by the clock
that all processes of the machine share.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from celery import Celery

from celery_leader import LeaderElection
from celery_leader.runtime import clock
from tests.support import ROOT
from tests.support.waiting import wait_until

_BETWEEN_QUESTIONS = 0.002


def environment() -> dict[str, str]:
    """What a Python subprocess needs to find this package and its tests."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@dataclass(frozen=True, slots=True)
class Saying:
    """One answer, given between two moments."""

    before: float
    after: float
    term: int | None


class CandidateProcess:
    """Starts, watches, pauses and kills one of them."""

    def __init__(
        self, directory: Path, url: str, election: str, node: str, *, lease: float
    ) -> None:
        self.node = node
        self.log = directory / f"{node}.log"
        arguments = [url, election, node, str(lease), str(self.log)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.candidate", *arguments],
            stdin=subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
        )

    def sayings(self) -> list[Saying]:
        """All it has said so far, whole lines only."""
        if not self.log.exists():
            return []
        lines = self.log.read_text().rpartition("\n")[0].splitlines()
        return [_read(line) for line in lines]

    def leads(self) -> bool:
        """Whether the last thing it said was that it leads."""
        sayings = self.sayings()
        return bool(sayings) and sayings[-1].term is not None

    def await_word(self) -> None:
        """Wait until it says something, whatever it is."""
        before = len(self.sayings())
        wait_until(lambda: len(self.sayings()) > before, what=f"a word from {self.node}")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)

    def end(self) -> int:
        """Have it end as a program ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(30)

    def kill(self) -> None:
        """End it now."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)
        if self._process.stdin is not None:
            self._process.stdin.close()


def assert_never_two_believed_at_once(*sayings_of_each: list[Saying]) -> None:
    """Nobody led with a lower term when somebody had been seen to lead with a higher one."""
    led: dict[int, tuple[float, float]] = {}
    for sayings in sayings_of_each:
        for saying in sayings:
            if saying.term is not None:
                first, last = led.get(saying.term, (saying.after, saying.before))
                led[saying.term] = min(first, saying.after), max(last, saying.before)
    terms = sorted(led)
    for lower, higher in itertools.pairwise(terms):
        surely_over, surely_begun = led[lower][1], led[higher][0]
        assert surely_over <= surely_begun, f"{lower} was believed in beside {higher}"


def _read(line: str) -> Saying:
    before, after, term = line.split()
    return Saying(float(before), float(after), None if term == "-" else int(term))


def _questions() -> Iterator[None]:
    while not select.select([sys.stdin], [], [], _BETWEEN_QUESTIONS)[0]:
        yield


def main(url: str, election: str, node: str, lease: str, log: str) -> None:
    """Campaign, and write down what is believed."""
    app = Celery("candidate", broker=url)
    app.conf.leader_lease_duration = float(lease)
    candidate = LeaderElection(app, election, node=node).start()
    with Path(log).open("w", buffering=1) as lines:
        for _ in _questions():
            before = clock.now()
            term = candidate.term()
            after = clock.now()
            lines.write(f"{before!r} {after!r} {term or '-'}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
