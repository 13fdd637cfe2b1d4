"""Leader-only tasks in every message and canvas Celery can make, by two workers of which one leads."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signature
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import AsyncResult, GroupResult, result_from_tuple
from celery.states import READY_STATES

from celery_leader import TaskSkipped
from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet, Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

SERIALIZERS = ["json", "pickle", "yaml"]


@pytest.fixture(scope="module")
def pair(redis_binary_or_skip: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two workers that all tests of this module share and leave as they are."""
    directory = tmp_path_factory.mktemp("pair")
    conf = {**LASTING, "accept_content": SERIALIZERS, "broker_transport_options": PRIORITIES}
    with pytest.MonkeyPatch.context() as patch, RedisServer() as server:
        patch.setenv("C_FORCE_ROOT", "true")  # Celery's condition for accepting pickle as root
        with Fleet(directory, server.url, conf=conf) as fleet:
            fleet.workers("w1", "w2")
            yield fleet


PRIORITIES = {"priority_steps": [0, 3, 6, 9]}


@pytest.fixture
def leader(pair: Fleet) -> Process:
    return pair.leader()


@pytest.fixture
def follower(pair: Fleet) -> Process:
    return pair.followers()[0]


@pytest.fixture
def label(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


Make = Callable[..., Any]


@pytest.fixture
def s(pair: Fleet, label: str) -> Make:
    """Makes a signature of a step of this test."""

    def make(name: str, *args: Any, queue: str | None = None, **kwargs: Any) -> Any:
        made = pair.app.tasks[f"fleet.{name}"].s(*args, label=label, **kwargs)
        return made.set(queue=queue) if queue else made

    make.label = label  # type: ignore[attr-defined]
    make.task = lambda name: pair.app.tasks[f"fleet.{name}"]  # type: ignore[attr-defined]
    return make


def ran(fleet: Fleet, label: str) -> list[dict[str, Any]]:
    return fleet.records("ran", label)


def assert_ran_on(leader: Process, fleet: Fleet, label: str, names: list[str]) -> None:
    """The bodies that ran for ``label``, and that those of leader-only tasks ran on the leader."""
    seen = ran(fleet, label)
    assert sorted(each["task"].removeprefix("fleet.") for each in seen) == sorted(names)
    for each in seen:
        if each["task"] not in ("fleet.step", "fleet.total", "fleet.plain_errback"):
            # Inside a map a body has no request that says where it is.
            assert (os.getpgid(each["pid"]), each["leads"]) == (leader.pid, True), each


# -- one message ------------------------------------------------------------------------

OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "eta": lambda: {"eta": datetime.now(timezone.utc) + timedelta(seconds=0.3)},
    "countdown": lambda: {"countdown": 0.3},
    "expires in": lambda: {"expires": 60},
    "expires at": lambda: {"expires": datetime.now(timezone.utc) + timedelta(minutes=1)},
    "priority": lambda: {"priority": 6},
    "routing key": lambda: {"routing_key": "elsewhere"},
    "exchange and routing key": lambda: {"exchange": "celery", "routing_key": "celery"},
    "stamps": lambda: {"stamped_headers": ["project"], "project": "apollo"},
    "headers": lambda: {"headers": {"mine": 1}},
    "compression": lambda: {"compression": "zlib"},
    "pickle": lambda: {"serializer": "pickle"},
    "yaml": lambda: {"serializer": "yaml"},
}


@pytest.mark.parametrize("given", OPTIONS)
def test_whatever_apply_async_is_given_the_body_runs_once_on_the_leader(
    pair: Fleet, leader: Process, follower: Process, label: str, given: str
) -> None:
    task = pair.app.tasks["fleet.lead_step"]
    routed = task.apply_async((1, label), **OPTIONS[given]())
    options = {"queue": follower.name, **OPTIONS[given]()}
    astray = pair.app.send_task("fleet.lead_step", (2, label), **options)
    unknown = pair.stranger.send_task("fleet.lead_step", (3, label), **options)
    assert [each.get(timeout=30) for each in (routed, astray, unknown)] == [2, 3, 4]
    assert_ran_on(leader, pair, label, ["lead_step"] * 3)


@pytest.mark.parametrize("name", ["lead_step", "based_step", "class_step"])
def test_every_way_of_marking_is_routed_to_the_leader_and_guarded_on_a_follower(
    pair: Fleet, leader: Process, follower: Process, label: str, name: str
) -> None:
    routed = pair.app.tasks[f"fleet.{name}"].delay(1, label)
    astray = pair.send(name, 1, label, queue=follower.name)
    assert (routed.get(timeout=30), astray.get(timeout=30)) == (2, 2)
    assert_ran_on(leader, pair, label, [name, name])
    assert sorted(each["hops"] for each in ran(pair, label)) == [0, 1]


