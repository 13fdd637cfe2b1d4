"""What Redis says of one election, in the words that people and scripts are given.

Values and words only: nothing here asks Redis. What is read from Redis was written by
anybody who can write to it; it is shown and compared, and decides nothing.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery_leader.core.identity import Kin, called, kinship
from celery_leader.core.lease import Record, State
from celery_leader.core.timing import Timing
from celery_leader.core.watchdog import UNFIT
from celery_leader.store.history import PastLeadership
from celery_leader.store.register import Candidate

from .health import patience
from .table import Sheet

#: Settings that each node has its own of.
_OWN = ("leader_priority",)

_STYLES = {"*": "bold green", "-": "yellow", "?": "red"}


@dataclass(frozen=True, slots=True)
class Overview:
    """One election as it stood a moment ago.

    Attributes:
        election: its name.
        record: who leads, or led last; ``None`` if nobody ever did.
        candidates: who was heard of lately.
        held: nodes that are kept out, candidates or not, and for how many seconds more.
        timing: the durations that this app's candidates go by.
        leaderships: the latest leaderships, the latest first.
        app: what tells the app that looks from others, as ``identity`` has it.
    """

    election: str
    record: Record | None
    candidates: Sequence[Candidate]
    held: Mapping[str, float] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
    leaderships: Sequence[PastLeadership] = ()
    app: str = ""

    @property
    def led(self) -> Record | None:
        """Its record, if somebody leads."""
        return self.record if self.record is not None and self.record.led else None

    @property
    def contested(self) -> bool:
        """Whether anybody takes part, or ever did."""
        return bool(self.record or self.candidates)

    @property
    def unfit(self) -> PastLeadership | None:
        """The leadership that ended last, if its node gave it up as not fit to lead.

        Such a node takes no part until it is fit again; ``None`` once it does.
        """
        ended = [past for past in self.leaderships if not past.lasts]
        there = {each.node for each in self.candidates}
        if not ended or ended[0].reason not in UNFIT or ended[0].node in there:
            return None
        return ended[0]

    def apps(self, kin: Kin) -> list[str]:
        """The apps that take part, or took part last, and are such kin of the app that looks."""
        found = {each.info.app for each in self.candidates if each.info}
        if self.record is not None:
            found.add(self.record.app)
        return sorted(app for app in found if app and kinship(self.app, app) is kin)

    def nodes_of(self, apps: Iterable[str]) -> list[str]:
        """The nodes of these apps, as far as they are known."""
        of = set(apps)
        found = {each.node for each in self.candidates if each.info and each.info.app in of}
        if self.record is not None and self.record.app in of:
            found.add(self.record.holder)
        return sorted(found)

    def state(self, candidate: Candidate) -> str:
        """What ``candidate`` is: ``leader``, ``held``, ``silent`` or ``follower``."""
        if self.led is not None and _is_holder(candidate, self.led):
            return "leader"
        if candidate.held_for is not None:
            return "held"
        return "silent" if candidate.seen_ago > patience(self.timing) else "follower"

    def namesakes(self) -> dict[str, list[str]]:
        """Names that several living candidates have, and where each of these runs."""
        found: dict[str, list[str]] = {}
        for each in self.candidates:
            if each.seen_ago <= patience(self.timing):
                found.setdefault(each.node, []).append(_runs(each) or "unknown")
        return {node: sorted(places) for node, places in sorted(found.items()) if len(places) > 1}

    # -- for people -------------------------------------------------------------

    def headline(self) -> str:
        """Who leads, in one line."""
        record, led = self.record, self.led
        if led is not None:
            return (
                f"{self.election}: {led.holder}  term {led.term}  {led.remaining:.1f} s left"
                f"  since {moment(led.elected_at)}"
            )
        if record is None:
            return f"{self.election}: no leader"
        if record.state is State.RESERVED and record.remaining > 0 and record.successor:
            return f"{self.election}: no leader  kept for {record.successor}"
        last = f"{self.election}: no leader  the last was {record.holder}, term {record.term}"
        return f"{last}, which gave up: {self.unfit.reason}" if self.unfit else last

    def sheet(self, most: int | None = None) -> Sheet:
        """All of it, or no more than ``most`` candidates, for a terminal or as lines."""
        marks = {"leader": "*", "held": "-", "silent": "?"}
        # Each at its place, however lately it was heard of.
        ordered = sorted(self.candidates, key=lambda c: (self.state(c) != "leader", c.node))
        rows = []
        for each in ordered[:most]:
            state = self.state(each)
            kept_out = each.held_for is not None
            rows.append(
                (
                    f"{marks.get(state, ' ')} {each.node}",
                    _held(each.held_for) if kept_out and state != "leader" else state,
                    f"seen {each.seen_ago:.1f} s ago",
                    f"priority {each.priority}" if each.priority else "",
                    _runs(each),
                    _versions(each),
                )
            )
        columns = ("node", "state", "last contact", "priority", "runs as", "versions")
        style = "bold" if self.led else "bold red" if self.contested else "dim"
        left_out = len(ordered) - len(rows)
        remarks = [f"and {left_out} more candidates"] if left_out else []
        remarks += self._remarks()
        return Sheet(self.headline(), columns, rows, remarks, style, _STYLES)

    def _remarks(self) -> list[str]:
        candidates = {each.node for each in self.candidates}
        unfenced = [
            f"{each.node} sends every ordinary periodic task, leading or not: its scheduler is"
            f" {each.info.scheduler}"
            for each in sorted(self.candidates, key=lambda each: each.node)
            if each.info and not each.info.fenced
        ]
        lines = [
            f"{node} is {_held(seconds)}, and no candidate at present"
            for node, seconds in sorted(self.held.items())
            if node not in candidates
        ]
        if self.unfit is not None and self.led is not None:
            lines.append(f"{self.unfit.node} gave up: {self.unfit.reason}")
        lines += [
            f"{node} is the name of {len(places)} living nodes ({'; '.join(places)}):"
            " give each its own"
            for node, places in self.namesakes().items()
        ]
        lines += [
            f"{each.node} does not campaign: {each.info.unfit}"
            for each in self.candidates
            if each.info and each.info.unfit
        ]
        lines += [
            f"candidates differ in {name}: {told(values)}"
            for name, values in mixed_settings(self.candidates).items()
        ]
        for kin, verb in ((Kin.OTHER, "takes part"), (Kin.UNKNOWN, "may take part")):
            strange = self.apps(kin)
            if strange:
                lines.append(
                    f"another project {verb}: {some(map(called, strange))}"
                    f" ({some(self.nodes_of(strange))}); see celery leader doctor"
                )
        return lines + unfenced

    # -- for scripts ------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        led, record, unfit = self.led, self.record, self.unfit
        return {
            "election": self.election,
            "leader": led.holder if led else None,
            "term": led.term if led else None,
            "seconds_left": round(led.remaining, 3) if led else None,
            "since": iso(led.elected_at) if led else None,
            "transitions": record.transitions if record else 0,
            "kept_for": record.successor if record and not led else None,
            "unfit": {"node": unfit.node, "reason": unfit.reason} if unfit else None,
            "candidates": [self._candidate_as_json(each) for each in self.candidates],
            "held": [
                {"node": node, "seconds_left": _finite(seconds)}
                for node, seconds in sorted(self.held.items())
            ],
            "mixed_settings": mixed_settings(self.candidates),
        }

    def _candidate_as_json(self, candidate: Candidate) -> dict[str, Any]:
        info = candidate.info
        return {
            "node": candidate.node,
            "life": candidate.life or None,
            "state": self.state(candidate),
            "held": candidate.held_for is not None,
            "seconds_since_seen": round(candidate.seen_ago, 3),
            "priority": candidate.priority,
            "unfit": info.unfit or None if info else None,
            "role": info.role if info else None,
            "host": info.host if info else None,
            "pid": info.pid if info else None,
            "scheduler": info.scheduler or None if info else None,
            "fenced": info.fenced if info and info.role == "beat" else None,
            "versions": dict(info.versions) if info else {},
            "settings": dict(info.settings) if info else {},
        }


def _is_holder(candidate: Candidate, record: Record) -> bool:
    # Who says nothing of itself is known by its name only.
    same_life = not candidate.life or not record.life or candidate.life == record.life
    return candidate.node == record.holder and same_life


def mixed_settings(candidates: Iterable[Candidate]) -> dict[str, dict[str, list[str]]]:
    """Settings that should be the same everywhere and are not: value to nodes, by name."""
    found: dict[str, dict[str, list[str]]] = {}
    for each in candidates:
        for name, value in (each.info.settings if each.info else {}).items():
            if name not in _OWN:
                found.setdefault(name, {}).setdefault(str(value), []).append(each.node)
    return {name: values for name, values in sorted(found.items()) if len(values) > 1}


def mixed_versions(candidates: Iterable[Candidate]) -> dict[str, dict[str, list[str]]]:
    """Packages of which candidates run different versions: version to nodes, by package."""
    found: dict[str, dict[str, list[str]]] = {}
    for each in candidates:
        for package, version in (each.info.versions if each.info else {}).items():
            found.setdefault(package, {}).setdefault(version, []).append(each.node)
    return {package: values for package, values in sorted(found.items()) if len(values) > 1}


def told(values: Mapping[str, Sequence[str]]) -> str:
    """Which nodes have which value, in one line that stays short."""
    return "; ".join(f"{value} ({some(nodes)})" for value, nodes in sorted(values.items()))


def some(names: Iterable[str], most: int = 3) -> str:
    """The first of ``names``, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


