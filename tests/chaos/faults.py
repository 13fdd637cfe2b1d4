"""What goes wrong, in an order drawn from a seed, and how it is brought about."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from tests.chaos.beats import Beat, Beats
from tests.chaos.drainer import Drainer, Trap, connected
from tests.chaos.judge import Arrival
from tests.chaos.moments import present
from tests.support.redis_server import RedisServer

_PREFIX = "celery-leader:celery"
_RECORD = f"{_PREFIX}:election:beat"
_CANDIDATES = f"{_PREFIX}:candidates:beat"
_GRACE = 1.0  # seconds a gap may be longer than the lease or the outage
_BURST_PATIENCE = 15.0
_RECOVERY_PATIENCE = 30.0


KINDS = (
    "leader SIGTERM",
    "leader SIGKILL",
    "leader SIGSTOP",
    "connections reset",
    "connections refused",
    "connections silent",
    "connections forgotten",
    "connections reset, new ones mute",
    "Redis restarted",
    "Redis paused",
    "replies lost, reset",
    "replies lost, silent",
    "record deleted",
    "record deleted, leader SIGKILL",
    "record deleted, leader SIGSTOP",
    "burst: leader SIGSTOP",
    "burst: leader SIGTERM",
    "burst: leader SIGKILL",
    "burst: Redis restarted",
    "burst: replies lost",
    "takeover: replies lost",
    "takeover: connections silent",
    "takeover: new connections mute",
    "several at once",
)

_FOR_SEVERAL = (
    "leader SIGKILL",
    "leader SIGSTOP",
    "connections refused",
    "connections silent",
    "connections forgotten",
    "Redis restarted",
    "Redis paused",
    "replies lost, reset",
    "replies lost, silent",
    "record deleted",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: one of ``KINDS``.
        on_leader: whether it hits the leader's connection, or a follower's.
        share: of the time that this kind may last, 0 to 1.
        count: how many replies, resets or messages it takes.
        silently: a lost connection stays open and mute.
        rest: seconds of calm afterwards.
        parts: what happens at once, each so many seconds after the first.
    """

    kind: str
    on_leader: bool
    share: float
    count: int
    silently: bool
    rest: float
    parts: tuple[tuple[float, Fault], ...] = ()


def schedule(seed: int, among: Sequence[str] = KINDS) -> Iterator[Fault]:
    """All faults of this seed, without end; in each round each kind of ``among`` comes once."""
    chance = random.Random(seed)
    while True:
        kinds = list(among)
        chance.shuffle(kinds)
        for kind in kinds:
            yield _drawn(kind, chance)


def _drawn(kind: str, chance: random.Random) -> Fault:
    parts: tuple[tuple[float, Fault], ...] = ()
    if kind == "several at once":
        kinds = chance.sample(_FOR_SEVERAL, chance.randint(2, 3))
        parts = tuple((chance.uniform(0, 1.5), _drawn(part, chance)) for part in kinds)
    return Fault(
        kind=kind,
        on_leader=chance.random() < 0.75,
        share=chance.random(),
        count=chance.randint(1, 6),
        silently=chance.random() < 0.5,
        rest=chance.uniform(0.2, 1.5),
        parts=parts,
    )


@dataclass(frozen=True, slots=True)
class Done:
    """A fault that was brought about: since when, and how long a gap it may make."""

    begins: int
    allowed: float
    note: str = ""