def test_a_message_in_celerys_first_protocol_reaches_the_leader_or_is_skipped(
    pair: Fleet, leader: Process, follower: Process, label: str
) -> None:
    broker = pair.config["broker"]
    old = Celery("old", broker=broker, backend=broker, set_as_current=False)
    old.conf.task_protocol = 1
    sent = old.send_task("fleet.lead_step", (1, label), queue=follower.name)
    assert sent.get(timeout=30) == 2
    skipped = old.send_task("fleet.skip_step", (1, label), queue=follower.name)
    with pytest.raises(TaskSkipped):
        skipped.get(timeout=30)
    assert_ran_on(leader, pair, label, ["lead_step"])
    old.close()


# -- canvases -----------------------------------------------------------------------------


def in_a_chain(s: Make, to: Make) -> Any:
    return chain(s("step", 1), to(s("lead_step")), s("step"))


def in_a_group(s: Make, to: Make) -> Any:
    return group(s("step", 1), to(s("lead_step", 2)), to(s("lead_step", 3)))


def in_a_chord_header(s: Make, to: Make) -> Any:
    return chord([s("step", 1), to(s("lead_step", 2))], s("total"))


def as_a_chord_body(s: Make, to: Make) -> Any:
    return chord([s("step", 1), s("step", 2)], to(s("lead_total")))


def in_a_chord_in_a_chain(s: Make, to: Make) -> Any:
    header = group(to(s("lead_step")), chain(s("step"), to(s("lead_step"))))
    return chain(to(s("lead_step", 1)), header, to(s("lead_total")))


def mapped(s: Make, to: Make) -> Any:
    return to(s.task("lead_step").map([(value, s.label) for value in (1, 2, 3)]))


def starmapped(s: Make, to: Make) -> Any:
    return to(s.task("lead_step").starmap([(value, s.label) for value in (1, 2)]))


def chunked(s: Make, to: Make) -> Any:
    made = s.task("lead_step").chunks([(value, s.label) for value in (1, 2, 3)], 2).group()
    return group([to(part) for part in made.tasks])


def chunks_as_they_are(s: Make, to: Make) -> Any:
    return s.task("lead_step").chunks([(value, s.label) for value in (1, 2, 3)], 2)


def mapped_in_a_chain(s: Make, to: Make) -> Any:
    return chain(
        s("step", 1), to(s.task("lead_step").map([(1, s.label), (2, s.label)])), s("total")
    )


def retried_by_itself(s: Make, to: Make) -> Any:
    return to(s("lead_autoretry"))


def in_place_of_a_leader_only_one(s: Make, to: Make) -> Any:
    return to(s.task("lead_replaced").s(chain(to(s("lead_step", 1)), s("step"))))


def called_by_another(s: Make, to: Make) -> Any:
    return to(s("lead_calls"))


def stamped(s: Make, to: Make) -> Any:
    made = chain(s("step", 1), to(s("lead_step")))
    made.stamp(project="apollo")
    return made


L, P = "lead_step", "step"
CANVASES: list[tuple[Make, Any, list[str]]] = [
    (in_a_chain, 4, [P, L, P]),
    (in_a_group, [2, 3, 4], [P, L, L]),
    (in_a_chord_header, 5, [P, L, "total"]),
    (as_a_chord_body, 5, [P, P, "lead_total"]),
    (in_a_chord_in_a_chain, 7, [L, L, P, L, "lead_total"]),
    (mapped, [2, 3, 4], [L, L, L]),
    (starmapped, [2, 3], [L, L]),
    (chunked, [[2, 3], [4]], [L, L, L]),
    (chunks_as_they_are, [[2, 3], [4]], [L, L, L]),
    (mapped_in_a_chain, 5, [P, L, L, "total"]),
    (retried_by_itself, 1, ["lead_autoretry", "lead_autoretry"]),
    (in_place_of_a_leader_only_one, 3, [L, P]),
    (called_by_another, [2, 3], [L, L]),
    (stamped, 3, [P, L]),
]