# -- history ------------------------------------------------------------------


def history_sheet(election: str, leaderships: Sequence[PastLeadership]) -> Sheet:
    """Who led ``election``, from when, until when, and why no longer."""
    rows = [
        (
            f"{'*' if past.lasts else ' '} {past.node}",
            moment(past.elected_at),
            "" if past.ended_at is None else f"to {moment(past.ended_at)}",
            _lasted(past),
            _why(past),
            f"term {past.term}",
        )
        for past in leaderships
    ]
    columns = ("node", "from", "to", "for", "why it ended", "term")
    title = f"{election}:" if rows else f"{election}: nobody has led yet"
    return Sheet(title, columns, rows, style="bold" if rows else "dim", styles=_STYLES)


def past_as_json(past: PastLeadership) -> dict[str, Any]:
    """One leadership, for scripts."""
    return {
        "node": past.node,
        "term": past.term,
        "from": iso(past.elected_at),
        "to": None if past.ended_at is None else iso(past.ended_at),
        "reason": past.reason,
        "successor": past.successor,
    }


def changes(histories: Mapping[str, Sequence[PastLeadership]]) -> list[tuple[float, str]]:
    """What happened in elections, the latest first: when, and a line that says it."""
    lines = []
    for election, leaderships in histories.items():
        for past in leaderships:
            lines.append((past.elected_at, f"{election}: {past.node} elected, term {past.term}"))
            if not past.lasts and past.ended_at is not None:
                ended = f"{election}: {past.node} led for {_lasted(past)}: {_why(past)}"
                lines.append((past.ended_at, ended))
    return sorted(lines, reverse=True)


