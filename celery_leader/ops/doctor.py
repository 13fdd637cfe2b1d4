"""What is wrong with a fleet and its Redis, how bad that is, and what to change.

Judges what was read and asks nothing itself. Guaranteed: what could not be found out is
said to be so, and never taken for good. Not guaranteed: that a fleet without findings is
well for ever: a finding is about the moment at which it was looked at.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from celery_leader.core.identity import Kin, called
from celery_leader.core.timing import Timing
from celery_leader.core.watchdog import BrokerHeartbeat

from .overview import Overview, mixed_settings, mixed_versions, some, span, told
from .probe import Server
from .table import Sheet

_OLDEST = (6, 2)
#: Schedulers of ours that know no entries but the app's own.
_READING_THE_APP_ALONE = frozenset(
    f"celery_leader.beat.{name}" for name in ("LeaderScheduler", "LeaderPersistentScheduler")
)
_FULL = 0.9  # of memory or of connections
_SKEW, _MUCH_SKEW = 1.0, 30.0  # seconds between two clocks
_SHORT_LEASE, _LONG_LEASE = 3.0, 120.0  # seconds


class Severity(enum.Enum):
    """How bad a finding is; the worst first."""

    #: Nobody can lead, or a promise does not hold.
    CRITICAL = "critical"
    #: It works, and will not when something else happens.
    WARNING = "warning"
    #: Good to know.
    NOTE = "note"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that could be better.

    Attributes:
        severity: how bad it is.
        about: what it concerns, in a word or two.
        what: what was seen.
        advice: what to change.
    """

    severity: Severity
    about: str
    what: str
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        """It, for scripts."""
        return {
            "severity": self.severity.value,
            "about": self.about,
            "what": self.what,
            "advice": self.advice,
        }


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the app that asks knows of itself and of its elections.

    Attributes:
        app: how it names itself in records, as ``identity`` has it.
        installed: whether ``install(app)`` was called.
        namespace: ``leader_namespace``.
        queue: ``leader_queue``.
        wait_replicas: ``leader_wait_replicas``.
        timing: its durations.
        overviews: its elections.
        needed: elections that leader-only tasks name.
        unread: what of this app's schedule ``-S leader`` does not read; empty if nothing.
    """

    app: str
    installed: bool
    namespace: str
    queue: str
    wait_replicas: int
    timing: Timing
    overviews: Sequence[Overview]
    needed: frozenset[str]
    unread: str = ""


def examine(server: Server, fleet: Fleet) -> list[Finding]:
    """Everything there is to say, the worst first."""
    found = [finding for part in _SERVER for finding in part(server, fleet)]
    found += [finding for part in _FLEET for finding in part(fleet)]
    return sorted(found, key=lambda finding: finding.severity.rank)


def sheet(server: Server, findings: Sequence[Finding]) -> Sheet:
    """The findings, for a terminal or as lines."""
    title = (
        f"{server.setting} {server.address}: Redis {_version(server)},"
        f" {server.info.get('role', 'role unknown')}, answers in"
        f" {1000 * server.typical_round_trip:.1f} ms ({1000 * server.longest_round_trip:.1f} ms"
        f" at most), clock {server.ahead:+.2f} s"
    )
    rows = [(each.severity.value, each.about, _sentence(each)) for each in findings]
    styles = {"c": "bold red", "w": "yellow", "n": "dim"}
    remarks = [] if findings else ["nothing to change"]
    return Sheet(
        title, ("severity", "about", "what, and what to change"), rows, remarks, styles=styles
    )


def _sentence(finding: Finding) -> str:
    return f"{finding.what}. To do: {finding.advice}" if finding.advice else finding.what


def _version(server: Server) -> str:
    return (
        server.info.get("valkey_version")
        or server.info.get("redis_version")
        or "of unknown version"
    )


# -- the server -----------------------------------------------------------------


def _age(server: Server, _: Fleet) -> Iterator[Finding]:
    text = server.info.get("redis_version", "")
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    if numbers and numbers < _OLDEST:
        yield Finding(
            Severity.CRITICAL, "version", f"it is Redis {text}", "run Redis 6.2 or later, or Valkey"
        )
    if not server.info:
        yield Finding(
            Severity.NOTE,
            "INFO",
            "this user may not ask, so version, memory, persistence and replicas are unknown",
            "look for yourself, or run doctor as a user with +info",
        )
    if not server.config:
        yield Finding(
            Severity.NOTE,
            "CONFIG",
            "this user may not ask, so the timeout, snapshots and least replicas are unknown",
            "look for yourself, or run doctor as a user with +config|get",
        )
    if server.number("cluster_enabled"):
        yield _cluster(server)


def _cluster(server: Server) -> Finding:
    if server.shards == 1 and server.one_slot:
        return Finding(
            Severity.NOTE,
            "cluster",
            "it is a Redis Cluster of one shard, and the hash tag in global_keyprefix keeps all"
            " keys together: that works",
            "add no second shard: neither kombu nor this package follows its keys there",
        )
    seen = "" if server.shards is None else f" of {server.shards} shard(s)"
    return Finding(
        Severity.CRITICAL,
        "cluster",
        f"it is a Redis Cluster{seen}, which Celery cannot use as a broker",
        "name a Redis that is no cluster; one shard works with a hash tag, such as '{celery}', in"
        " global_keyprefix of the transport options",
    )


def _standing(server: Server, _: Fleet) -> Iterator[Finding]:
    if server.info.get("role") == "slave":
        yield Finding(
            Severity.CRITICAL,
            "role",
            f"it is a replica of {server.info.get('master_host', 'another')}",
            f"name the master in {server.setting}, or use sentinel://",
        )
    if server.number("loading"):
        yield Finding(
            Severity.CRITICAL, "loading", "it still loads its data", "wait until it has started"
        )


def _rights(server: Server, fleet: Fleet) -> Iterator[Finding]:
    by_reason: dict[str, list[str]] = {}
    for command, why in server.refused.items():
        # Redis names the command in its refusal, which would make each a finding of its own.
        kind = "rights" if "may not do this" in why else why
        by_reason.setdefault(kind, []).append(command)
    for why, commands in by_reason.items():
        if why == "rights":
            yield Finding(
                Severity.CRITICAL,
                "rights",
                f"the user in {server.setting} may not use {', '.join(sorted(commands))}"
                " on the keys of the elections",
                "allow them: "
                + " ".join(f"+{name.lower()}" for name in sorted(commands))
                + f" on the keys ~celery-leader:{fleet.namespace}:* and those of the queues",
            )
        else:
            yield Finding(Severity.CRITICAL, "refusals", why, "see what Redis says")
    if not server.transactions:
        yield Finding(
            Severity.NOTE,
            "rights",
            "this user may not use MULTI, so its rights could not be tried without writing",
            "allow +multi and +discard to have them looked at (a broker's user needs them anyway)",
        )


def _memory(server: Server, _: Fleet) -> Iterator[Finding]:
    policy, most = server.info.get("maxmemory_policy", ""), server.number("maxmemory")
    advice = "set maxmemory-policy noeviction, as Celery itself recommends"
    if policy.startswith("allkeys"):
        bad = Severity.CRITICAL if most else Severity.WARNING
        also = "" if most else " (once maxmemory is set)"
        yield Finding(
            bad,
            "eviction",
            f"maxmemory-policy is {policy}: leases, schedules and queues can be evicted{also}",
            advice,
        )
    elif policy.startswith("volatile") and most:
        yield Finding(
            Severity.WARNING,
            "eviction",
            f"maxmemory-policy is {policy}: the register of candidates and results can be evicted",
            advice,
        )
    if most and server.number("used_memory") > _FULL * most:
        yield Finding(
            Severity.WARNING,
            "memory",
            f"{100 * server.number('used_memory') / most:.0f} % of maxmemory is used",
            "raise maxmemory: a full Redis refuses leases and messages",
        )


def _keeping(server: Server, _: Fleet) -> Iterator[Finding]:
    for field, what in (
        ("aof_last_write_status", "the last write of its append-only file failed"),
        ("rdb_last_bgsave_status", "its last snapshot failed, and it may refuse writes for that"),
    ):
        if server.info.get(field, "ok") != "ok":
            yield Finding(Severity.WARNING, "persistence", what, "see its log, and its disk")
    if server.info.get("aof_enabled") == "0" and server.config.get("save", "unknown") == "":
        yield Finding(
            Severity.WARNING,
            "persistence",
            "it keeps nothing on disk: a restart loses leases, beat's schedule and all queues",
            "set appendonly yes",
        )


def _replicas(server: Server, fleet: Fleet) -> Iterator[Finding]:
    replicas, wanted = server.number("connected_slaves"), fleet.wait_replicas
    least = _whole(server.config.get("min-replicas-to-write"))
    if "connected_slaves" not in server.info:
        return
    if wanted > replicas:
        yield Finding(
            Severity.CRITICAL,
            "replicas",
            f"leader_wait_replicas is {wanted} and {replicas} replica(s) are connected: nobody can"
            " lead",
            "bring replicas back, or lower leader_wait_replicas",
        )
    if least > replicas:
        yield Finding(
            Severity.CRITICAL,
            "replicas",
            f"min-replicas-to-write is {least} and {replicas} replica(s) are connected: Redis"
            " refuses writes",
            "bring replicas back, or lower min-replicas-to-write",
        )
    if replicas and not wanted:
        yield Finding(
            Severity.NOTE,
            "replicas",
            f"{replicas} replica(s) are connected and leader_wait_replicas is 0: a failover to one"
            " that lags can lose the latest leases",
            "set leader_wait_replicas to 1 or more if a failover promotes replicas",
        )
    if replicas and not least and "min-replicas-to-write" in server.config:
        yield Finding(
            Severity.NOTE,
            "replicas",
            "min-replicas-to-write is 0: a master that is cut off from its replicas goes on taking"
            " writes that a failover then loses",
            "set min-replicas-to-write 1",
        )


def _connections(server: Server, fleet: Fleet) -> Iterator[Finding]:
    idle = _whole(server.config.get("timeout"))
    if 0 < idle <= fleet.timing.renew_interval:
        yield Finding(
            Severity.WARNING,
            "timeout",
            f"Redis closes connections that are idle for {idle} s, and leader_renew_interval is"
            f" {fleet.timing.renew_interval:g} s: a leader connects anew for each renewal",
            "set Redis's timeout to 0",
        )
    most, now = server.number("maxclients"), server.number("connected_clients")
    if most and now > _FULL * most:
        yield Finding(
            Severity.WARNING,
            "connections",
            f"{now} of {most} connections are in use",
            "raise maxclients: who finds none left cannot renew its lease",
        )


def _speed(server: Server, fleet: Fleet) -> Iterator[Finding]:
    limit, longest = fleet.timing.operation_timeout, server.longest_round_trip
    seen = f"one answer took {1000 * longest:.0f} ms; leader_operation_timeout is {limit:g} s"
    advice = "set a longer leader_lease_duration: the timeout grows with it, to 1 s by default"
    if longest >= limit:
        yield Finding(Severity.CRITICAL, "speed", f"{seen}: renewals fail", advice)
    elif longest >= limit / 2:
        yield Finding(Severity.WARNING, "speed", f"{seen}: not much is left", advice)
    paused = server.number("latest_fork_usec") / 1e6
    if paused >= limit:
        yield Finding(
            Severity.WARNING,
            "speed",
            f"the last fork, for a snapshot, stopped Redis for {paused:.1f} s, and"
            f" leader_operation_timeout is {limit:g} s",
            "give Redis less data, or leader_operation_timeout more",
        )


def _clock(server: Server, _: Fleet) -> Iterator[Finding]:
    off = abs(server.ahead)
    # Half of the quickest round trip is what nobody can know.
    if off <= _SKEW + min(server.round_trips) / 2:
        return
    yield Finding(
        Severity.WARNING if off > _MUCH_SKEW else Severity.NOTE,
        "clocks",
        f"the clock of Redis is {span(off)} {'ahead of' if server.ahead > 0 else 'behind'} this"
        " machine's: leases do not mind, but crontab times, ETAs and expiries are each machine's"
        " own",
        "synchronise the clocks (NTP)",
    )


# -- the fleet ------------------------------------------------------------------


def _own_app(fleet: Fleet) -> Iterator[Finding]:
    if not fleet.installed:
        yield Finding(
            Severity.WARNING,
            "install",
            "install(app) was not called on this app: its workers elect nobody and know no"
            " leader queue",
            "call celery_leader.install(app) where the app is made",
        )
    lease = fleet.timing.lease_duration
    if lease < _SHORT_LEASE:
        yield Finding(
            Severity.WARNING,
            "durations",
            f"leader_lease_duration is {lease:g} s: a pause of {lease - fleet.timing.margin:.1f} s,"
            " of a machine or of Redis, ends a leadership",
            f"set it to {_SHORT_LEASE:g} s or more",
        )
    if lease > _LONG_LEASE:
        yield Finding(
            Severity.NOTE,
            "durations",
            f"leader_lease_duration is {lease:g} s: so long nobody leads when a leader was killed",
            "set a shorter one if that is too long",
        )


def _election(fleet: Fleet) -> Iterator[Finding]:
    for overview in fleet.overviews:
        name, candidates = overview.election, overview.candidates
        states = [overview.state(each) for each in candidates]
        yield from _unfit(overview)
        if not candidates:
            if name in fleet.needed and overview.unfit is None:
                yield Finding(
                    Severity.WARNING,
                    name,
                    "leader-only tasks name this election and nobody takes part: they wait in"
                    " the leader queue",
                    "start a worker that takes part (leader_elections, --elections)",
                )
            continue
        silent = [n.node for n, state in zip(candidates, states, strict=True) if state == "silent"]
        able = sum(state in ("leader", "follower") for state in states)
        if overview.led is None:
            yield Finding(
                Severity.CRITICAL,
                name,
                f"nobody leads, and {able} candidate(s) could",
                "wait for one lease; then see the candidates' logs"
                if able
                else "see their logs; let held ones in with `celery leader release NODE`",
            )
        elif able == 1:
            yield Finding(
                Severity.NOTE, name, "one candidate only: nobody can take over", "start another"
            )
        if silent:
            yield Finding(
                Severity.NOTE,
                name,
                f"not heard of for more than a lease and a half: {some(silent)}",
                "killed ones are forgotten after three leases; see the logs of the others",
            )
        held = sorted(overview.held)
        if held:
            yield Finding(
                Severity.NOTE,
                name,
                f"kept out of the race: {some(held)}",
                "let them in again with `celery leader release NODE`",
            )


def _unfit(overview: Overview) -> Iterator[Finding]:
    unfit = overview.unfit
    if unfit is None:
        return
    alone = overview.led is None and not overview.candidates
    yield Finding(
        Severity.CRITICAL if alone else Severity.WARNING,
        overview.election,
        f"{unfit.node} gave its lease up, since it was not fit to lead: {unfit.reason}"
        + ("; nobody takes part now" if alone else ""),
        "bring its broker, or its way there, back: it takes part again by itself"
        if unfit.reason == BrokerHeartbeat.reason
        else "see its log: it takes part again when that is over",
    )


def _abstaining(fleet: Fleet) -> Iterator[Finding]:
    for overview in fleet.overviews:
        for each in overview.candidates:
            if each.info and each.info.unfit:
                yield Finding(
                    Severity.WARNING,
                    overview.election,
                    f"{each.node} does not campaign: {each.info.unfit}",
                    "set the wrong clock right, and keep it so (NTP); it campaigns again by itself",
                )


def _likeness(fleet: Fleet) -> Iterator[Finding]:
    everybody = {(each.node, each.life): each for o in fleet.overviews for each in o.candidates}
    for name, values in mixed_settings(everybody.values()).items():
        beyond = name in ("leader_queue", "leader_wait_replicas")
        yield Finding(
            Severity.CRITICAL if beyond else Severity.WARNING,
            "settings",
            f"candidates differ in {name}: {told(values)}",
            "give all of them one value; leader-only tasks that go to another queue wait there"
            if name == "leader_queue"
            else "give all of them one value",
        )
    for package, versions in mixed_versions(everybody.values()).items():
        yield Finding(
            Severity.NOTE,
            "versions",
            f"candidates run different versions of {package}: {told(versions)}",
            "fine during a rolling deployment",
        )


def _namesakes(fleet: Fleet) -> Iterator[Finding]:
    names = {node: places for o in fleet.overviews for node, places in o.namesakes().items()}
    for node, places in names.items():
        yield Finding(
            Severity.WARNING,
            "names",
            f"{len(places)} living nodes are called {node} ({some(places)}): holds, transfers and"
            " metrics of that name are of all of them",
            "give each a name of its own: --hostname of a worker, node= of a LeaderElection, or"
            " another host name",
        )


def _schedulers(fleet: Fleet) -> Iterator[Finding]:
    everybody = [each for o in fleet.overviews for each in o.candidates]
    said = {each.node: each.info for each in everybody if each.info}
    beats = {node: info for node, info in said.items() if info.role == "beat"}
    unfenced = sorted(node for node, info in beats.items() if not info.fenced)
    if unfenced:
        doubled = len(beats) > 1
        used = some({beats[node].scheduler for node in unfenced})
        yield Finding(
            Severity.CRITICAL if doubled else Severity.WARNING,
            "beat",
            f"{some(unfenced)} send every ordinary periodic task, leading or not ({used})"
            + (f", and {len(beats)} beats run: what is due is sent more than once" * doubled),
            "start beats with a scheduler of this package: -S leader, leader-django or"
            ' leader-redbeat (in Django: CELERY_BEAT_SCHEDULER = "leader-django")',
        )
    fenced = {info.scheduler for info in beats.values() if info.fenced and info.scheduler}
    if len(fenced) > 1:
        yield Finding(
            Severity.WARNING,
            "beat",
            f"beats use different schedulers: {some(fenced)}",
            "give all beats one; each counts due times in its own way",
        )
    if fleet.unread and any(scheduler in _READING_THE_APP_ALONE for scheduler in fenced):
        yield Finding(Severity.CRITICAL, "beat", fleet.unread)


def _strangers(fleet: Fleet) -> Iterator[Finding]:
    for overview in fleet.overviews:
        for kin, severity, verb in (
            (Kin.OTHER, Severity.CRITICAL, "takes part"),
            (Kin.UNKNOWN, Severity.WARNING, "may take part"),
        ):
            strange = overview.apps(kin)
            if strange:
                yield Finding(
                    severity,
                    overview.election,
                    f"another project {verb}: {some(map(called, strange))}"
                    f" ({some(overview.nodes_of(strange))}); this one is {called(fleet.app)}",
                    "give one of them another leader_namespace, and another leader_queue or"
                    " task_default_queue",
                )


def _neighbours(server: Server, fleet: Fleet) -> Iterator[Finding]:
    if server.namespaces is None:
        yield Finding(
            Severity.NOTE,
            "namespaces",
            "other projects' elections are unknown: there are too many keys, or no right to SCAN",
            "look for yourself, or run doctor as a user with +scan",
        )
        return
    others = sorted(server.namespaces - {fleet.namespace})
    if others:
        yield Finding(
            Severity.NOTE,
            "namespaces",
            f"other projects elect here, apart from this one ({fleet.namespace}): {some(others)}",
            f"see that none of them has {fleet.queue!r} as its leader_queue",
        )


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


_SERVER: Iterable[Callable[[Server, Fleet], Iterator[Finding]]] = (
    _age,
    _standing,
    _rights,
    _memory,
    _keeping,
    _replicas,
    _connections,
    _speed,
    _clock,
    _neighbours,
)
_FLEET: Iterable[Callable[[Fleet], Iterator[Finding]]] = (
    _own_app,
    _election,
    _abstaining,
    _likeness,
    _namesakes,
    _schedulers,
    _strangers,
)
