"""What happens in this process's elections, as values with the election and the node.

Each happening is one value, made once, where it happens: a ``Change`` by the election, the others
by whoever acts. Log lines, signals, worker events and metrics are made from it.

Guaranteed: observers are told at once, in the thread in which the event happens. An observer must
return at once and do no I/O, because renewals and dispatches wait for it. Its exceptions are
logged and change nothing. Nothing is ever decided by what an observer does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .watchdog import UNFIT

#: Ends the reason of an order that does not wait for bodies which can be aborted.
AT_ONCE = " at once"

#: Reasons that end a leadership without preparation: its work may still run.
_SUDDEN = ("expired", "lost contact", "lost", *UNFIT)


@dataclass(frozen=True, slots=True)
class Elected:
    """This candidate leads, with ``term``."""

    election: str
    node: str
    term: int


@dataclass(frozen=True, slots=True)
class Deposed:
    """This candidate leads no longer.

    ``reason`` is ``resigned``, ``transferred``, ``held``, ``outranked``, ``expired`` (nobody
    renewed in time: the process was paused), ``lost contact`` (no attempt was answered),
    ``lost`` (the record is another's), ``stalled`` or ``broker lost`` (it was not fit to lead;
    see ``watchdog``), ``clock`` (its clock was off; see ``wall_clock``), or a reason that the
    caller gave. ``led_for``: how long it led, in seconds.
    """

    election: str
    node: str
    term: int
    reason: str
    led_for: float

    @property
    def sudden(self) -> bool:
        """Whether it came without preparation, so that the leader's work may still run."""
        return self.reason in _SUDDEN


@dataclass(frozen=True, slots=True)
class Followed:
    """This candidate has heard that another one, ``leader``, leads with ``term``."""

    election: str
    node: str
    term: int
    leader: str


@dataclass(frozen=True, slots=True)
class StepDownRequested:
    """This candidate leads with ``term``, and is asked to give the lease up with ``step_down``.

    Made once for each such order. ``reason`` is ``resigned`` or ``transferred`` (somebody asked
    for it), ``held`` (its node is kept out of the race) or ``outranked`` (``successor`` has a
    higher priority, and pre-emption is wanted). ``AT_ONCE`` may end the first three.
    """

    election: str
    node: str
    term: int
    reason: str
    successor: str | None

    @property
    def at_once(self) -> bool:
        """Whether it is not to wait for bodies that can be aborted."""
        return self.reason.endswith(AT_ONCE)


@dataclass(frozen=True, slots=True)
class Copied:
    """The store has a request of this life that this candidate never made.

    A copy of its process made it (a virtual machine that was cloned), or somebody wrote to the
    record. This candidate goes on as another life. ``term``: the highest it knows of.
    """

    election: str
    node: str
    term: int


#: What an election changes for its candidate.
Change = Elected | Deposed | Followed | StepDownRequested | Copied


@dataclass(frozen=True, slots=True)
class Renewed:
    """The leader ``node`` has kept its lease; the answer took ``latency`` seconds."""

    election: str
    node: str
    term: int
    latency: float


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A request of ``node`` got no answer; ``term`` is the term to renew, if it leads."""

    election: str
    node: str
    term: int | None


@dataclass(frozen=True, slots=True)
class Dispatched:
    """The message of a tick of the schedule's ``entry`` was sent, once."""

    election: str
    node: str
    term: int
    entry: str


@dataclass(frozen=True, slots=True)
class DispatchRefused:
    """Redis refused a tick of the schedule's ``entry``: ``reason`` is its answer."""

    election: str
    node: str
    term: int
    entry: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forwarded:
    """``node`` gave the message of a leader-only task to the leader queue, ``queue``."""

    election: str
    node: str
    task: str
    task_id: str
    queue: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A leader-only task was skipped, by its ``"sender"`` or the ``"receiver"`` of its message."""

    election: str
    node: str
    task: str
    task_id: str
    by: str


Event = Change | Renewed | Unanswered | Dispatched | DispatchRefused | Forwarded | Skipped

Observer = Callable[[Event], None]
