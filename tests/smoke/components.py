"""Components for pytest-celery: workers that elect a leader, beats that do, and their Redis.

To have them in a suite of your own, copy this file, ``leader_app.py``, ``leader_utils.py`` and
what ``conftest.py`` makes of them; ``leader_tasks.py`` stands for your tasks.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from celery import Celery
from pytest_celery import (
    CeleryTestCluster,
    CeleryTestNode,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerContainer,
    RedisContainer,
)

from tests.smoke import leader_app, leader_tasks, leader_utils

LEASE = 5.0
TICKS = "ticks"
# Seconds until a *plain* task that a killed worker had in hand is delivered again: each tick is
# one. Leader-only tasks do not need it.
VISIBILITY_TIMEOUT = 15


class DurableRedisContainer(RedisContainer):
    """A Redis that keeps its data when it is restarted, reached from the host by its port."""

    @classmethod
    def command(cls, *args: str, **_: Any) -> list[str]:
        return [
            *("redis-server", "--appendonly", "yes", "--protected-mode", "no"),
            *("--maxmemory-policy", "noeviction", *args),
        ]

    @property
    def port(self) -> int:
        # pytest-docker-tools looks elsewhere if this machine itself seems to be a container.
        return int(self.attrs["NetworkSettings"]["Ports"]["6379/tcp"][0]["HostPort"])

    @property
    def host_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/{self.vhost}"

    def ready(self) -> bool:
        # Once for a first start and a restart; the log of a first start stays.
        self.reload()
        return self.exec_run(["redis-cli", "ping"])[0] == 0


class LeaderWorkerContainer(CeleryWorkerContainer):
    """A worker of the shipped image."""

    @classmethod
    def command(cls, *args: str, **_: Any) -> list[str]:
        return super().command("--concurrency", "1", *args)

    @classmethod
    def app_module(cls) -> ModuleType:
        return leader_app

    @classmethod
    def utils_module(cls) -> ModuleType:
        return leader_utils

    @classmethod
    def tasks_modules(cls) -> set[ModuleType]:
        return {leader_tasks}


class LeaderBeatContainer(LeaderWorkerContainer):
    """A beat of the same image and app."""

    @classmethod
    def command(cls, *args: str, **_: Any) -> list[str]:
        level = f"--loglevel={cls.log_level()}"
        return ["celery", "-A", "app", "beat", "--scheduler", "leader", level, *args]

    @property
    def ready_prompt(self) -> str:
        return "beat: Starting..."


class LeaderWorker(CeleryTestWorker):
    """A worker, which may be given what containers suffer."""

    election = "worker"

    def is_called(self, node: str) -> bool:
        """Whether ``node`` is the name under which it campaigns."""
        return node == self.hostname()


class LeaderBeat(CeleryTestNode):
    """A beat, likewise."""

    election = "beat"

    def is_called(self, node: str) -> bool:
        """Whether ``node`` is the name under which it campaigns."""
        return node.startswith(f"beat@{self.hostname()}:")


class BeatCluster(CeleryTestCluster):
    """The beats of a test."""


class LeaderSetup(CeleryTestSetup):
    """Short leases, and a schedule whose messages wait in a queue of their own."""

    @classmethod
    def update_app_config(cls, app: Celery) -> None:
        app.conf.update(
            leader_lease_duration=LEASE,
            # As many attempts as fit in: the machine may be slow.
            leader_renew_interval=1.0,
            leader_renew_attempts=5,
            leader_operation_timeout=0.6,
            leader_beat_catch_up="all",
            beat_schedule={
                "tick": {"task": "smoke.tick", "schedule": 1.0, "options": {"queue": TICKS}}
            },
            task_acks_late=True,
            task_ignore_result=True,
            worker_prefetch_multiplier=1,
            broker_connection_retry_on_startup=True,
            broker_transport_options={
                "visibility_timeout": VISIBILITY_TIMEOUT,
                "unacked_restore_interval": 1,
                "unacked_restore_throttle": 1,
                "unacked_mutex_expire": 5,
            },
        )