@pytest.mark.parametrize("where", ["to the leader", "to a follower"])
@pytest.mark.parametrize(
    ("canvas", "result", "names"), CANVASES, ids=[c.__name__ for c, _, _ in CANVASES]
)
def test_a_canvas_completes_and_its_leader_only_members_run_on_the_leader(
    pair: Fleet,
    leader: Process,
    follower: Process,
    s: Make,
    label: str,
    canvas: Make,
    result: Any,
    names: list[str],
    where: str,
) -> None:
    def to(made: Any) -> Any:
        return made.set(queue=follower.name) if where == "to a follower" else made

    assert canvas(s, to).apply_async().get(timeout=30) == result
    assert_ran_on(leader, pair, label, names)


def test_a_map_that_a_stranger_sends_by_name_is_handed_to_the_leader(
    pair: Fleet, leader: Process, follower: Process, label: str
) -> None:
    for name, items in (("map", [[[1, label]], [[2, label]]]), ("starmap", [[1, label]])):
        items = [item[0] for item in items] if name == "map" else items
        inner = signature("fleet.lead_step")
        for arguments in ({"args": (inner, items)}, {"kwargs": {"task": inner, "it": items}}):
            sent = pair.stranger.send_task(f"celery.{name}", queue=follower.name, **arguments)
            assert sent.get(timeout=30) == ([2, 3] if name == "map" else [2])
    assert_ran_on(leader, pair, label, [L] * 6)


def test_a_map_of_an_ordinary_task_runs_where_it_is_received(
    pair: Fleet, follower: Process, s: Make, label: str
) -> None:
    made = s.task("step").map([(1, label)])
    # Named here, since a map does not read its own options.
    assert made.apply_async(queue=follower.name).get(timeout=30) == [2]
    assert [os.getpgid(seen["pid"]) for seen in ran(pair, label)] == [follower.pid]


def test_leader_only_callbacks_and_errbacks_run_on_the_leader(
    pair: Fleet, leader: Process, follower: Process, s: Make, label: str
) -> None:
    callback = s("lead_step")
    linked = callback.freeze()
    s("step", 1, queue=follower.name).apply_async(link=callback)
    assert linked.get(timeout=30) == 3
    failing = s("plain_fails", queue=follower.name).apply_async(link_error=s("lead_errback"))
    with pytest.raises(ValueError, match="test_leader_only"):
        failing.get(timeout=30)
    wait_until(lambda: len(ran(pair, label)) == 3, what="the errback")
    assert_ran_on(leader, pair, label, ["step", "lead_step", "lead_errback"])
    assert ran(pair, label)[-1]["failed"] == failing.id


def test_a_task_that_a_leader_only_one_replaces_on_a_follower_ends_with_its_result(
    pair: Fleet, leader: Process, follower: Process, s: Make, label: str
) -> None:
    replaced = pair.app.tasks["fleet.replaced"].s(s("lead_step", 1)).set(queue=follower.name)
    assert chain(replaced, s("step")).apply_async().get(timeout=30) == 3
    assert_ran_on(leader, pair, label, ["lead_step", "step"])


def test_a_retry_is_sent_to_the_leader_queue_even_if_the_attempt_came_by_another(
    pair: Fleet, leader: Process, label: str
) -> None:
    sent = pair.send("lead_autoretry", label, queue=leader.name)
    assert sent.get(timeout=30) == 1
    first, second = ran(pair, label)
    assert first["delivery"]["routing_key"] == leader.name
    assert second["delivery"]["routing_key"] == "celery.leader"
    assert second["id"] == first["id"] == sent.id
    assert second["headers"]["leader_only"] == "worker"


