"""Gives back the messages whose body has not begun, when the worker shuts down or steps down.

A message that came from its leader queue goes back to the front of that queue, in order. A
message that came by another queue is handed over. A message that cannot be given back stays
unacknowledged, and the broker gives it to another worker later.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from celery_leader.compat.celery_worker import active_requests, is_in_pool
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.log import get_logger
from celery_leader.tasks.marks import LeaderOnly, options_for
from celery_leader.tasks.routing import leader_queue

from .front_of_queue import STEP, put_in_front
from .handing_over import key_of, publish_again
from .leader_channel import is_fetched
from .message_guard import LeaderOnlyRequest
from .state import WorkerState

logger = get_logger(__name__)

_PAUSE = 1.0  # seconds until Redis is asked again


def running_requests(state: WorkerState) -> list[Any]:
    """The requests, leader-only or not, whose bodies run here or may begin to."""
    # ``list`` copies in one step, while the main thread goes on. The waiting requests come first:
    # in the other order, a request that becomes active in between would be in neither copy.
    pooled = [request for request in list(state.waiting.values()) if is_in_pool(request)]
    return [*pooled, *_active_requests()]


def active_requests_of(election: str) -> list[tuple[Any, LeaderOnly]]:
    """The requests of ``election`` whose bodies run here, with their options."""
    bound = [(each, options_for(each.task, each.args, each.kwargs)) for each in _active_requests()]
    return [(each, options) for each, options in bound if options and options.election == election]


def _active_requests() -> list[Any]:
    found = [reference() for reference in list(active_requests.data)]
    return [request for request in found if request is not None]


def running_bodies(state: WorkerState) -> dict[str, list[LeaderOnly]]:
    """The options of the leader-only bodies that run here or may begin to, by election."""
    bodies: dict[str, list[LeaderOnly]] = {}
    for request in running_requests(state):
        options = options_for(request.task, request.args, request.kwargs)
        if options is not None:
            bodies.setdefault(options.election, []).append(options)
    return bodies


def running_tags(state: WorkerState) -> set[str]:
    """The delivery tags of the fetched messages whose bodies run here or may begin to."""
    messages = [request.message for request in running_requests(state)]
    return {message.delivery_tag for message in messages if is_fetched(message)}


def give_back_next(state: WorkerState, elections: Collection[str]) -> None:
    """Give back the messages that are next in the leader queues of ``elections``.

    They must be in their queues again before another worker leads. A message with an ETA has no
    place in that order.
    """
    for election in elections:
        give_back_fetched(state, election)
    waiting = _popped(state, elections)
    _put_in_front([each for each in waiting if _came_from_its_queue(each) and not each.eta])


def give_back_fetched(state: WorkerState, election: str) -> None:
    """Give back the fetched messages of ``election`` whose bodies do not run."""
    fetcher = state.fetchers.get(election)
    if fetcher is None:
        return
    waiting = [each for each in _waiting(state, [election]) if is_fetched(each.message)]
    try:
        fetcher.give_back_but_running()
    except (RedisError, OSError) as exc:
        logger.warning("%s: fetched messages cannot be given back yet: %s", election, exc)
        state.consumer.timer.call_after(_PAUSE, partial(_give_back_again, state, election))
    # They may be in the queue even if the answer was lost, so they must not run here.
    for request in waiting:
        request.was_given_back()


def _give_back_again(state: WorkerState, election: str) -> None:
    # The next fetch of a worker that leads again begins with that.
    if not state.fetchers[election].fetches:
        give_back_fetched(state, election)


def give_back_all(state: WorkerState, elections: Collection[str]) -> None:
    """Give back all waiting messages of ``elections``, the next ones first."""
    give_back_next(state, elections)
    waiting = _popped(state, elections)
    _put_in_front([each for each in waiting if _came_from_its_queue(each)])
    _hand_over([each for each in waiting if not _came_from_its_queue(each)])


def _waiting(state: WorkerState, elections: Collection[str]) -> list[LeaderOnlyRequest]:
    return [
        request
        for request in list(state.waiting.values())
        if not is_in_pool(request) and request.election in elections
    ]


def _popped(state: WorkerState, elections: Collection[str]) -> list[LeaderOnlyRequest]:
    """The waiting requests of messages that were not fetched, but came as any other message."""
    return [each for each in _waiting(state, elections) if not is_fetched(each.message)]


def _came_from_its_queue(request: LeaderOnlyRequest) -> bool:
    assert request.election is not None
    return key_of(request.message) == runtime_of(request.app).queue(request.election)


def _put_in_front(waiting: Sequence[LeaderOnlyRequest]) -> None:
    of_queue: dict[str, list[LeaderOnlyRequest]] = {}
    for request in waiting:
        of_queue.setdefault(key_of(request.message), []).append(request)
    for queue, requests in of_queue.items():
        # The last step first, because each step is put in front of the others.
        for end in range(len(requests), 0, -STEP):
            step = requests[max(0, end - STEP) : end]
            try:
                put_in_front([request.message for request in step], queue)
            except Exception as exc:
                _report_trouble(step[0], exc)
                return
            for request in step:
                request.was_given_back()
        _report(requests)


def _hand_over(waiting: Sequence[LeaderOnlyRequest]) -> None:
    for request in waiting:
        assert request.election is not None
        try:
            publish_again(request.app, request.message, leader_queue(request.app, request.election))
            request.message.ack()
        except Exception as exc:
            _report_trouble(request, exc)
            return
        request.was_given_back()
    if waiting:
        _report(waiting)


def _report(requests: Sequence[LeaderOnlyRequest]) -> None:
    logger.info("%d waiting leader-only task(s) given back", len(requests))


def _report_trouble(request: LeaderOnlyRequest, exc: Exception) -> None:
    logger.warning("%s cannot be given back yet: %s", request.name, exc)
