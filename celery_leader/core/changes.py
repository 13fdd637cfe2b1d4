"""The changes of one candidate, each a value with the names of its election and its node.

Each is made once, by the election. Log line, signal, worker event and metric are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .watchdog import UNFIT

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
    higher priority, and pre-emption is wanted).
    """

    election: str
    node: str
    term: int
    reason: str
    successor: str | None


@dataclass(frozen=True, slots=True)
class Copied:
    """The store has a request of this life that this candidate never made.

    A copy of its process made it (a virtual machine that was cloned), or somebody wrote to the
    record. This candidate goes on as another life. ``term``: the highest it knows of.
    """

    election: str
    node: str
    term: int


Change = Elected | Deposed | Followed | StepDownRequested | Copied
