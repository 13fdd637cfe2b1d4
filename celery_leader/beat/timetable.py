"""When a schedule is due: its occurrences, those that were missed, and what identifies it.

Guaranteed: if an occurrence can be computed, every beat computes the same one. Not guaranteed: that
the occurrences of a user's own schedule class can be computed. Then only ``is_due`` tells.
"""

from __future__ import annotations

import collections
import datetime
import inspect
from collections.abc import Iterator
from typing import Any

from celery.schedules import crontab, schedule, solar
from celery.utils.time import maybe_make_aware

from .moments import add_time, timestamp

_SHORTEST_LOOK_BACK = datetime.timedelta(hours=1)

_CLOSE = 1.0  # seconds; two readings of the clock may put one moment this far apart


def occurrence_after(timetable: Any, moment: datetime.datetime) -> datetime.datetime | None:
    """The first occurrence of ``timetable`` after ``moment``; ``None`` if nobody can compute it."""
    try:
        following = _following(timetable, moment)
    except Exception:  # a schedule of the user's own may raise anything
        return None
    if following is None or timestamp(following) <= timestamp(moment):
        return None
    return following


def _following(timetable: Any, moment: datetime.datetime) -> datetime.datetime | None:
    if isinstance(timetable, crontab):
        following = _on_the_wall(timetable, moment)
        day = moment.astimezone(timetable.tz).date()
        # In the hour that clocks repeat, this may be in that hour's first run, which is over.
        while following.date() <= day and timestamp(following) <= timestamp(moment):
            before, following = following, _on_the_wall(timetable, following)
            if following <= before:
                break  # a crontab of the user's own that does not go on
        return following
    if isinstance(timetable, solar) or (_is_interval(timetable) and timetable.relative):
        asked, local = _asked_at(timetable, moment)
        return add_time(moment, asked.remaining_estimate(local))
    if _is_interval(timetable):
        return add_time(moment, timetable.run_every)
    return None


def _on_the_wall(timetable: Any, moment: datetime.datetime) -> datetime.datetime:
    asked, local = _asked_at(timetable, moment)
    last, delta, _ = asked.remaining_delta(local)
    following: datetime.datetime = last + delta
    return following


def _asked_at(timetable: Any, moment: datetime.datetime) -> tuple[Any, datetime.datetime]:
    """A copy of ``timetable`` whose clock stands at ``moment``, and that moment in its zone.

    The copy is needed for three reasons. "Every day, relative" is a day of the zone that the
    clock is in. Each reading of a real clock gives another microsecond. Before Celery 5.7 a
    crontab leaves out the rest of an hour that is not in today.
    """
    local = moment.astimezone(timetable.tz)
    # By hand, because copying a crontab parses it anew.
    asked = object.__new__(type(timetable))
    vars(asked).update(vars(timetable), nowfun=lambda: local)
    return asked, local


def _is_interval(timetable: Any) -> bool:
    # A subclass is not an interval here: it may count in another way.
    return type(timetable) is schedule


def due_of(entry: Any, due_now: bool, next_in: float) -> datetime.datetime:
    """The due time of ``entry``, whose schedule says: now, or in ``next_in`` seconds.

    If the occurrence can be computed, that is the due time, since every beat computes the same.
    """
    now = entry.default_now()
    told = now if due_now else add_time(now, datetime.timedelta(seconds=next_in))
    for moment in (entry.last_run_at, now):
        occurrence = occurrence_after(entry.schedule, moment)
        if occurrence is None:
            continue
        seconds = timestamp(occurrence)
        if abs(seconds - timestamp(told)) <= _CLOSE or (due_now and seconds <= timestamp(now)):
            return occurrence
        if not due_now and timestamp(told) <= timestamp(now) < seconds:
            return occurrence  # the crontab meant the first run of an hour that is repeated
    return told


def latest_missed(
    timetable: Any, due: datetime.datetime, now: datetime.datetime, most: int
) -> datetime.datetime:
    """The first due time from which at most ``most`` occurrences lie before ``now``.

    That is ``due`` itself if no more were missed. The occurrences must be computable.
    """
    due, now = (maybe_make_aware(each).astimezone(datetime.timezone.utc) for each in (due, now))
    if _is_interval(timetable) and not timetable.relative:
        every: datetime.timedelta = timetable.run_every
        return due + max(0, (now - due) // every + 1 - most) * every
    look_back = _SHORTEST_LOOK_BACK
    while True:
        start = max(due, now - look_back)
        recent = collections.deque(_occurrences(timetable, start, now), maxlen=most)
        if start == due:
            return due if len(recent) < most else min(recent)
        if len(recent) == most:
            return recent[0]
        look_back *= 2


def _occurrences(
    timetable: Any, start: datetime.datetime, end: datetime.datetime
) -> Iterator[datetime.datetime]:
    occurrence = occurrence_after(timetable, start)
    while occurrence is not None and occurrence <= end:
        yield occurrence
        occurrence = occurrence_after(timetable, occurrence)


def fingerprint(timetable: Any) -> str:
    """A text that tells one schedule from another; every process makes the same text."""
    if _is_interval(timetable):
        # Its repr rounds: every 90 and every 90.2 seconds look the same there.
        text = f"every {timetable.run_every.total_seconds()!r} s"
        return f"{text} relative {timetable.tz}" if timetable.relative else text
    try:
        text = repr(timetable)
    except Exception:  # a schedule of the user's own may raise anything
        text = " at 0x"
    if " at 0x" in text:
        # This is Python's default repr, with an address that differs in each process.
        told = {
            name: _told(value)
            for name, value in sorted(vars(timetable).items())
            if not _is_cached(timetable, name)
        }
        lasting = {name: value for name, value in told.items() if " at 0x" not in value}
        text = f"{type(timetable).__qualname__} {lasting}"
    zone = getattr(timetable, "tz", None) if isinstance(timetable, crontab) else None
    return f"{text} {zone}" if zone is not None else text


def _told(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # a class of the user's own may raise anything
        return type(value).__qualname__


def _is_cached(timetable: Any, name: str) -> bool:
    """Whether ``name`` is a cached property's value, which exists only after its first use."""
    return hasattr(inspect.getattr_static(type(timetable), name, None), "__get__")