# -- handing over ---------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_a_message_that_is_handed_over_arrives_as_it_was_sent(
    pair: Fleet, leader: Process, follower: Process, s: Make, label: str, serializer: str
) -> None:
    moment = datetime.now(timezone.utc)

    def plain(made: Any) -> Any:  # YAML knows no signatures
        return json.loads(json.dumps(made))

    options = {
        "serializer": serializer,
        "compression": "zlib",
        "priority": 6,
        "eta": moment + timedelta(seconds=0.2),
        "expires": moment + timedelta(seconds=60),
        "retries": 2,
        "time_limit": 50,
        "soft_time_limit": 40,
        "shadow": "its.shadow",
        "headers": {"mine": "a header"},
        "stamped_headers": ["project"],
        "project": "apollo",
        "root_id": "the root",
        "parent_id": "the parent",
        "group_id": f"group of {label}",
        "group_index": 7,
        "argsrepr": "args as shown",
        "kwargsrepr": "kwargs as shown",
        "reply_to": "somebody",
        "chain": [plain(s("step"))],
        "link": [plain(s("step"))],
        "link_error": [plain(s("plain_errback"))],
        "chord": plain(s("total").set(task_id=f"body of {label}")),
    }

    def seen_by_the_leader(queue: str) -> dict[str, Any]:
        sent = pair.stranger.send_task(
            "fleet.lead_step", (41,), {"label": label}, queue=queue, **options
        )
        assert sent.get(timeout=30) == 42
        (seen,) = [each for each in ran(pair, label) if each["id"] == sent.id]
        assert seen["node"] == leader.node
        request = seen["request"]
        assert request["correlation_id"] == sent.id
        return dict(request)

    straight = seen_by_the_leader("celery.leader")
    handed = seen_by_the_leader(follower.name)
    assert (straight.get("leader_hops"), handed["leader_hops"]) == (None, 1)
    for request in (straight, handed):
        expected = {
            "args": [41],
            "kwargs": {"label": label},
            "argsrepr": "args as shown",
            "kwargsrepr": "kwargs as shown",
            "compression": "application/x-gzip",
            "eta": options["eta"].isoformat(),
            "expires": options["expires"].isoformat(),
            "retries": 2,
            "timelimit": [50, 40],
            "shadow": "its.shadow",
            "mine": "a header",
            "stamps": {"project": "apollo"},
            "root_id": "the root",
            "parent_id": "the parent",
            "group": f"group of {label}",
            "group_index": 7,
            "reply_to": "somebody",
        }
        assert {key: request.get(key) for key in expected} == expected
        assert request["delivery_info"]["priority"] == 6
        assert request["properties"]["priority"] == 6
        assert 55_000 < int(request["properties"]["expiration"]) <= 60_000
        assert request["chain"][0]["task"] == "fleet.step"
        assert request["callbacks"][0]["task"] == "fleet.step"
        assert request["errbacks"][0]["task"] == "fleet.plain_errback"
        assert request["chord"]["task"] == "fleet.total"
    for request in (straight, handed):
        for own in ("id", "correlation_id", "delivery_tag", "delivery_info", "expiration"):
            request["properties"].pop(own, None)
        for own in ("id", "correlation_id", "delivery_info", "hostname", "leader_hops"):
            request.pop(own, None)
        if request["headers"]:
            request["headers"].pop("leader_hops", None)
    assert handed == straight


def test_each_hand_over_is_one_more_hop(
    pair: Fleet, leader: Process, follower: Process, label: str
) -> None:
    been_around = {"queue": follower.name, "headers": {"leader_hops": 3}}
    seen = pair.send("lead", label, **been_around).get(timeout=30)
    assert (seen["node"], seen["hops"]) == (leader.node, 4)


# -- skipped --------------------------------------------------------------------------------


def wait_for_end(result: Any) -> None:
    wait_until(result.ready, what=f"{result} to be ready")


def leaves(result: Any) -> Iterator[AsyncResult]:
    """Every single result that can be reached from ``result``: members and parents."""
    while result is not None:
        if isinstance(result, GroupResult):
            for member in result.results:
                yield from leaves(member)
        else:
            yield result
        result = result.parent


def alone(s: Make, x: str, to: Make) -> Any:
    return to(s(x, 1))


def first_of_a_chain(s: Make, x: str, to: Make) -> Any:
    return chain(to(s(x, 1)), s("step"), s("step"))


def last_of_a_chain(s: Make, x: str, to: Make) -> Any:
    return chain(s("step", 1), to(s(x)))


def before_a_group(s: Make, x: str, to: Make) -> Any:
    return chain(to(s(x, 1)), group(s("step"), chain(s("step"), s("step"))))


def before_a_chord(s: Make, x: str, to: Make) -> Any:
    return chain(to(s(x, 1)), group(s("step"), s("step")), s("total"), s("step"))


def one_of_a_group(s: Make, x: str, to: Make) -> Any:
    return group(s("step", 1), to(s(x, 2)))


def one_of_a_chord(s: Make, x: str, to: Make) -> Any:
    return chord([s("step", 1), to(s(x, 2))], s("total"))


def all_of_a_chord(s: Make, x: str, to: Make) -> Any:
    return chord([to(s(x, 1)), to(s(x, 2))], s("total"))


def in_a_chain_in_a_chord(s: Make, x: str, to: Make) -> Any:
    return chord([chain(to(s(x, 1)), s("step")), s("step", 2)], s("total"))


def before_a_group_in_a_chord(s: Make, x: str, to: Make) -> Any:
    return chord([chain(to(s(x, 1)), group(s("step"), s("step"))), s("step", 1)], s("total"))


