"""Each command about a leader queue is cut once, or its worker killed at it; two workers lead.

A course of tasks runs again and again, and each time the next command is the one: Redis never
hears of it, or executes it and the worker never knows. A look at Redis tells all the while that
no message is in two places. Afterwards each task has run, and nothing is left.
"""

from __future__ import annotations

import itertools
import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone

import pytest
import redis

from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.store.client import Script
from celery_leader.store.in_flight import FETCH, GIVE_BACK, SETTLE
from tests.support.counting_proxy import CountingProxy, Cut, Which, runs
from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet, Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

LISTS = ["celery.leader", *(f"celery.leader\x06\x16{step}" for step in (3, 6, 9))]
RESETS = (Cut.BEFORE, Cut.AFTER)
#: The worker is left waiting, and killed then.
SILENCES = (Cut.MUTE_BEFORE, Cut.MUTE_AFTER)

#: Of one moment: the messages that wait, those that kombu takes for unacknowledged, their tags,
#: and the tags of those in flight.
_PICTURE = """
local waiting, unacked, tags = {}, {}, {}
for i = 3, #KEYS do
  for _, text in ipairs(redis.call('LRANGE', KEYS[i], 0, -1)) do waiting[#waiting + 1] = text end
end
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  tags[#tags + 1], unacked[#unacked + 1] = flat[i], flat[i + 1]
end
return {waiting, unacked, tags, redis.call('HKEYS', KEYS[2])}
"""


def any_of(*scripts: Script) -> Which:
    """Commands that run one of ``scripts``."""
    each = [runs(str(s.by_sha([], [])[1]), str(s.by_text([], [])[1])) for s in scripts]
    return lambda command: any(which(command) for which in each)


OF_MESSAGES = any_of(FETCH, SETTLE, GIVE_BACK)


class Places:
    """Where each message of the leader queue is, looked at all the while.

    Attributes:
        looks: how often that was.
        faults: what was seen that must not be.
    """

    def __init__(self, url: str, in_flight: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._look = self._client.register_script(_PICTURE)
        self._keys = ["unacked", in_flight, *LISTS]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="places", daemon=True)
        self.looks = 0
        self.faults: list[str] = []

    def ids(self) -> Counter[str]:
        """The ids of all tasks that wait or are in flight, at one moment."""
        waiting, unacked, tags, in_flight = self._look(keys=self._keys)
        messages = [json.loads(text) for text in waiting]
        messages += [json.loads(text)[0] for text in unacked]
        ids = Counter(str(message["headers"]["id"]) for message in messages)
        for each, count in ids.items():
            if count > 1:
                self.faults.append(f"{each} is in {count} places")
        if set(tags) != set(in_flight):
            self.faults.append(f"unacknowledged are {tags}, in flight {in_flight}")
        return ids

    def _watch(self) -> None:
        while not self._over.wait(0.001):
            self.ids()
            self.looks += 1

    def __enter__(self) -> Places:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        self._client.close()


class Armed:
    """Cuts that are to come."""

    def __init__(self, proxy: CountingProxy, times: int) -> None:
        self._proxy = proxy
        self._times = times

    @property
    def struck(self) -> bool:
        return self._proxy.cuts > 0

    def spare(self) -> bool:
        """Whether a cut was begun, and is done now; make no more of them."""
        begun = self._times - self._proxy.spare()
        # An idle fetch may wait for its answer for a moment.
        wait_until(lambda: self._proxy.cuts == begun, what="the cut")
        return begun > 0

    def pass_on(self) -> None:
        """Have Redis execute what the worker said before it was killed."""
        self._proxy.spare()
        with redis.Redis.from_url(self._proxy.url) as client:
            client.ping()


