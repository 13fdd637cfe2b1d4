"""What waits in a leader queue and what is in flight, in short lines below an election's table."""

from __future__ import annotations

from collections.abc import Iterator

from celery_leader.store.queued import Queued

from .words import moment, span

_HOLDERS = 5


def queue_lines(queued: Queued) -> Iterator[str]:
    """The leader queue in lines; none if there is nothing in it and nothing in flight."""
    if queued.error:
        yield f"{queued.queue} cannot be looked at: {queued.error}"
        return
    if queued.waiting or queued.in_flight:
        yield f"{queued.queue}: {queued.waiting} waiting, {queued.in_flight} in flight"
    for holder in queued.holders[:_HOLDERS]:
        lost = "" if holder.heard_of else ", not heard of any more"
        yield f"  {holder.messages} with {holder.node}{lost}"
    more = len(queued.holders) - _HOLDERS
    if more > 0:
        yield f"  and more with {more} others"
    if queued.longest:
        first = queued.longest[0]
        yield (
            f"  longest with {first.node}: for {span(queued.held_for(first))}, since"
            f" {moment(first.since)}"
        )
        yield f"    {first.what}"
    if queued.unreadable:
        yield f"{queued.queue}: {queued.unreadable} set aside as unreadable"