def body_of_a_chord(s: Make, x: str, to: Make) -> Any:
    return chord([s("step", 1), s("step", 2)], to(s(x.replace("step", "total"))))


def body_of_a_chord_in_a_chain(s: Make, x: str, to: Make) -> Any:
    total = to(s(x.replace("step", "total")))
    return chain(group(s("step", 1), s("step", 2)), total, s("step"))


def mapped_and_skipped(s: Make, x: str, to: Make) -> Any:
    return to(s.task(x).map([(1, s.label)]))


#: A canvas with a task that is skipped, and what its result ends with.
SKIPS: list[tuple[Make, type[Exception] | None]] = [
    (alone, TaskSkipped),
    (first_of_a_chain, TaskSkipped),
    (last_of_a_chain, TaskSkipped),
    (before_a_group, TaskSkipped),
    (before_a_chord, TaskSkipped),
    (one_of_a_group, TaskSkipped),
    (one_of_a_chord, ChordError),
    (all_of_a_chord, ChordError),
    (in_a_chain_in_a_chord, ChordError),
    (before_a_group_in_a_chord, ChordError),
    (body_of_a_chord, TaskSkipped),
    (body_of_a_chord_in_a_chain, TaskSkipped),
    (mapped_and_skipped, TaskSkipped),
]


@pytest.mark.parametrize("name", ["skip_step", "own_step"])
@pytest.mark.parametrize(("canvas", "error"), SKIPS, ids=[c.__name__ for c, _ in SKIPS])
def test_a_skipped_task_ends_and_nothing_waits_for_it(
    pair: Fleet,
    leader: Process,
    follower: Process,
    s: Make,
    label: str,
    canvas: Make,
    error: type[Exception],
    name: str,
) -> None:
    def to_the_follower(made: Any) -> Any:
        return made.set(queue=follower.name)

    def on_the_follower(step: str, *args: Any) -> Any:
        return s(step, *args) if step.startswith("own") else to_the_follower(s(step, *args))

    on_the_follower.label, on_the_follower.task = s.label, s.task  # type: ignore[attr-defined]
    if name == "skip_step":
        # Celery before 5.6 does not look at the options of a map's signature.
        options = {"queue": follower.name} if canvas is mapped_and_skipped else {}
        result = canvas(s, name, to_the_follower).apply_async(**options)
    else:  # what would send it is the follower, in every place
        made = pair.app.tasks["fleet.apply"].s(canvas(on_the_follower, name, lambda made: made))
        sent = to_the_follower(made).apply_async().get(timeout=30)
        result = result_from_tuple(sent, app=pair.app)
    for each in leaves(result):
        wait_for_end(each)
    with pytest.raises(TaskSkipped, match=f"{follower.node} does not lead 'worker'"):
        result.get(timeout=30)  # also from the header of a chord
    if isinstance(result, AsyncResult):
        with pytest.raises(error, match="does not lead 'worker'"):
            pair.app.AsyncResult(result.id).get(timeout=30)
    assert not [seen for seen in ran(pair, label) if seen["task"] == f"fleet.{name}"]


def test_a_skipped_member_of_a_chord_has_the_errback_of_its_body_called(
    pair: Fleet, leader: Process, follower: Process, s: Make, label: str
) -> None:
    skipped = s("skip_step", 2, queue=follower.name)
    body = s("total").on_error(s("lead_errback"))
    result = chord([s("step", 1), skipped], body).apply_async()
    wait_until(lambda: len(ran(pair, label)) == 2, what="the errback")
    assert_ran_on(leader, pair, label, ["step", "lead_errback"])
    assert ran(pair, label)[-1]["failed"] == result.id


def test_a_skipped_member_of_a_chord_that_ignores_its_result_does_not_leave_it_waiting(
    pair: Fleet, leader: Process, follower: Process, s: Make
) -> None:
    skipped = s("skip_silent_step", 2, queue=follower.name)
    with pytest.raises(ChordError, match="does not lead 'worker'"):
        chord([s("step", 1), skipped], s("total")).apply_async().get(timeout=30)


def test_a_skipped_task_that_ignores_its_result_still_ends_its_chain(
    pair: Fleet, leader: Process, follower: Process, s: Make, label: str
) -> None:
    first = s("skip_silent_step", 1, queue=follower.name)
    with pytest.raises(TaskSkipped):
        chain(first, s("step")).apply_async().get(timeout=30)
    alone = s("skip_silent_step", 1, queue=follower.name).apply_async()
    follower.says(f"fleet.skip_silent_step[{alone.id}] skipped, not leading")
    assert alone.state == "PENDING"
    assert ran(pair, label) == []


