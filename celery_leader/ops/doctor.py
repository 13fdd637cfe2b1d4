"""What is wrong with a fleet and its Redis, how bad that is, and what to change.

It judges values that others have read, and asks Redis nothing. Guaranteed: a fact that could not
be found out is reported as unknown, and never taken as good. Every finding says what to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from celery_leader.runtime.schedulers import TO_READ_THEM
from celery_leader.runtime.settings import Settings

from .findings import CRITICAL, NOTE, SEVERITIES, WARNING, Finding, about_candidates, beats_of
from .overview import Overview
from .probe import Server
from .queue_findings import about_queue
from .server_findings import about_server
from .table import Table
from .words import some

#: The schedulers of this package that read the entries of the app and no others.
_READING_THE_APP_ALONE = frozenset(
    f"celery_leader.beat.{name}" for name in ("LeaderScheduler", "LeaderPersistentScheduler")
)
_SHORT_LEASE = 3.0  # seconds


@dataclass(frozen=True, slots=True)
class Fleet:
    """The app that runs ``doctor``, and its elections.

    Attributes:
        installed: whether ``install(app)`` was called.
        settings: its settings.
        overviews: its elections.
        needed: the elections that leader-only tasks name.
        unread: a sentence about the part of this app's schedule that ``-S leader`` does not
            read; empty if there is no such part.
    """

    installed: bool
    settings: Settings
    overviews: Sequence[Overview]
    needed: frozenset[str]
    unread: str = ""


def examine(server: Server, fleet: Fleet) -> list[Finding]:
    """All findings, the worst first."""
    found = [
        *about_server(server, fleet.settings),
        *_own_app(fleet),
        *_elections(fleet),
        *about_candidates(fleet.overviews),
        *(finding for each in fleet.overviews for finding in about_queue(each)),
        *_schedulers(fleet),
    ]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def findings_table(server: Server, findings: Sequence[Finding]) -> Table:
    """The findings as a table."""
    title = (
        f"{server.setting} {server.address}: {server.product},"
        f" {server.info.get('role', 'role unknown')}, answers in"
        f" {1000 * server.typical_round_trip:.1f} ms ({1000 * server.longest_round_trip:.1f} ms"
        f" at most), clock {server.ahead:+.2f} s"
    )
    rows = [(f.severity, f.about, f"{f.what}. To do: {f.advice}") for f in findings]
    return Table(
        title,
        ("severity", "about", "what, and what to change"),
        rows,
        [] if findings else ["nothing to change"],
        styles={"c": "bold red", "w": "yellow", "n": "dim"},
    )


def _own_app(fleet: Fleet) -> Iterator[Finding]:
    if not fleet.installed:
        yield Finding(
            WARNING,
            "install",
            "install(app) was not called on this app: its workers elect nobody and know no leader"
            " queue",
            "call celery_leader.install(app) where the app is made",
        )
    lease = fleet.settings.timing.lease_duration
    if lease < _SHORT_LEASE:
        yield Finding(
            WARNING,
            "durations",
            f"leader_lease_duration is {lease:g} s: a machine or a Redis that pauses for"
            f" {lease - fleet.settings.timing.margin:.1f} s ends a leadership",
            f"set it to {_SHORT_LEASE:g} s or more",
        )


def _elections(fleet: Fleet) -> Iterator[Finding]:
    for overview in fleet.overviews:
        if overview.candidates:
            yield from _contested(overview)
        elif overview.election in fleet.needed and overview.unfit is None:
            yield Finding(
                WARNING,
                overview.election,
                "leader-only tasks name this election and nobody takes part: they wait in the"
                " leader queue",
                "start a worker that takes part (leader_elections, --elections)",
            )


def _contested(overview: Overview) -> Iterator[Finding]:
    name = overview.election
    states = [(each.node, overview.state(each)) for each in overview.candidates]
    able = sum(state in ("leader", "follower") for _, state in states)
    silent = [node for node, state in states if state == "silent"]
    if overview.led is None:
        yield Finding(
            CRITICAL,
            name,
            f"nobody leads, and {able} candidate(s) could",
            "wait for one lease, then see the logs of the candidates"
            if able
            else "see the logs; let held nodes in with `celery leader release NODE`",
        )
    elif able == 1:
        yield Finding(
            NOTE, name, "there is one candidate only: nobody can take over", "start another"
        )
    if silent:
        yield Finding(
            NOTE,
            name,
            f"not in contact for more than a lease and a half: {some(silent)}",
            "see their logs; a node that was killed is forgotten after three leases",
        )
    if overview.held:
        yield Finding(
            NOTE,
            name,
            f"held, so never elected: {some(overview.held)}",
            "let them in again with `celery leader release NODE`",
        )


def _schedulers(fleet: Fleet) -> Iterator[Finding]:
    beats = beats_of(fleet.overviews).values()
    ours = {info.scheduler for info in beats if info.fenced and info.scheduler}
    if len(ours) > 1:
        yield Finding(
            WARNING,
            "beat",
            f"beats use different schedulers: {some(ours)}",
            "give all beats the same one: each counts due times in its own way",
        )
    if fleet.unread and ours & _READING_THE_APP_ALONE:
        yield Finding(CRITICAL, "beat", fleet.unread, TO_READ_THEM)