class Scene:
    """Where faults are brought about.

    Args:
        server: the Redis of all.
        beats: who dispatches.
        drainer: who reads what they dispatch.
        lease: theirs, in seconds.
    """

    def __init__(self, server: RedisServer, beats: Beats, drainer: Drainer, lease: float) -> None:
        self._server = server
        self._beats = beats
        self._drainer = drainer
        self._lease = lease
        self._client = connected(server.port)
        self._server_turn = threading.Lock()
        self._acts: dict[str, Any] = {
            "leader SIGTERM": self._leader_sigterm,
            "leader SIGKILL": self._leader_sigkill,
            "leader SIGSTOP": self._leader_sigstop,
            "connections reset": self._connections_reset,
            "connections refused": self._connections_refused,
            "connections silent": self._connections_silent,
            "connections forgotten": self._connections_forgotten,
            "connections reset, new ones mute": self._connections_mute,
            "Redis restarted": self._redis_restarted,
            "Redis paused": self._redis_paused,
            "replies lost, reset": self._replies_lost_reset,
            "replies lost, silent": self._replies_lost_silent,
            "record deleted": self._record_deleted,
            "record deleted, leader SIGKILL": self._record_deleted_leader_sigkill,
            "record deleted, leader SIGSTOP": self._record_deleted_leader_sigstop,
            "burst: leader SIGSTOP": self._burst_leader_sigstop,
            "burst: leader SIGTERM": self._burst_leader_sigterm,
            "burst: leader SIGKILL": self._burst_leader_sigkill,
            "burst: Redis restarted": self._burst_redis_restarted,
            "burst: replies lost": self._burst_replies_lost,
            "takeover: replies lost": self._takeover_replies_lost,
            "takeover: connections silent": self._takeover_connections_silent,
            "takeover: new connections mute": self._takeover_connections_mute,
            "several at once": self._several_at_once,
        }

    def bring_about(self, fault: Fault) -> Done:
        """Have ``fault`` happen; return when its cause is gone."""
        begins = present()
        done = self._acts[fault.kind](fault)
        return done or Done(begins, self._lease + _GRACE)

    def recover(self, since: int) -> bool:
        """Wait until every beat takes part, and one that runs has dispatched after ``since``."""
        deadline = time.monotonic() + _RECOVERY_PATIENCE
        while time.monotonic() < deadline:
            if self._drainer.error is not None:
                raise self._drainer.error
            if self._dispatches(since) and self._all_take_part():
                return True
            time.sleep(0.05)
        return False

    def close(self) -> None:
        """Heal what is broken."""
        for beat in self._beats.all:
            beat.proxy.restore()
            beat.tell(signal.SIGCONT)

    # -- processes ---------------------------------------------------------------

    def _leader_sigterm(self, fault: Fault) -> None:
        self._leader().tell(signal.SIGTERM)

    def _leader_sigkill(self, fault: Fault) -> None:
        self._leader().tell(signal.SIGKILL)

    def _leader_sigstop(self, fault: Fault) -> None:
        self._stopped(self._leader(), fault)

    def _stopped(self, beat: Beat, fault: Fault) -> None:
        beat.tell(signal.SIGSTOP)
        time.sleep(self._longer_than_lease(fault))
        beat.tell(signal.SIGCONT)

    # -- connections -----------------------------------------------------------------

    def _connections_reset(self, fault: Fault) -> None:
        beat = self._hit(fault)
        for _ in range(fault.count):
            beat.proxy.reset()
            time.sleep(0.3 * fault.share)

    def _connections_refused(self, fault: Fault) -> None:
        beat = self._hit(fault)
        beat.proxy.turn_away()
        time.sleep(self._about_a_lease(fault))
        beat.proxy.restore()

    def _connections_silent(self, fault: Fault) -> None:
        self._silent(self._hit(fault), fault)

    def _silent(self, beat: Beat, fault: Fault) -> None:
        beat.proxy.stall()
        time.sleep(self._about_a_lease(fault))
        beat.proxy.restore()

    def _connections_forgotten(self, fault: Fault) -> None:
        self._hit(fault).proxy.forget()
        time.sleep(self._about_a_lease(fault))

    def _connections_mute(self, fault: Fault) -> None:
        beat = self._hit(fault)
        beat.proxy.mute_next(fault.count)
        beat.proxy.reset()
        time.sleep(self._about_a_lease(fault))
        beat.proxy.mute_next(0)

    def _replies_lost_reset(self, fault: Fault) -> Done:
        return self._replies_lost([self._hit(fault)], fault.count, silently=False)

    def _replies_lost_silent(self, fault: Fault) -> Done:
        return self._replies_lost([self._hit(fault)], fault.count, silently=True)

    def _replies_lost(self, beats: list[Beat], count: int, *, silently: bool) -> Done:
        begins, lost = present(), sum(beat.proxy.lost for beat in beats)
        for beat in beats:
            beat.proxy.lose_replies(count, silently=silently)
        time.sleep(0.8 * self._lease)
        for beat in beats:
            beat.proxy.lose_replies(0, silently=silently)
        lost = sum(beat.proxy.lost for beat in beats) - lost
        return Done(begins, self._lease + _GRACE, f"{lost} replies lost")

    # -- Redis -------------------------------------------------------------------------

    def _redis_restarted(self, fault: Fault) -> Done:
        with self._server_turn:
            begins = present()
            self._server.kill()
            time.sleep(self._about_a_lease(fault))
            self._server.start()
            return self._outage(begins)

    def _redis_paused(self, fault: Fault) -> Done:
        with self._server_turn:
            begins = present()
            self._server.pause()
            time.sleep(self._about_a_lease(fault))
            self._server.resume()
            return self._outage(begins)

    def _outage(self, begins: int) -> Done:
        seconds = (present() - begins) / 1e6
        return Done(begins, max(self._lease, seconds) + _GRACE, f"outage of {seconds:.2f} s")

    def _record_deleted(self, fault: Fault) -> None:
        self._asked("DEL", _RECORD)

    def _record_deleted_leader_sigkill(self, fault: Fault) -> Done:
        begins, leader = present(), self._leader()
        leader.tell(signal.SIGSTOP)  # or it would write the record again before it dies
        self._asked("DEL", _RECORD)
        leader.tell(signal.SIGKILL)
        return Done(begins, 2 * self._lease + _GRACE)

    def _record_deleted_leader_sigstop(self, fault: Fault) -> Done:
        begins, leader = present(), self._leader()
        leader.tell(signal.SIGSTOP)
        self._asked("DEL", _RECORD)
        time.sleep(self._longer_than_lease(fault))
        leader.tell(signal.SIGCONT)
        return Done(begins, 2 * self._lease + _GRACE)

    # -- in the middle of a burst ---------------------------------------------------------

    def _burst_leader_sigstop(self, fault: Fault) -> Done:
        hit: list[Beat] = []

        def stop(beat: Beat) -> None:
            beat.tell(signal.SIGSTOP)
            hit.append(beat)

        begins, note = self._in_a_burst(fault, stop)
        time.sleep(self._longer_than_lease(fault))
        for beat in hit:
            beat.tell(signal.SIGCONT)
        return Done(begins, self._lease + _GRACE, note)

    def _burst_leader_sigterm(self, fault: Fault) -> Done:
        begins, note = self._in_a_burst(fault, lambda beat: beat.tell(signal.SIGTERM))
        return Done(begins, self._lease + _GRACE, note)

    def _burst_leader_sigkill(self, fault: Fault) -> Done:
        begins, note = self._in_a_burst(fault, lambda beat: beat.tell(signal.SIGKILL))
        return Done(begins, self._lease + _GRACE, note)

    def _burst_redis_restarted(self, fault: Fault) -> Done:
        begins, note = self._in_a_burst(fault, lambda beat: self._server.kill())
        time.sleep(self._about_a_lease(fault))
        self._server.start()
        outage = self._outage(begins)
        return Done(begins, outage.allowed, f"{note}, {outage.note}")

    def _burst_replies_lost(self, fault: Fault) -> Done:
        hit: list[Beat] = []

        def lose(beat: Beat) -> None:
            beat.proxy.lose_replies(fault.count, silently=fault.silently)
            hit.append(beat)

        begins, note = self._in_a_burst(fault, lose)
        time.sleep(0.8 * self._lease)
        for beat in hit:
            beat.proxy.lose_replies(0, silently=False)
        return Done(begins, self._lease + _GRACE, note)

    def _in_a_burst(self, fault: Fault, act: Callable[[Beat], None]) -> tuple[int, str]:
        """Have ``act`` hit the leader in a burst; when that was due, and how much had come."""
        hit: list[Beat] = []

        def sprung(arrival: Arrival) -> None:
            beat = self._beats.of_pid(arrival.pid)
            if beat is not None:
                act(beat)
                hit.append(beat)

        trap = Trap(present(), 1 + int(60 * fault.share), sprung)
        self._drainer.set(trap)
        try:
            trap.fired.wait(_BURST_PATIENCE)
        finally:
            self._drainer.set(None)
        if not hit:
            return present(), "no burst came"
        return trap.first_due, f"after {trap.seen_when_fired} of the burst"

    # -- while the lease changes hands ------------------------------------------------------

    def _takeover_replies_lost(self, fault: Fault) -> Done:
        leader = self._leader()
        rest = [beat for beat in self._beats.all if beat is not leader]
        begins = present()
        leader.tell(signal.SIGTERM if fault.share < 0.5 else signal.SIGKILL)
        lost = self._replies_lost(rest, fault.count, silently=fault.silently)
        return Done(begins, lost.allowed, lost.note)

    def _takeover_connections_silent(self, fault: Fault) -> Done:
        """Whoever is elected next falls silent in the moment of its first steps."""
        leader, begins = self._leader(), present()
        leader.tell(signal.SIGTERM)
        deadline = time.monotonic() + 2 * self._lease
        while time.monotonic() < deadline:
            successor = self._holder()
            if successor not in (None, leader):
                successor.proxy.forget()
                break
            time.sleep(0.001)
        return Done(begins, self._lease + _GRACE)

    def _takeover_connections_mute(self, fault: Fault) -> Done:
        """Whoever is elected next asks for one more connection, and gets no answer on it."""
        leader = self._leader()
        rest = [beat for beat in self._beats.all if beat is not leader]
        for beat in rest:
            beat.proxy.mute_next(fault.count)
        begins = present()
        leader.tell(signal.SIGTERM)
        time.sleep(self._about_a_lease(fault))
        for beat in rest:
            beat.proxy.mute_next(0)
        return self._outage(begins)

    def _several_at_once(self, fault: Fault) -> Done:
        begins = present()
        threads = [
            threading.Timer(delay, self.bring_about, args=(part,)) for delay, part in fault.parts
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        for thread in threads:
            thread.join()
        seconds = (present() - begins) / 1e6
        note = " + ".join(part.kind for _, part in fault.parts)
        return Done(begins, seconds + 2 * self._lease + _GRACE, note)

    # -- who is hit and for how long --------------------------------------------------------

    def _longer_than_lease(self, fault: Fault) -> float:
        return self._lease + 0.3 + 1.7 * fault.share

    def _about_a_lease(self, fault: Fault) -> float:
        return 0.1 + (self._lease + 1.5) * fault.share

    def _hit(self, fault: Fault) -> Beat:
        leader = self._leader()
        if fault.on_leader:
            return leader
        followers = [beat for beat in self._beats.all if beat is not leader]
        return followers[fault.count % len(followers)]

    def _leader(self) -> Beat:
        return self._holder() or self._beats.all[0]

    def _holder(self) -> Beat | None:
        node = self._asked("HGET", _RECORD, "holder")
        return self._beats.of_node(node.decode()) if node else None

    def _dispatches(self, since: int) -> bool:
        latest = self._drainer.latest
        if latest is None or latest.at <= since:
            return False
        beat = self._beats.of_pid(latest.pid)
        return beat is not None and beat.settled

    def _all_take_part(self) -> bool:
        if not all(beat.settled for beat in self._beats.all):
            return False
        try:
            there = {node.decode() for node in self._client.zrange(_CANDIDATES, 0, -1)}
        except redis.RedisError:
            return False
        return all(beat.node in there for beat in self._beats.all)

    def _asked(self, *command: Any) -> Any:
        # Several at once may have stopped Redis, for a while.
        deadline = time.monotonic() + _RECOVERY_PATIENCE
        while True:
            try:
                return self._client.execute_command(*command)
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
