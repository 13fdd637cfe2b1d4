"""Prometheus metrics of this process's elections; needs the package prometheus-client.

Guaranteed: a scrape reads memory only. So a process that is cut off from Redis still answers,
and no renewal or dispatch waits for a scrape. Not guaranteed: that other nodes still are as
this process saw them last; ``celery leader status`` asks Redis.

With ``leader_metrics_port`` workers and beats serve these metrics. For your own registry, or
in another process, use ``LeaderMetrics(app, registry)``. Pool processes count nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

from celery import Celery

from .compat.celery import worker_pid
from .core.events import (
    Deposed,
    Dispatched,
    DispatchRefused,
    Elected,
    Event,
    Followed,
    Forwarded,
    Renewed,
    Skipped,
    Unanswered,
)
from .errors import LeaderError
from .runtime.app_runtime import runtime_of
from .runtime.local_candidate import Standing
from .runtime.settings import BEAT

try:
    from prometheus_client import REGISTRY, Counter, Histogram, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector, CollectorRegistry
except ImportError as exc:
    raise LeaderError(
        "metrics need prometheus-client: pip install 'celery-leader[prometheus]'"
    ) from exc

_Family = CounterMetricFamily | GaugeMetricFamily

_CANDIDATE = ("election", "node")

#: Seconds, from a Redis on the same host to the longest sensible leader_operation_timeout.
_LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LeaderMetrics(Collector):
    """The metrics of one app's elections in this process.

    Args:
        app: the Celery app. Counting begins when this object is made.
        registry: where the metrics are registered. A registry takes the metrics of one app.

    Raises:
        LeaderError: the registry already has metrics of these names.
    """

    def __init__(self, app: Celery, registry: CollectorRegistry = REGISTRY) -> None:
        self._runtime = runtime_of(app)
        self._leaderless: dict[tuple[str, str], float] = {}

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"celery_leader_{name}", what, (*_CANDIDATE, *labels), registry=registry)

        try:
            registry.register(self)
        except ValueError as exc:
            raise LeaderError(
                f"this Prometheus registry already has metrics of celery_leader: {exc}"
            ) from exc
        self._changes = counter("transitions", "Leaderships that this node heard of.")
        self._depositions = counter("depositions", "Ends of this node's own leading.", "reason")
        self._failed_renewals = counter(
            "failed_renewals", "Attempts to renew this node's lease that got no answer."
        )
        self._unanswered = counter(
            "unanswered", "Requests of any kind to the Redis of the leases without an answer."
        )
        self._latency = Histogram(
            "celery_leader_renewal_seconds",
            "From the request to renew a lease to its answer.",
            _CANDIDATE,
            registry=registry,
            buckets=_LATENCIES,
        )
        self._dispatched = counter("dispatched", "Ticks whose message this beat has sent.")
        self._refused = counter("dispatch_refused", "Ticks that Redis refused.", "reason")
        self._forwarded = counter("forwarded", "Messages given to the leader queue.", "task")
        self._skipped = counter("skipped", "Leader-only tasks skipped.", "task", "by")
        self._runtime.observers.add(self._count)
        self._runtime.counts_backlogs = True

    def describe(self) -> Iterator[Metric]:
        """The metrics that ``collect`` yields, without values."""
        yield from _families()

    def collect(self) -> Iterator[Metric]:
        """The state of each candidate of this process; no I/O."""
        every = _families()
        leading, term, renewal, contact, leaderless, stepping_down, waiting, in_flight = every
        for standing in self._runtime.participation.standings():
            labels = (standing.election, standing.node)
            leading.add_metric(labels, float(standing.leading))
            term.add_metric(labels, standing.term or standing.leader_term)
            # A follower never renews, so this is left out for it.
            if standing.leading and standing.last_renewal is not None:
                renewal.add_metric(labels, standing.last_renewal)
            if standing.last_contact is not None:
                contact.add_metric(labels, standing.last_contact)
            leaderless.add_metric(labels, self._grown(standing))
            if standing.giving_way_for is not None:
                stepping_down.add_metric(labels, standing.giving_way_for)
        for election, backlog in list(self._runtime.backlogs.items()):
            in_flight.add_metric((election, backlog.node), backlog.in_flight())
            count = backlog.waiting()
            if count is not None:
                waiting.add_metric((election, backlog.node), count)
        yield from every

    def _grown(self, standing: Standing) -> float:
        """The most leaderless seconds so far.

        Some are taken back when a leadership that seemed over goes on. A counter must not fall.
        """
        labels = (standing.election, standing.node)
        most = max(standing.leaderless_seconds, self._leaderless.get(labels, 0.0))
        self._leaderless[labels] = most
        return most

    def _count(self, event: Event) -> None:
        if worker_pid() is not None:
            return  # nobody scrapes a pool process, and the fork may have left locks taken
        match event:
            case Renewed(election, node, _, latency):
                self._latency.labels(election, node).observe(latency)
            case Unanswered(election, node, term):
                self._unanswered.labels(election, node).inc()
                if term is not None:
                    self._failed_renewals.labels(election, node).inc()
            case Dispatched(election, node):
                self._dispatched.labels(election, node).inc()
            case DispatchRefused(election, node, _, _, reason):
                self._refused.labels(election, node, reason).inc()
            case Forwarded(election, node, task):
                self._forwarded.labels(election, node, task).inc()
            case Skipped(election, node, task, _, by):
                self._skipped.labels(election, node, task, by).inc()
            case Elected(election, node) | Followed(election, node):
                self._begin(election, node)
                self._changes.labels(election, node).inc()
            case Deposed(election, node, _, reason):
                self._depositions.labels(election, node, reason).inc()

    def _begin(self, election: str, node: str) -> None:
        # A counter that appears with its first event shows no increase for that event.
        for metric in (self._failed_renewals, self._unanswered, self._latency):
            metric.labels(election, node)
        if election == BEAT:
            self._dispatched.labels(election, node)


def _families() -> tuple[_Family, ...]:
    def family(kind: Callable[..., _Family], name: str, what: str) -> _Family:
        return kind(f"celery_leader_{name}", what, labels=_CANDIDATE)

    return (
        family(GaugeMetricFamily, "leading", "1 while this node leads, 0 while it follows."),
        family(GaugeMetricFamily, "term", "The latest term that this node knows of."),
        family(
            GaugeMetricFamily,
            "seconds_since_renewal",
            "Since this leader last got or kept its lease; absent while it follows.",
        ),
        family(
            GaugeMetricFamily,
            "seconds_since_contact",
            "Since the Redis of the leases last answered this process.",
        ),
        family(
            CounterMetricFamily,
            "leaderless_seconds",
            "For how long, as far as this node knows, nobody led.",
        ),
        family(
            GaugeMetricFamily,
            "seconds_stepping_down",
            "Since this leader was asked to step down; absent if it was not.",
        ),
        family(
            GaugeMetricFamily,
            "queue_messages",
            "Messages waiting in the leader queue, as this leader last counted them.",
        ),
        family(
            GaugeMetricFamily,
            "queue_in_flight",
            "Messages of the leader queue that this node has fetched and is not done with.",
        ),
    )


def listen(address: str, port: int) -> socket.socket:
    """Serve this process's registry over HTTP in a thread; returns the listening socket.

    Raises:
        OSError: the address cannot be used.
    """
    server, _ = start_http_server(port, address)
    listening: socket.socket = server.socket
    return listening
