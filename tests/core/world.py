"""Candidates over one ``FakeStore``, driven by hand on a clock that tests set."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterable

from celery_leader.core.election import Election, Wait
from celery_leader.core.events import Change, Deposed, Elected
from celery_leader.core.lease import Announcement, Reply, Request, cursor_order
from celery_leader.core.requester import Requester
from celery_leader.core.timing import Timing
from celery_leader.errors import StoreUnavailable
from tests.support.fake_store import FakeStore

NAME = "beat"
LEASE = Timing()


class World:
    """One store, one clock for everybody, and any number of nodes."""

    def __init__(self) -> None:
        self.now = 5_000.0
        self.server_ahead = 1_700_000_000.0
        self.store = FakeStore(lambda: self.now + self.server_ahead)
        self.nodes: list[Node] = []
        self.lives = itertools.count(1)

    def node(self, name: str, timing: Timing = LEASE, *, seed: int = 0, priority: int = 0) -> Node:
        """A candidate that campaigns from now on."""
        node = Node(self, name, timing, seed, priority)
        self.nodes.append(node)
        node.election.campaign(self.now)
        return node

    def leader(self, name: str, timing: Timing = LEASE) -> Node:
        """A candidate that has just been elected."""
        node = self.node(name, timing)
        node.settle()
        assert node.leads, f"{name} was to lead, and {node.election.observed.leader.holder} leads"
        return node

    def follower(self, name: str, timing: Timing = LEASE, *, priority: int = 0) -> Node:
        """A candidate that has asked and been refused."""
        node = self.node(name, timing, priority=priority)
        node.settle()
        assert not node.leads
        return node

    def pass_time(self, seconds: float) -> None:
        """Nobody does anything for ``seconds``."""
        self.now += seconds

    def run(self, seconds: float, nodes: Iterable[Node] | None = None) -> None:
        """``nodes`` (by default all) do what is due and hear what is said, for ``seconds``."""
        nodes = list(self.nodes if nodes is None else nodes)
        end = self.now + seconds
        while True:
            for node in nodes:
                node.hear()
                node.settle()
            assert len(self.leaders()) <= 1, self.leaders()
            if any(node.news() for node in nodes):
                continue
            wakes = [node.wakes_at for node in nodes]
            soonest = min((wake for wake in wakes if wake is not None), default=end)
            if soonest >= end:
                self.now = end
                return
            self.now = max(self.now, soonest)

    def run_until_elected(self, nodes: Iterable[Node] | None = None) -> tuple[Node, float]:
        """Run until somebody leads; who, and how many seconds it took."""
        nodes = list(self.nodes if nodes is None else nodes)
        started = self.now
        while not any(node.leads for node in nodes):
            assert self.now - started < 10 * LEASE.lease_duration, "nobody was elected"
            self.run(0.05, nodes)
        return next(node for node in nodes if node.leads), self.now - started

    def leaders(self) -> list[Node]:
        """Who leads at this moment."""
        return [node for node in self.nodes if node.leads]


class Node:
    """One candidate, its requests and what came of them."""

    def __init__(
        self, world: World, name: str, timing: Timing, seed: int, priority: int = 0
    ) -> None:
        self.world = world
        self.name = name
        self.timing = timing
        self.seed = seed
        self.priority = priority
        self.changes: list[Change] = []
        self.requests: list[Request] = []
        self.election = self._new_life()

    def _new_life(self) -> Election:
        return Election(
            Requester(
                NAME,
                holder=self.name,
                nonce=f"life {next(self.world.lives)}",
                timing=self.timing,
                app="proj|1",
                priority=self.priority,
                preempt=True,
                info="{}",
            ),
            chance=random.Random(self.seed),
        )

    def __repr__(self) -> str:
        return f"<{self.name}: term {self.term}>"

    @property
    def term(self) -> int | None:
        return self.election.term(self.world.now)

    @property
    def leads(self) -> bool:
        return self.term is not None

    @property
    def wakes_at(self) -> float | None:
        """When it has something to do next."""
        action = self.election.next_action(self.world.now)
        self._take_changes()
        return action.until if isinstance(action, Wait) else self.world.now

    @property
    def terms(self) -> list[int]:
        """Every term it was elected with."""
        return [change.term for change in self.changes if isinstance(change, Elected)]

    @property
    def depositions(self) -> list[str]:
        """Why it stopped leading, each time."""
        return [change.reason for change in self.changes if isinstance(change, Deposed)]

    def restart(self) -> None:
        """A crash, and a new process under the same node name."""
        self.election = self._new_life()
        self.election.campaign(self.world.now)

    def copied(self) -> Node:
        """A second process that is in all what this one is, as of a cloned virtual machine."""
        node = Node(self.world, self.name, self.timing, self.seed, self.priority)
        node.election = copy.deepcopy(self.election)
        self.world.nodes.append(node)
        return node

    def resign(self, successor: str | None = None) -> None:
        self.election.resign(self.world.now, successor)
        self._take_changes()

    def step_down(self, successor: str | None = None) -> None:
        self.election.step_down(self.world.now, successor)
        self._take_changes()

    def hear(self) -> None:
        """Take in the announcements, as the runner does for who does not lead."""
        for line in self.news():
            if cursor_order(line.cursor) > cursor_order(self.election.observed.cursor):
                self.election.heard(line, self.world.now)

    def news(self) -> list[Announcement]:
        """What it has not heard yet, and listens for."""
        if self.election.step_down_requested or not self.election.campaigning:
            return []
        return self.world.store.news({NAME: self.election.observed.cursor})

    def turn(self, *, there: float = 0.0, back: float = 0.0) -> Reply | None:
        """Send what is due; it takes ``there`` seconds to arrive and ``back`` to be answered.

        Returns the reply, or ``None`` when nothing was due or nobody answered.
        """
        action = self.election.next_action(self.world.now)
        self._take_changes()
        if isinstance(action, Wait):
            return None
        return self.send(action, there=there, back=back)

    def send(self, request: Request, *, there: float = 0.0, back: float = 0.0) -> Reply | None:
        """Send ``request`` as ``turn`` does."""
        self.requests.append(request)
        sent_at = self.world.now
        self.world.now += there
        try:
            reply = self.world.store.perform([request])[0]
        except StoreUnavailable:
            self.world.now += max(0.0, self.timing.operation_timeout - there)
            self.election.unanswered(request, self.world.now)
            self._take_changes()
            return None
        assert not isinstance(reply, StoreUnavailable)
        self.world.now += back
        self.election.replied(request, reply, sent_at=sent_at, now=self.world.now)
        self._take_changes()
        return reply

    def settle(self) -> None:
        """Do everything that is due at this moment."""
        for _ in range(20):
            action = self.election.next_action(self.world.now)
            self._take_changes()
            if isinstance(action, Wait):
                return
            self.send(action)
        raise AssertionError(f"{self.name} does not come to rest")

    def _take_changes(self) -> None:
        self.changes += self.election.take_changes()
