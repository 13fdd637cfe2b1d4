"""Makes a schedule that breaks a promise as small as it gets while it still does.

Faults are taken out, by halves at first and then one by one; what is left is made plainer:
fewer candidates, true clocks, equal priorities, round numbers. The result breaks the same
promise, but not of need for the same reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from tests.simulation.schedule import LEASE, Fault, Node, Schedule
from tests.simulation.simulation import Simulation, Violation

_Broken = Callable[[Schedule], bool]


def violation_of(schedule: Schedule) -> Violation | None:
    """What the schedule breaks, if it breaks anything."""
    try:
        Simulation(schedule).run()
    except Violation as violation:
        return violation
    return None


def shrink(schedule: Schedule) -> Schedule:
    """The smallest schedule found that breaks what ``schedule`` breaks."""
    violation = violation_of(schedule)
    if violation is None:
        raise ValueError("this schedule breaks nothing")
    promise = violation.promise

    def broken(candidate: Schedule) -> bool:
        found = violation_of(candidate)
        return found is not None and found.promise == promise

    while True:
        before = schedule
        schedule = _with_fewer_faults(schedule, broken)
        for plainer in _STEPS:
            schedule = _try_all(schedule, plainer, broken)
        if schedule == before:
            return schedule


def _with_fewer_faults(schedule: Schedule, broken: _Broken) -> Schedule:
    size = max(1, len(schedule.faults) // 2)
    while schedule.faults:
        at = 0
        while at < len(schedule.faults):
            faults = schedule.faults[:at] + schedule.faults[at + size :]
            candidate = dataclasses.replace(schedule, faults=faults)
            if broken(candidate):
                schedule = candidate
            else:
                at += size
        if size == 1:
            break
        size = max(1, size // 2)
    return schedule


def _try_all(
    schedule: Schedule, plainer: Callable[[Schedule], Iterator[Schedule]], broken: _Broken
) -> Schedule:
    """Take each plainer form that is still broken, until there is none."""
    for _ in range(100):
        found = next((each for each in plainer(schedule) if broken(each)), None)
        if found is None:
            break
        schedule = found
    return schedule


def _fewer_nodes(schedule: Schedule) -> Iterator[Schedule]:
    last = len(schedule.nodes) - 1
    if last > 0 and not any(_names(fault, last) for fault in schedule.faults):
        yield dataclasses.replace(schedule, nodes=schedule.nodes[:-1])


def _names(fault: Fault, node: int) -> bool:
    return node in (getattr(fault, "node", None), getattr(fault, "successor", None))


def _plainer_nodes(schedule: Schedule) -> Iterator[Schedule]:
    plain = Node()
    for field in dataclasses.fields(Node):
        for i, node in enumerate(schedule.nodes):
            value = getattr(plain, field.name)
            if getattr(node, field.name) != value:
                changed = dataclasses.replace(node, **{field.name: value})
                nodes = (*schedule.nodes[:i], changed, *schedule.nodes[i + 1 :])
                yield dataclasses.replace(schedule, nodes=nodes)


def _true_server(schedule: Schedule) -> Iterator[Schedule]:
    if schedule.server_rate != 1.0:
        yield dataclasses.replace(schedule, server_rate=1.0)


def _shorter(schedule: Schedule) -> Iterator[Schedule]:
    for storm in (schedule.storm / 2, schedule.storm - LEASE, schedule.storm - 1):
        if storm > 0:
            yield dataclasses.replace(schedule, storm=round(storm, 1))


def _rounder(schedule: Schedule) -> Iterator[Schedule]:
    for digits in (0, 1, 2):
        for i, fault in enumerate(schedule.faults):
            values = {
                field.name: round(getattr(fault, field.name), digits)
                for field in dataclasses.fields(fault)
                if isinstance(getattr(fault, field.name), float)
            }
            rounder = dataclasses.replace(fault, **values)
            if rounder != fault and _is_rounder(rounder, fault):
                faults = (*schedule.faults[:i], rounder, *schedule.faults[i + 1 :])
                yield dataclasses.replace(schedule, faults=faults)


def _is_rounder(rounder: Fault, fault: Fault) -> bool:
    return len(repr(rounder)) < len(repr(fault))


_STEPS = (_fewer_nodes, _plainer_nodes, _true_server, _shorter, _rounder)
