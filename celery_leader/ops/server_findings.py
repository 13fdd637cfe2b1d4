"""What is wrong with a Redis that keeps leases, and what to change."""

from __future__ import annotations

from collections.abc import Iterator

from celery_leader.runtime.settings import Settings

from .findings import CRITICAL, NOTE, WARNING, Finding
from .probe import Server
from .words import span

_OLDEST = (6, 2)
_FULL = 0.9  # of memory or of connections
_SKEW, _MUCH_SKEW = 1.0, 30.0  # seconds between two clocks


def about_server(server: Server, settings: Settings) -> Iterator[Finding]:
    """What is wrong with ``server`` for an app with these settings."""
    yield from _unknown(server)
    yield from _kind(server)
    yield from _rights(server, settings.namespace)
    yield from _memory(server)
    yield from _persistence(server)
    yield from _replicas(server, settings.wait_replicas)
    yield from _connections(server, settings.timing.renew_interval)
    yield from _speed(server, settings.timing.operation_timeout)
    yield from _clock(server)


def _unknown(server: Server) -> Iterator[Finding]:
    if not server.info:
        yield Finding(
            NOTE,
            "INFO",
            "this user may not ask, so version, memory, persistence and replicas are unknown",
            "look for yourself, or run doctor as a user with +info",
        )
    if not server.config:
        yield Finding(
            NOTE,
            "CONFIG",
            "this user may not ask, so the timeout, snapshots and least replicas are unknown",
            "look for yourself, or run doctor as a user with +config|get",
        )
    if not server.transactions:
        yield Finding(
            NOTE,
            "rights",
            "this user may not use MULTI, so its rights could not be tried without writing",
            "run doctor as a user with +multi and +discard (the user of a broker needs both)",
        )


def _kind(server: Server) -> Iterator[Finding]:
    text = server.info.get("redis_version", "")
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    if numbers and numbers < _OLDEST:
        yield Finding(
            CRITICAL, "version", f"it is Redis {text}", "run Redis 6.2 or later, or Valkey"
        )
    if server.number("cluster_enabled") and not (server.shards == 1 and server.one_slot):
        shards = "" if server.shards is None else f" of {server.shards} shard(s)"
        yield Finding(
            CRITICAL,
            "cluster",
            f"it is a Redis Cluster{shards}, which Celery cannot use as a broker",
            "name a Redis that is no cluster; one shard works with a hash tag, such as"
            " '{celery}', in global_keyprefix of the transport options",
        )
    if server.info.get("role") == "slave":
        yield Finding(
            CRITICAL,
            "role",
            f"it is a replica of {server.info.get('master_host', 'another')}",
            f"name the master in {server.setting}, or use sentinel://",
        )


def _rights(server: Server, namespace: str) -> Iterator[Finding]:
    # The text of a missing right names the command, so no two are equal: they share one finding.
    missing = sorted(name for name, why in server.refused.items() if "may not do this" in why)
    if missing:
        yield Finding(
            CRITICAL,
            "rights",
            f"the user in {server.setting} may not use {', '.join(missing)} on the keys of the"
            " elections",
            f"allow {' '.join(f'+{name.lower()}' for name in missing)} on the keys"
            f" ~celery-leader:{namespace}:* and those of the queues",
        )
    for why in sorted({why for name, why in server.refused.items() if name not in missing}):
        yield Finding(CRITICAL, "refusals", why, "see what Redis says")


def _memory(server: Server) -> Iterator[Finding]:
    policy, limit = server.info.get("maxmemory_policy", ""), server.number("maxmemory")
    advice = "set maxmemory-policy noeviction, as Celery itself recommends"
    if policy.startswith("allkeys"):
        yield Finding(
            CRITICAL if limit else WARNING,
            "eviction",
            f"maxmemory-policy is {policy}: leases, schedules and queues can be evicted"
            + ("" if limit else " (once maxmemory is set)"),
            advice,
        )
    elif policy.startswith("volatile") and limit:
        yield Finding(
            WARNING,
            "eviction",
            f"maxmemory-policy is {policy}: the register of candidates and results can be evicted",
            advice,
        )
    if limit and server.number("used_memory") > _FULL * limit:
        yield Finding(
            WARNING,
            "memory",
            f"{100 * server.number('used_memory') / limit:.0f} % of maxmemory is used",
            "raise maxmemory: a full Redis refuses leases and messages",
        )