def _why(past: PastLeadership) -> str:
    if past.reason is None:
        return "leads"
    return f"{past.reason}, to {past.successor}" if past.successor else past.reason


def _lasted(past: PastLeadership) -> str:
    return "" if past.ended_at is None else span(past.ended_at - past.elected_at)


# -- words ----------------------------------------------------------------------


def moment(at: float) -> str:
    """A moment of the clock of Redis, in UTC."""
    return _utc(at).strftime("%Y-%m-%d %H:%M:%SZ")


def iso(at: float) -> str:
    """A moment of the clock of Redis, for scripts."""
    return _utc(at).isoformat(timespec="milliseconds")


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if hours == 0:
        return f"{minutes} min {int(seconds % 60)} s"
    return f"{hours} h {minutes % 60} min" if days == 0 else f"{days} d {hours % 24} h"


def _utc(at: float) -> datetime.datetime:
    # Whoever can write to Redis can write any number.
    seconds = min(max(at, 0.0), 253_402_300_799.0)
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def _held(seconds: float | None) -> str:
    return "held" if _finite(seconds) is None else f"held for {span(seconds or 0.0)}"


def _finite(seconds: float | None) -> float | None:
    return None if seconds is None or seconds == float("inf") else round(seconds, 3)


def _runs(candidate: Candidate) -> str:
    return candidate.info.place if candidate.info else ""


def _versions(candidate: Candidate) -> str:
    versions = candidate.info.versions if candidate.info else {}
    named = [(package, versions.get(package)) for package in ("celery_leader", "celery")]
    return ", ".join(f"{package} {version}" for package, version in named if version)
