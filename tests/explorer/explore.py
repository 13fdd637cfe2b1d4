"""Visits every state of a model, and from each one looks whether all ends well."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from tests.explorer.model import Broken, Model, Scope, State

#: Seconds after the last fault by which somebody must lead: two leases, and one to notice.
SOON = 12
#: Of a course in which nothing goes wrong, until somebody leads.
_STEPS = 500


@dataclass
class Explored:
    """What was found."""

    states: int = 0
    transitions: int = 0
    events: Counter[str] = field(default_factory=Counter)
    longest_wait: int = 0
    complete: bool = False


class Counterexample(AssertionError):
    """How a promise is broken, step by step."""


def explore(scope: Scope, *, candidates: int = 3, at_most: int | None = None) -> Explored:
    """Visit the states of ``scope``, breadth first, so that what is found is the shortest.

    Raises:
        Counterexample: a promise does not hold in one of them.
    """
    model = Model(scope, candidates=candidates)
    found, waits = Explored(), {}
    first = model.start()
    came_from: dict[int, tuple[int, str]] = {model.key(first): (0, "")}
    ahead = deque([(first, model.key(first))])
    while ahead:
        if at_most is not None and found.states >= at_most:
            return found
        state, key = ahead.popleft()
        found.states += 1
        try:
            found.longest_wait = max(found.longest_wait, _until_led(model, state, waits))
            for event, following in model.following(state):
                found.transitions += 1
                found.events[_kind(event)] += 1
                model.check(following)
                new = model.key(following)
                if new not in came_from:
                    came_from[new] = (key, event)
                    ahead.append((following, new))
        except Broken as exc:
            raise Counterexample("\n".join([*_course(came_from, key), str(exc)])) from exc
    found.complete = True
    return found


def _until_led(model: Model, state: State, waits: dict[int, int]) -> int:
    """Seconds until somebody leads if nothing goes wrong any more."""
    state = model.calmed(state)
    passed: list[tuple[int, int]] = []
    seconds = steps = 0
    event = ""
    while True:
        steps += 1
        if steps > _STEPS:
            raise Broken(f"no end: {event}")
        if len(model.leaders(state)) == 1:
            total = seconds
            break
        key = model.key(state)
        if key in waits:
            total = seconds + waits[key]
            break
        passed.append((key, seconds))
        if seconds > SOON:
            raise Broken(f"nobody leads {SOON} s after the last fault")
        # Who is due first acts first; the order is the explorer's to vary elsewhere.
        event, state = next((each for each in model.following(state)), ("a second passes", state))
        seconds += event == "a second passes"
        model.check(state)
    for key, at in passed:
        waits[key] = total - at
    return total


def _kind(event: str) -> str:
    return " ".join(word for word in event.split() if not word.isdigit() and word != "node")


def _course(came_from: dict[int, tuple[int, str]], key: int) -> list[str]:
    events: list[str] = []
    while key:
        key, event = came_from[key]
        events.append(event)
    return events[::-1]
