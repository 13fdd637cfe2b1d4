"""Each contender under the same faults at the same time, over and over: failover and findings."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.contenders import LEASE, Contender
from benchmarks.peers.judge import Findings, judge
from benchmarks.peers.pair import Node, Pair, now

TERM, KILL = "SIGTERM", "SIGKILL"
LONE_KILL = "SIGKILL of the main process alone"
PAUSED, CUT_OFF, RESTARTED = "paused", "cut off", "Redis restarted"
KINDS = (TERM, KILL, LONE_KILL, PAUSED, CUT_OFF, RESTARTED)
FAILOVERS = (TERM, KILL)

# So long that a stall between a beat's look at the clock and its message is a small part.
INTERVALS = {f"entry-{i:02}": round(1.6 + 0.02 * i, 2) for i in range(40)}
LONGER_THAN_LEASE = LEASE + 3.0  # seconds of a pause or a cut
ORPHANED = 3.0 * LEASE  # seconds; single-beat's first lock lasts two leases
OUTAGE = 2.0  # seconds without Redis


@dataclass(slots=True)
class Result:
    """What one contender has shown."""

    contender: Contender
    #: Seconds from the signal to the first message of another process, or of the next
    #: process in the same place where there is no other; by signal.
    failovers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    findings: dict[str, list[Findings]] = field(default_factory=lambda: defaultdict(list))
    deaths: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    #: Faults after which not all of it worked again within ``PATIENCE``.
    unrecovered: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def measure(
    contenders: tuple[Contender, ...], failovers: int, faults: int, directory: Path
) -> list[Result]:
    """Put all contenders under each failover and each other fault so many times, side by side."""
    turn = threading.Lock()
    contests = [_Contest(each, turn, directory) for each in contenders]
    threads = [
        threading.Thread(target=contest.run, args=(failovers, faults)) for contest in contests
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for contest in contests:
        if contest.error is not None:
            raise contest.error
    return [contest.result for contest in contests]


class _Contest:
    """One contender's part.

    ``turn`` is held by whoever starts processes, or is measured in milliseconds, so that
    what one starts does not slow down what another is timed at.
    """

    def __init__(self, contender: Contender, turn: threading.Lock, directory: Path) -> None:
        self.result = Result(contender)
        self.error: BaseException | None = None
        self._turn = turn
        self._directory = directory
        self._acts: dict[str, Callable[[Pair], None]] = {
            TERM: self._terminated,
            KILL: self._killed,
            LONE_KILL: self._killed_alone,
            PAUSED: self._paused,
            CUT_OFF: self._cut_off,
            RESTARTED: self._redis_restarted,
        }

    def run(self, failovers: int, faults: int) -> None:
        try:
            contender = self.result.contender
            with contextlib.ExitStack() as stack:
                with self._turn:
                    pair = stack.enter_context(
                        Pair(contender, INTERVALS, self._directory / contender.distribution)
                    )
                    pair.until(lambda: all(node.takes_part for node in pair.nodes))
                self._recover(pair, "start")
                for number in range(max(failovers, faults)):
                    for kind in KINDS:
                        if number < (failovers if kind in FAILOVERS else faults):
                            self._bring_about(kind, pair)
        except BaseException as exc:
            self.error = exc
            raise

    def _bring_about(self, kind: str, pair: Pair) -> None:
        begins, deaths = now(), pair.deaths
        self._acts[kind](pair)
        pair.heal()
        self._recover(pair, kind)
        pair.bury()
        found = judge(pair.queue.messages, INTERVALS, begins, now())
        self.result.findings[kind].append(found)
        self.result.deaths[kind] += pair.deaths - deaths
        name = self.result.contender.name
        print(f"{name}: {kind}: {found}", file=sys.stderr, flush=True)

    def _recover(self, pair: Pair, kind: str) -> None:
        if pair.settle():
            return
        self.result.unrecovered[kind] += 1
        for node in pair.nodes:
            node.tell_all(signal.SIGKILL)
        pair.settle()

    # -- faults -------------------------------------------------------------------

    def _terminated(self, pair: Pair) -> None:
        with self._turn:
            self._goes(pair, TERM, lambda node: node.tell(signal.SIGTERM))
            self._comes_back(pair)

    def _killed(self, pair: Pair) -> None:
        self._goes(pair, KILL, lambda node: node.tell_all(signal.SIGKILL))
        with self._turn:
            self._comes_back(pair)

    def _goes(self, pair: Pair, kind: str, signalled: Callable[[Node], None]) -> None:
        old = pair.leader()
        old.gone = len(pair.nodes) > 1
        pid, since = old.pid, now()
        signalled(old)
        seconds = pair.succeeded(pid, since)
        if seconds is not None:
            self.result.failovers[kind].append(seconds)

    def _comes_back(self, pair: Pair) -> None:
        for node in pair.nodes:
            node.gone = False
        pair.until(lambda: all(node.takes_part for node in pair.nodes))

    def _killed_alone(self, pair: Pair) -> None:
        """The out-of-memory killer chooses one process, not all of a container."""
        pair.leader().tell(signal.SIGKILL)
        time.sleep(ORPHANED)

    def _paused(self, pair: Pair) -> None:
        leader = pair.leader()
        leader.tell_all(signal.SIGSTOP)
        time.sleep(LONGER_THAN_LEASE)
        leader.tell_all(signal.SIGCONT)

    def _cut_off(self, pair: Pair) -> None:
        leader = pair.leader()
        leader.proxy.stall()
        time.sleep(LONGER_THAN_LEASE)
        leader.proxy.restore()

    def _redis_restarted(self, pair: Pair) -> None:
        pair.server.kill()
        time.sleep(OUTAGE)
        pair.server.start()