def test_what_is_linked_to_a_skipped_task_ends_and_its_errback_is_not_called(
    pair: Fleet, leader: Process, follower: Process, s: Make, label: str
) -> None:
    callback = s("step")
    linked = callback.freeze()
    skipped = s("skip_step", 1, queue=follower.name).apply_async(
        link=callback, link_error=s("plain_errback")
    )
    for each in (skipped, linked):
        with pytest.raises(TaskSkipped):
            each.get(timeout=30)
    assert s("step", 1, queue=follower.name).apply_async().get(timeout=30) == 2
    assert [seen["task"] for seen in ran(pair, label)] == ["fleet.step"]


def test_clients_without_the_package_and_event_monitors_know_a_skipped_task(
    pair: Fleet, leader: Process, follower: Process, label: str
) -> None:
    events: list[Any] = []
    with pair.app.connection_for_read() as connection:
        monitor = pair.app.events.Receiver(connection, handlers={"task-revoked": events.append})
        with monitor.consumer_context() as (consuming, _, _):
            with contextlib.suppress(TimeoutError):
                consuming.drain_events(timeout=0.1)  # which subscribes
            pair.app.control.enable_events(reply=True, timeout=10, limit=2)
            skipped = pair.stranger.send_task("fleet.skip_step", (1, label), queue=follower.name)
            with pytest.raises(Exception, match="does not lead") as caught:
                skipped.get(timeout=30)
            assert skipped.status in READY_STATES
            while not events:
                consuming.drain_events(timeout=30)
    pair.app.control.disable_events()
    assert caught.type.__name__ == "TaskSkipped"
    (event,) = events
    assert (event["uuid"], event["hostname"]) == (skipped.id, follower.node)


# -- revoked, expired, and called -----------------------------------------------------------


def test_a_revoked_leader_only_task_does_not_run_wherever_it_was_sent(
    pair: Fleet, leader: Process, follower: Process, label: str
) -> None:
    for number, queue in enumerate((leader.name, follower.name, "celery.leader")):
        revoked = f"{label}-{number}"
        replies = pair.app.control.revoke(revoked, reply=True, timeout=10, limit=2)
        assert len(replies) == 2
        sent = pair.stranger.send_task("fleet.lead_step", (1, label), queue=queue, task_id=revoked)
        with pytest.raises(TaskRevokedError, match="revoked"):
            sent.get(timeout=30)
    assert ran(pair, label) == []


def test_a_leader_only_task_that_expires_while_it_waits_for_the_leader_does_not_run(
    pair: Fleet, leader: Process, follower: Process, label: str
) -> None:
    pair.app.tasks["fleet.hold"].delay(label)
    pair.saw("started", label)
    sent = pair.stranger.send_task("fleet.lead_step", (1, label), queue=follower.name, expires=1)
    until = time.time() + 1.1
    leader.says(f"[{sent.id}] received")
    wait_until(lambda: time.time() > until, what="the task to expire")
    pair.open(label)
    with pytest.raises(TaskRevokedError, match="expired"):
        sent.get(timeout=30)
    assert ran(pair, label) == []


def test_what_a_worker_held_when_it_lost_the_lead_runs_on_the_next_leader(
    new_fleet: NewFleet,
) -> None:
    """Also a task that a follower skips: this worker was no follower when it received it."""
    fleet = new_fleet()
    fleet.workers("w1", "w2", pool="solo")
    leader = fleet.leader()
    (follower,) = fleet.followers()
    fleet.takes_part(follower)
    eta = {"eta": datetime.now(timezone.utc) + timedelta(seconds=3)}
    tasks = fleet.app.tasks
    mapped = tasks["fleet.lead_step"].map([(1, "held"), (2, "held")]).apply_async(**eta)
    skippable = chain(tasks["fleet.skip_step"].s(1, "held"), tasks["fleet.lead_step"].s("held"))
    chained = skippable.apply_async(**eta)
    leader.says(f"celery.map[{mapped.id}] received")
    leader.says("fleet.skip_step[")
    leader.freeze()
    fleet.leader(other_than=leader)
    leader.thaw()
    assert mapped.get(timeout=30) == [2, 3]
    assert chained.get(timeout=30) == 3
    assert {os.getpgid(seen["pid"]) for seen in ran(fleet, "held")} == {follower.pid}
    assert len(ran(fleet, "held")) == 4
