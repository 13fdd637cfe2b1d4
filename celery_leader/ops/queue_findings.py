"""What is wrong with leader queues, and what to change."""

from __future__ import annotations

from collections.abc import Iterator

from celery_leader.store.queued import Queued

from .findings import CRITICAL, WARNING, Finding
from .overview import Overview
from .words import moment, span

#: Seconds after which a message in flight is held for very long.
_LONG = 3600.0


def about_queue(overview: Overview) -> Iterator[Finding]:
    """What is wrong with the leader queue of an election."""
    queued = overview.queued
    if queued is None:
        return
    if queued.error:
        yield Finding(
            WARNING,
            overview.election,
            f"its leader queue {queued.queue} cannot be looked at: {queued.error}",
            "mend that: what waits or is stranded there is not seen",
        )
        return
    if overview.led is None:
        yield from _unled(overview.election, queued)
    yield from _unreadable(overview.election, queued)
    yield from _held_for_long(overview.election, queued)


def _unled(election: str, queued: Queued) -> Iterator[Finding]:
    start = f"start a worker that takes part in {election}, or see the logs of those that do"
    if queued.waiting:
        yield Finding(
            CRITICAL,
            election,
            f"{queued.waiting} message(s) wait in {queued.queue}, and nobody leads",
            start,
        )
    if queued.stranded:
        nodes = sorted({each.node for each in queued.holders if not each.heard_of})
        yield Finding(
            CRITICAL,
            election,
            f"{queued.stranded} message(s) are stranded with {', '.join(nodes[:3])}, which nobody"
            " has heard of lately, and nobody leads",
            f"{start}: the next leader puts them back into {queued.queue} by itself",
        )


def _unreadable(election: str, queued: Queued) -> Iterator[Finding]:
    where, in_flight = queued.keys.unreadable, queued.keys.in_flight
    if queued.unreadable:
        yield Finding(
            WARNING,
            election,
            f"{queued.unreadable} message(s) of {queued.queue} were set aside because no worker"
            " can read them",
            f"look at them with `redis-cli LRANGE {where} 0 9`; put the oldest back with `redis-cli"
            f" LMOVE {where} {queued.keys.lists[0]} RIGHT LEFT`, once a worker can read it; drop"
            f" all with `redis-cli DEL {where}`",
        )
    if queued.damaged:
        yield Finding(
            WARNING,
            election,
            f"{queued.damaged} line(s) of the hash {in_flight} make no sense, so nobody"
            " gives their messages back",
            f"look at them with `redis-cli HGETALL {in_flight}`; each field names a"
            " message in kombu's hash of unacknowledged messages",
        )


def _held_for_long(election: str, queued: Queued) -> Iterator[Finding]:
    if not queued.longest or queued.held_for(queued.longest[0]) < _LONG:
        return
    first = queued.longest[0]
    long = [each for each in queued.longest if queued.held_for(each) >= _LONG]
    others = f", and {len(long) - 1} more message(s) for more than an hour" if len(long) > 1 else ""
    yield Finding(
        WARNING,
        election,
        f"{first.node} has held {first.what} for {span(queued.held_for(first))}, since"
        f" {moment(first.since)}{others}",
        f"see whether it runs or hangs: `celery inspect active -d {first.node}`; a task that runs"
        " for so long needs an election= of its own",
    )
