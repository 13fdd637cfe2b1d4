"""What is wrong with elections and their candidates, and what to change.

``doctor`` reports these findings with their advice; ``status`` shows the same ones as remarks.
They are judged from values that others have read: nothing here asks Redis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from celery_leader.core.candidate_info import CandidateInfo
from celery_leader.core.kinship import Kin, called, kinship
from celery_leader.core.watchdog import SHUTS_DOWN, BrokerHeartbeat
from celery_leader.runtime.clock import wall_clock
from celery_leader.store.register import Candidate

from .overview import Overview, mixed_settings
from .words import nodes_by_value, some, span

_LONG_STEP_DOWN = 60.0  # seconds

#: Nobody can lead, or a promise does not hold.
CRITICAL = "critical"
#: It works now, and will not when something else happens.
WARNING = "warning"
#: Good to know.
NOTE = "note"

#: The worst first.
SEVERITIES = (CRITICAL, WARNING, NOTE)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that could be better.

    Attributes:
        severity: how bad it is, one of ``SEVERITIES``.
        about: the election or the subject.
        what: what was seen.
        advice: what to change.
    """

    severity: str
    about: str
    what: str
    advice: str

    def is_at_least(self, severity: str) -> bool:
        """Whether it is as bad as ``severity`` or worse."""
        return SEVERITIES.index(self.severity) <= SEVERITIES.index(severity)


def about_candidates(overviews: Sequence[Overview]) -> Iterator[Finding]:
    """What is wrong with the candidates of these elections."""
    for overview in overviews:
        yield from _unfit(overview)
    yield from _namesakes(overviews)
    yield from _abstaining(overviews)
    yield from _stepping_down(overviews)
    yield from _mixed_settings(overviews)
    for overview in overviews:
        yield from _other_projects(overview)
    yield from _unfenced_beats(overviews)


def beats_of(overviews: Sequence[Overview]) -> dict[str, CandidateInfo]:
    """The beats that take part, by node."""
    everybody = [each for overview in overviews for each in overview.candidates]
    return {each.node: each.info for each in everybody if each.info and each.info.role == "beat"}


def _unfit(overview: Overview) -> Iterator[Finding]:
    unfit = overview.unfit
    if unfit is None:
        return
    alone = overview.led is None and not overview.candidates
    yield Finding(
        CRITICAL if alone else WARNING,
        overview.election,
        f"{unfit.node} gave its lease up because it was not fit to lead: {unfit.reason}",
        "bring back its broker, or its way to it: then it takes part again by itself"
        if unfit.reason == BrokerHeartbeat.reason
        else "see its log: it takes part again when that is over",
    )


def _namesakes(overviews: Sequence[Overview]) -> Iterator[Finding]:
    named: dict[str, list[str]] = {}
    for overview in overviews:
        # A process is a candidate once in each election.
        places: dict[str, list[str]] = {}
        for each in filter(overview.is_alive, overview.candidates):
            places.setdefault(each.node, []).append(_place(each))
        named |= {node: found for node, found in places.items() if len(found) > 1}
    for node, found in sorted(named.items()):
        yield Finding(
            WARNING,
            "names",
            f"{node} is the name of {len(found)} living nodes ({'; '.join(sorted(found))}): a hold"
            " or a transfer of that name means all of them",
            "give each node its own name: --hostname for a worker, node= for a LeaderElection, or"
            " different host names",
        )


def _abstaining(overviews: Sequence[Overview]) -> Iterator[Finding]:
    for overview in overviews:
        for each in overview.candidates:
            if each.info and each.info.unfit:
                ends = each.info.unfit == SHUTS_DOWN
                yield Finding(
                    NOTE if ends else WARNING,
                    overview.election,
                    f"{each.node} does not campaign: {each.info.unfit}",
                    "nothing: it goes when they have ended"
                    if ends
                    else "set the wrong clock right and keep it so (NTP): then it campaigns again"
                    " by itself",
                )


def _stepping_down(overviews: Sequence[Overview]) -> Iterator[Finding]:
    for overview in overviews:
        for each in overview.candidates:
            info = each.info
            if info is None or not info.steps_down_since or overview.state(each) != "leader":
                continue
            # By this machine's clock, which may differ from the node's own.
            since = max(0.0, wall_clock() - info.steps_down_since)
            waits = f", and waits for task {info.waits_for}" if info.waits_for else ""
            yield Finding(
                WARNING if since > _LONG_STEP_DOWN else NOTE,
                overview.election,
                f"{each.node} has been stepping down for {span(since)}{waits}",
                "its other leader-only tasks go on; wait, or give the order again with --now, which"
                ' aborts bodies with on_deposed="abort"; a task that runs for so long needs an'
                " election= of its own",
            )


def _mixed_settings(overviews: Sequence[Overview]) -> Iterator[Finding]:
    everybody = {(each.node, each.life): each for o in overviews for each in o.candidates}
    for name, values in mixed_settings(everybody.values()).items():
        grave = name in ("leader_queue", "leader_wait_replicas")
        astray = "; leader-only tasks in the other queue wait there"
        yield Finding(
            CRITICAL if grave else WARNING,
            "settings",
            f"candidates differ in {name}: {nodes_by_value(values)}",
            f"give all of them one value{astray if name == 'leader_queue' else ''}",
        )


def _other_projects(overview: Overview) -> Iterator[Finding]:
    apps = [(each.node, each.info.app) for each in overview.candidates if each.info]
    if overview.record is not None:
        apps.append((overview.record.holder, overview.record.app))
    for kin, severity, verb in (
        (Kin.OTHER, CRITICAL, "takes part"),
        (Kin.UNKNOWN, WARNING, "may take part"),
    ):
        strange = [(n, app) for n, app in apps if app and kinship(overview.app, app) is kin]
        if strange:
            yield Finding(
                severity,
                overview.election,
                f"another project {verb}: {some({called(app) for _, app in strange})}"
                f" ({some({node for node, _ in strange})}); this one is {called(overview.app)}",
                "give one of them another leader_namespace, and another leader_queue or"
                " task_default_queue",
            )


def _unfenced_beats(overviews: Sequence[Overview]) -> Iterator[Finding]:
    beats = beats_of(overviews)
    unfenced = {node: info.scheduler for node, info in beats.items() if not info.fenced}
    if not unfenced:
        return
    doubled = len(beats) > 1
    also = f"; {len(beats)} beats run, so each due task is sent more than once" if doubled else ""
    yield Finding(
        CRITICAL if doubled else WARNING,
        "beat",
        f"every ordinary periodic task is sent by {some(unfenced)}, leading or not"
        f" ({some(set(unfenced.values()))}){also}",
        "start beats with a scheduler of this package: -S leader, leader-django or leader-redbeat"
        ' (in Django: CELERY_BEAT_SCHEDULER = "leader-django")',
    )


def _place(candidate: Candidate) -> str:
    return (candidate.info.place if candidate.info else "") or "unknown"