class Pair:
    """Two workers, each behind a proxy of its own.

    Attributes:
        early: the ids of the course's tasks that are acknowledged early.
        late: those that are acknowledged late.
    """

    def __init__(
        self, fleet: Fleet, pool: str, proxies: Mapping[str, CountingProxy], url: str
    ) -> None:
        self.fleet = fleet
        self.pool = pool
        self.places = Places(url, fleet.key("in-flight", "worker"))
        self._proxies = proxies
        self._url = url
        self.early: list[str] = []
        self.late: list[str] = []
        for name in proxies:
            self.start(name)

    def start(self, name: str) -> None:
        """Start the worker ``name``, and wait until it is a candidate."""
        proxy = self._proxies[name]
        over = {"broker": proxy.url, "backend": self._url, "record": self._url}
        worker = self.fleet.worker(name, "-P", self.pool, **over)
        self.fleet.takes_part(worker.says(" ready."))

    def leader(self) -> Process:
        """The one that leads and consumes, and not another life of its node that did."""

        def consuming() -> Process | None:
            leader = self.fleet.leader()
            begun, ended = map(leader.log.count, ("worker: consuming", "worker: no longer"))
            return leader if begun > ended else None

        leader = wait_until(consuming, what="a leader that consumes")
        assert leader is not None
        return leader

    def other(self) -> Process:
        (other,) = self.fleet.followers()
        return other

    def send(self, label: str) -> None:
        """Send the tasks of the course."""
        lead, late = (self.fleet.app.tasks[f"fleet.{name}"] for name in ("lead", "lead_late"))
        soon = datetime.now(timezone.utc) + timedelta(seconds=0.3)
        self.early = [lead.delay(label).id, lead.apply_async((label,), priority=9).id]
        self.late = [late.delay(label).id, late.apply_async((label,), eta=soon).id]
        self.early.append(lead.delay(label).id)

    @property
    def ids(self) -> set[str]:
        return {*self.early, *self.late}

    def ran(self, label: str, node: str | None = None) -> Counter[str]:
        """How often each task of the course has run; on ``node`` if that is named."""
        return Counter(
            each["id"] for each in self.fleet.records("ran", label) if node in (None, each["node"])
        )

    def over(self, label: str) -> bool:
        """Whether all have run, and nothing waits or is in flight."""
        return not self.places.ids() and set(self.ran(label)) == self.ids

    def hold(self, label: str) -> None:
        """Have the leader run a body, and then send the course: the leader fetches what it may."""
        self.fleet.app.tasks["fleet.hold_late"].delay(label)
        self.fleet.saw("started", label)
        self.send(label)
        in_flight = self.fleet.key("in-flight", "worker")
        wait_until(lambda: self.fleet.redis.hlen(in_flight) >= 4, what="a full prefetch")

    def let_go(self, label: str) -> None:
        """Have that body end, and each that is begun again."""
        for _ in range(3):
            self.fleet.open(label)

    def gives_way(self, leader: Process, other: Process, meanwhile: Callable[[], None]) -> None:
        """Have ``leader`` pass its lease on to ``other``."""
        orders = runtime_of(self.fleet.app).orders
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(orders.hand_over, "worker", other.node, timeout=30)
            wait_until(lambda: self.fleet.record().get("asked"), what="the order")
            meanwhile()
            done.result()
        assert self.fleet.leader() is other

    def arm(
        self, worker: Process, cut: Cut, nth: int, *, of: Which = OF_MESSAGES, times: int = 1
    ) -> Armed:
        """Have the ``nth`` command be cut that ``worker`` sends about messages."""
        proxy = self._proxies[worker.name]
        proxy.cut(cut, nth, of=of, times=times)
        return Armed(proxy, times)

    def ends(self, label: str) -> None:
        """Wait until all of the course has run, and nothing waits or is in flight."""
        wait_until(lambda: self.over(label), what=f"the end of the course: {label}")
        client = self.fleet.redis
        wait_until(
            lambda: (
                not any(
                    client.exists(key)
                    for key in (*LISTS, "unacked", self.fleet.key("in-flight", "worker"))
                )
            ),
            what="everything to be settled",
        )
        assert client.zcard("unacked_index") == 0
        assert not client.exists(self.fleet.key("unreadable", "worker"))


@pytest.fixture
def pool() -> str:
    return "prefork"