def _persistence(server: Server) -> Iterator[Finding]:
    for field, what in (
        ("aof_last_write_status", "the last write of its append-only file failed"),
        ("rdb_last_bgsave_status", "its last snapshot failed, and it may refuse writes for that"),
    ):
        if server.info.get(field, "ok") != "ok":
            yield Finding(WARNING, "persistence", what, "see its log, and its disk")
    if server.info.get("aof_enabled") == "0" and server.config.get("save", "unknown") == "":
        yield Finding(
            WARNING,
            "persistence",
            "it keeps nothing on disk: a restart loses leases, beat's schedule and all queues",
            "set appendonly yes",
        )


def _replicas(server: Server, wanted: int) -> Iterator[Finding]:
    if "connected_slaves" not in server.info:
        return
    replicas = server.number("connected_slaves")
    least = server.setting_number("min-replicas-to-write")
    for setting, number, so in (
        ("leader_wait_replicas", wanted, "nobody can lead"),
        ("min-replicas-to-write", least, "Redis refuses writes"),
    ):
        if number > replicas:
            yield Finding(
                CRITICAL,
                "replicas",
                f"{setting} is {number} and {replicas} replica(s) are connected: {so}",
                f"bring replicas back, or lower {setting}",
            )
    if replicas and not wanted:
        yield Finding(
            NOTE,
            "replicas",
            f"{replicas} replica(s) are connected and leader_wait_replicas is 0: a failover to a"
            " replica that lags can lose the latest leases",
            "set leader_wait_replicas to 1 or more if a failover promotes replicas",
        )
    if replicas and not least and "min-replicas-to-write" in server.config:
        yield Finding(
            NOTE,
            "replicas",
            "min-replicas-to-write is 0: a master that is cut off from its replicas goes on taking"
            " writes that a failover then loses",
            "set min-replicas-to-write 1",
        )


def _connections(server: Server, renew_interval: float) -> Iterator[Finding]:
    idle = server.setting_number("timeout")
    if 0 < idle <= renew_interval:
        yield Finding(
            WARNING,
            "timeout",
            f"Redis closes connections that are idle for {idle} s, and leader_renew_interval is"
            f" {renew_interval:g} s: a leader connects anew for each renewal",
            "set Redis's timeout to 0",
        )
    limit, used = server.number("maxclients"), server.number("connected_clients")
    if limit and used > _FULL * limit:
        yield Finding(
            WARNING,
            "connections",
            f"{used} of {limit} connections are in use",
            "raise maxclients: a leader that gets no connection cannot renew its lease",
        )


def _speed(server: Server, timeout: float) -> Iterator[Finding]:
    longest = server.longest_round_trip
    if longest >= timeout / 2:
        so = "renewals fail" if longest >= timeout else "not much is left"
        yield Finding(
            CRITICAL if longest >= timeout else WARNING,
            "speed",
            f"one answer took {1000 * longest:.0f} ms; leader_operation_timeout is {timeout:g} s:"
            f" {so}",
            "set a longer leader_lease_duration: the timeout grows with it, to 1 s by default",
        )
    paused = server.number("latest_fork_usec") / 1e6
    if paused >= timeout:
        yield Finding(
            WARNING,
            "speed",
            f"the last fork, for a snapshot, stopped Redis for {paused:.1f} s, and"
            f" leader_operation_timeout is {timeout:g} s",
            "give Redis less data, or leader_operation_timeout more",
        )


def _clock(server: Server) -> Iterator[Finding]:
    off = abs(server.ahead)
    # The measurement may be wrong by half of the quickest round trip.
    if off > _SKEW + min(server.round_trips) / 2:
        yield Finding(
            WARNING if off > _MUCH_SKEW else NOTE,
            "clocks",
            f"the clock of Redis is {span(off)} {'ahead of' if server.ahead > 0 else 'behind'}"
            " this machine's: leases do not mind, but crontab times, ETAs and expiries follow the"
            " clock of each machine",
            "synchronise the clocks (NTP)",
        )
