"""A dispatch whose connection is cut before and after every command that it consists of.

The beat is real, so is its Redis, and a proxy between them counts commands. The task has an
``apply_async`` of its own, which takes a lock and lets it go when the publish fails, as those
of celery-singleton and celery-once do: a lock that is held must have a message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import Task
from celery.beat import Scheduler

from celery_leader.beat import LeaderMixin, LeaderScheduler
from tests.support.counting_proxy import Command, CountingProxy, Cut, Which
from tests.support.local_beat import Bench, LocalBeat
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

EVERY = 10
#: One cut, as often as it can be; and so many in a row that a second try at once fails too.
CASES = [(cut, 1) for cut in Cut] + [(Cut.BEFORE, 3), (Cut.AFTER, 3)]


class OwnScheduler(LeaderMixin, Scheduler):
    """Any scheduler there is, made to take part."""


class Locking(Task):
    """Sends nothing while a message of it is out, like celery-singleton's."""

    abstract = True
    holders: list[str]

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        if self.holders:
            return None
        self.holders.append(options["task_id"])
        try:
            return super().apply_async(args, kwargs, **options)
        except Exception:
            self.holders.clear()
            raise


class Scene:
    """One beat behind a proxy, and the message that it is to send."""

    def __init__(self, bench: Bench, beat: LocalBeat, proxy: CountingProxy, task: Any) -> None:
        self.bench = bench
        self.beat = beat
        self.proxy = proxy
        self.holders: list[str] = task.holders
        self.mine = self._all_but_the_election()

    def _all_but_the_election(self) -> Which:
        def waits() -> set[int]:
            return {c.connection for c in self.proxy.commands if c.name == "XREAD"}

        elections = wait_until(waits, what="the election to wait for news")
        return lambda command: command.connection not in elections

    def dispatch(self, arm: Callable[[], object] = lambda: None) -> None:
        """Have one tick fall due, with every connection made anew, and send it."""
        self.forget_connections()
        arm()
        before = len(self.bench.messages())
        self.bench.clock.advance(EVERY)

        def sent() -> bool:
            self.beat.settle()
            return len(self.bench.messages()) > before

        wait_until(sent, what="the tick to be sent")

    def forget_connections(self) -> None:
        """Have the next dispatch connect, declare its queue and teach Redis its scripts anew."""
        dispatcher = self.beat.scheduler._dispatcher
        dispatcher.producer().channel.state.clear()
        dispatcher.close()
        self.bench.redis.script_flush()

    def run(self) -> None:
        """Be the worker that runs what was sent, which lets go of the lock."""
        self.holders.clear()


def nothing() -> None:
    """The task; nobody runs it here."""


def scheduler_of(kind: str) -> Any:
    return OwnScheduler if kind == "of one's own" else LeaderScheduler


@pytest.fixture(params=["leader", "of one's own", "claimed first"])
def scene(
    request: pytest.FixtureRequest, bench: Bench, redis_server: RedisServer
) -> Iterator[Scene]:
    with CountingProxy(redis_server.port) as proxy:
        conf: dict[str, Any] = {"leader_lease_duration": 5.0}
        if request.param == "claimed first":
            conf["leader_url"] = f"redis://127.0.0.1:{proxy.port}/1"
        schedule = {"tick": {"schedule": timedelta(seconds=EVERY)}}
        app = bench.app(schedule, broker=proxy.url, **conf)
        base = type("Held", (Locking,), {"abstract": True, "holders": []})
        task = app.task(base=base, name="bench.tick", shared=False)(nothing)
        beat = bench.started(app, scheduler_of(request.param)).lead()
        beat.settle()
        yield Scene(bench, beat, proxy, task)
        bench.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("cut", "times"), CASES, ids=[f"{cut.value}, {times} times" for cut, times in CASES]
)
def test_whatever_command_is_cut_its_tick_is_sent_once_and_no_lock_is_left(
    scene: Scene, cut: Cut, times: int
) -> None:
    scene.dispatch(lambda: scene.proxy.forget_commands(scene.mine))
    commands = scene.proxy.commands
    scene.run()
    assert any(is_script(command) for command in commands), commands
    for nth, command in enumerate(commands, start=1):
        scene.dispatch(lambda nth=nth: scene.proxy.cut(cut, nth, of=scene.mine, times=times))
        scene.proxy.spare()
        newest = scene.bench.messages()[-1]["headers"]
        assert scene.proxy.cuts >= 1, f"there was no command {nth}, like {command}"
        assert scene.holders in ([], [newest["id"]]), f"{cut.value}: {command}"
        assert_sent_once(scene)
        scene.run()
    # It goes on: no lock is left without a message.
    scene.dispatch()
    assert scene.holders == [scene.bench.messages()[-1]["headers"]["id"]]


def is_script(command: Command) -> bool:
    return command.name in ("EVAL", "EVALSHA")


def assert_sent_once(scene: Scene) -> None:
    """Each tick has one message; or, where it cannot travel with its claim, one task id."""
    sent = [(m["headers"]["leader_tick"], m["headers"]["id"]) for m in scene.bench.messages()]
    if scene.beat.scheduler._dispatcher.fences_messages:
        assert max(Counter(tick for tick, _ in sent).values()) == 1, sent
    assert len({tick for tick, _ in sent}) == len({id_ for _, id_ in sent}), sent
