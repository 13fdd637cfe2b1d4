"""pytest-celery's fixtures with leaders in them: one Redis, three workers, two beats."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestSetup,
    CeleryWorkerCluster,
    RedisTestBackend,
    RedisTestBroker,
)
from pytest_docker_tools import build, container, fxtr

from tests.smoke.components import (
    BeatCluster,
    DurableRedisContainer,
    LeaderBeat,
    LeaderBeatContainer,
    LeaderSetup,
    LeaderWorker,
    LeaderWorkerContainer,
)
from tests.smoke.engine import (
    NEWEST,
    OLDEST,
    REDIS_IMAGE,
    build_arguments,
    no_engine,
    unavailable,
)
from tests.smoke.fleet import ContainerFleet
from tests.support import ROOT
from tests.support.redis_server import free_port

WORKERS = 3
BEATS = 2
_TAIL = 6000  # characters of a log shown when a test fails

#: Starts one more node of a class, from an image.
NewNode = Callable[[Any, Any], Any]


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """A container engine that answers; without one the tests here skip, or fail in CI."""
    reason = no_engine()
    if reason is not None:
        unavailable(reason)


celery_base_worker_image = build(
    path=str(ROOT), tag="celery-leader-smoke:newest", buildargs=build_arguments(NEWEST)
)

oldest_image = build(
    path=str(ROOT),
    tag="celery-leader-smoke:oldest",
    buildargs=build_arguments(OLDEST),
)


@pytest.fixture
def redis_port() -> dict[str, tuple[str, int]]:
    """One port of the host that stays the same when the container is restarted."""
    return {"6379/tcp": ("127.0.0.1", free_port())}


@pytest.fixture
def redis_command() -> list[str]:
    return DurableRedisContainer.command()


durable_redis = container(
    image=REDIS_IMAGE,
    ports=fxtr("redis_port"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=DurableRedisContainer,
    command=fxtr("redis_command"),
    timeout=60,
)


@pytest.fixture
def celery_broker_cluster(durable_redis: DurableRedisContainer) -> CeleryBrokerCluster:
    return CeleryBrokerCluster(RedisTestBroker(durable_redis))


@pytest.fixture
def celery_backend_cluster(durable_redis: DurableRedisContainer) -> CeleryBackendCluster:
    return CeleryBackendCluster(RedisTestBackend(durable_redis))


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    return LeaderSetup


@pytest.fixture
def default_worker_container_cls() -> type[LeaderWorkerContainer]:
    return LeaderWorkerContainer


@pytest.fixture
def new_node(
    docker_client: Any,
    default_pytest_celery_network: Any,
    default_worker_volume: Any,
    default_worker_env: dict[str, str],
    celery_setup_app: Celery,
    request: pytest.FixtureRequest,
) -> Iterator[NewNode]:
    """Starts nodes without waiting for each, and removes them at the end."""
    started: list[Any] = []

    def start(node: Any, image: Any) -> Any:
        kind = LeaderBeatContainer if node is LeaderBeat else LeaderWorkerContainer
        raw = docker_client.containers.run(
            image.id,
            kind.command(),
            init=True,
            environment=default_worker_env,
            network=default_pytest_celery_network.name,
            volumes={default_worker_volume.name: {"bind": "/app", "mode": "ro"}},
            detach=True,
        )
        started.append(raw)
        return node(kind(raw), celery_setup_app)

    yield start
    report = getattr(request.node, "failed_report", None)
    for raw in started:
        if report is not None:
            log = raw.logs().decode(errors="replace")[-_TAIL:]
            report.sections.append((f"log of {raw.name} ({raw.id[:12]})", log))
        with contextlib.suppress(Exception):
            raw.remove(force=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    """Leave the report of a failure where the logs can be added to it."""
    report = yield
    if report.failed:
        item.failed_report = report
    return report


@pytest.fixture
def fleet_image(celery_base_worker_image: Any) -> Any:
    """What the fleet starts with."""
    return celery_base_worker_image


@pytest.fixture
def celery_worker_cluster(new_node: NewNode, fleet_image: Any) -> CeleryWorkerCluster:
    return CeleryWorkerCluster(*[new_node(LeaderWorker, fleet_image) for _ in range(WORKERS)])


@pytest.fixture
def celery_beat_cluster(new_node: NewNode, fleet_image: Any) -> BeatCluster:
    return BeatCluster(*[new_node(LeaderBeat, fleet_image) for _ in range(BEATS)])


@pytest.fixture
def fleet(
    celery_worker_cluster: CeleryWorkerCluster,
    celery_beat_cluster: BeatCluster,
    celery_setup: LeaderSetup,
    durable_redis: DurableRedisContainer,
    default_pytest_celery_network: Any,
) -> Iterator[ContainerFleet]:
    """All nodes take part, and somebody leads the workers and the beats."""
    with contextlib.closing(durable_redis.client) as client:
        fleet = ContainerFleet(
            client,
            celery_setup.app,
            default_pytest_celery_network,
            [*celery_worker_cluster, *celery_beat_cluster],
        )
        fleet.settle()
        yield fleet
    celery_setup.app.close()