@pytest.fixture
def pair(
    new_fleet: NewFleet, pool: str, redis_server: RedisServer, redis_url: str
) -> Iterator[Pair]:
    with ExitStack() as stack:
        names = ("w1", "w2")
        proxies = {n: stack.enter_context(CountingProxy(redis_server.port)) for n in names}
        pair = Pair(new_fleet(), pool, proxies, redis_url)
        with pair.places as places:
            yield pair
        assert places.faults == []
        assert places.looks > 100


def until_none_is_left(act: Callable[[int], bool]) -> int:
    """``act`` for the first command, the second, …, until it says that there was none."""
    return next(nth for nth in itertools.count(1) if not act(nth)) - 1


# Celery drops what a process of a prefork pool was given and has not accepted yet: so one task more.
@pytest.mark.parametrize(
    ("pool", "times", "doubled"), [("threads", 1, 0), ("threads", 2, 0), ("prefork", 1, 1)]
)
@pytest.mark.parametrize("cut", RESETS)
def test_whatever_command_is_cut_each_task_runs_and_runs_once(
    pair: Pair, cut: Cut, times: int, doubled: int
) -> None:
    def cut_at(nth: int) -> bool:
        label = f"{cut.value}, command {nth}"
        armed = pair.arm(pair.leader(), cut, nth, times=times)
        pair.send(label)
        pair.ends(label)
        again = pair.ran(label) - Counter(pair.ids)
        assert again.total() <= doubled, label
        return armed.spare()

    assert until_none_is_left(cut_at) >= 4  # a command may settle several


@pytest.mark.parametrize("silence", SILENCES)
def test_at_whatever_command_a_leader_is_killed_the_next_runs_what_was_not_done(
    pair: Pair, silence: Cut
) -> None:
    def kill_at(nth: int) -> bool:
        label = f"{silence.value}, command {nth}"
        leader = pair.leader()
        armed = pair.arm(leader, silence, nth)
        pair.send(label)
        wait_until(lambda: armed.struck or pair.over(label), what=f"the course: {label}")
        if not armed.spare():
            return False

        def started() -> set[str]:
            return pair.ids - set(pair.places.ids())

        # With early acknowledgement a body that runs at a kill is gone, so none does.
        wait_until(lambda: set(pair.ran(label)) >= started(), what="the running body to end")
        leader.kill()
        armed.pass_on()
        done, before = started(), pair.ran(label)
        assert max(before.values(), default=1) == 1, label
        pair.ends(label)
        assert pair.ran(label) - before == Counter(pair.ids - done), label
        pair.start(leader.name)
        return True

    assert until_none_is_left(kill_at) >= 4


@pytest.mark.parametrize("cut", RESETS)
def test_whatever_is_cut_while_the_next_leader_takes_over_each_task_runs(
    pair: Pair, cut: Cut
) -> None:
    def cut_at(nth: int) -> bool:
        label = f"taken over, {cut.value}, command {nth}"
        leader, other = pair.leader(), pair.other()
        pair.hold(label)
        armed = pair.arm(other, cut, nth, of=any_of(FETCH, GIVE_BACK))
        leader.kill()
        pair.let_go(label)
        pair.ends(label)
        assert (pair.ran(label) - Counter(pair.ids)).total() <= 1, label
        pair.start(leader.name)
        return armed.spare()

    assert until_none_is_left(cut_at) >= 3


@pytest.mark.parametrize("cut", RESETS)
@pytest.mark.parametrize("how", ["steps down", "shuts down"])
def test_whatever_is_cut_while_a_leader_gives_way_each_task_runs(
    pair: Pair, cut: Cut, how: str
) -> None:
    def cut_at(nth: int) -> bool:
        label = f"{how}, {cut.value}, command {nth}"
        leader, other = pair.leader(), pair.other()
        pair.hold(label)
        armed = pair.arm(leader, cut, nth)
        if how == "steps down":
            pair.gives_way(leader, other, lambda: pair.let_go(label))
        else:
            leader.tell(signal.SIGTERM)
            leader.says("no longer consuming from celery.leader")
            pair.let_go(label)
            leader.wait()
        pair.ends(label)
        assert (pair.ran(label) - Counter(pair.ids)).total() <= 1, label
        if not leader.alive:
            pair.start(leader.name)
        return armed.spare()

    assert until_none_is_left(cut_at) >= 2
