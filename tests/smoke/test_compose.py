"""``docker-compose up``, as it is shipped: it elects, fails over, and says that it is well."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from tests.smoke.engine import compose, unavailable
from tests.support import ROOT
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(1200)

PATIENCE = 300.0  # seconds; used up by a failure only
STATUS = ("celery", "-A", "proj", "leader", "status")


class Project:
    """One project of Compose, with names of its own, gone at its end.

    Args:
        command: how Compose is called.
    """

    def __init__(self, command: list[str]) -> None:
        self._command = [*command, "--project-name", f"leader-{uuid.uuid4().hex[:8]}"]
        self._environment = {**os.environ, "LEADER_LEASE_DURATION": "5"}

    def __call__(self, *arguments: str, accept: int = 0) -> str:
        ran = run([*self._command, *arguments], self._environment)
        assert ran.returncode == accept, f"{arguments}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    def containers(self, service: str) -> list[str]:
        """The ids of the containers of ``service``."""
        return self("ps", "--quiet", service).split()

    def leader(self, service: str, *, other_than: str = "") -> str:
        """Wait until a container of ``service`` says that it was elected, after the others."""

        def elected() -> str | None:
            said = [
                (line, container)
                for container in self.containers(service)
                for line in log(container).splitlines()
                if f"{service}: elected" in line
            ]
            last = max(said, default=("", ""))[1]  # each line begins with its time
            return last if last != other_than else None

        return wait_until(elected, PATIENCE, f"a leader of the {service}s") or ""

    def status(self) -> str:
        """What ``celery leader status`` says in a worker."""
        return self("exec", "-T", "worker", *STATUS)


@pytest.fixture
def project() -> Iterator[Project]:
    command = compose()
    if command is None:
        unavailable("neither docker compose nor docker-compose is installed")
        raise AssertionError
    project = Project(command)
    try:
        yield project
    finally:
        project("down", "--volumes", "--timeout", "10")


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def docker(*arguments: str) -> str:
    ran = run(["docker", *arguments], dict(os.environ))
    assert ran.returncode == 0, f"docker {arguments}: {ran.stderr}"
    return ran.stdout + ran.stderr


def log(container: str) -> str:
    return docker("logs", container)


def health(container: str) -> str:
    return docker("inspect", "--format", "{{.State.Health.Status}}", container).strip()


def test_a_fleet_of_compose_elects_is_well_and_survives_its_leading_beat(project: Project) -> None:
    project("up", "--build", "--detach", "--scale", "worker=3", "--scale", "beat=3")
    worker, beat = project.leader("worker"), project.leader("beat")
    everybody = [*project.containers("worker"), *project.containers("beat")]
    assert len(everybody) == 6
    for container in everybody:
        wait_until(lambda: health(container) == "healthy", PATIENCE, f"{container} to be healthy")
    status = project.status()
    assert worker[:12] in status
    assert beat[:12] in status

    docker("kill", beat)
    successor = project.leader("beat", other_than=beat)
    wait_until(lambda: "Sending due task" in log(successor), PATIENCE, "its first dispatch")
    assert successor[:12] in project.status()

    # Asked to stop, each gives its lease up and ends by itself.
    project("stop", "--timeout", "30", "worker", "beat")
    for service in ("worker", "beat"):
        for container in project.containers(service):
            code = docker("inspect", "--format", "{{.State.ExitCode}}", container).strip()
            # A warm shutdown of Celery's own can hang, and the engine then kills.
            killed = container == beat or service == "worker"
            assert code == "0" or (code == "137" and killed), log(container)
    assert "beat: no leader" in project("run", "--rm", "-T", "worker", *STATUS, accept=1)


def test_the_users_of_all_containers_are_nobody_in_particular(project: Project) -> None:
    project("up", "--build", "--detach", "worker")
    for service in ("redis", "worker"):
        (container, *_) = project.containers(service)
        assert docker("exec", container, "id", "-u").strip() != "0"


def test_prometheus_and_flower_see_the_fleet(project: Project) -> None:
    project("--profile", "monitoring", "up", "--build", "--detach")
    project.leader("worker")
    project.leader("beat")
    (worker, *_) = project.containers("worker")

    def answer(url: str) -> str:
        code = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=30).read().decode())"
        ran = run(["docker", "exec", worker, "python", "-c", code], dict(os.environ))
        return ran.stdout

    def leaders() -> list[float]:
        said = answer("http://prometheus:9090/api/v1/query?query=celery_leader_leading")
        samples = json.loads(said)["data"]["result"] if said else []
        return sorted(float(sample["value"][1]) for sample in samples)

    # Two workers and two beats, one of each leading.
    wait_until(lambda: leaders() == [0, 0, 1, 1], PATIENCE, "Prometheus to have scraped everybody")
    assert "CeleryNobodyLeads" in answer("http://prometheus:9090/api/v1/rules")
    wait_until(lambda: worker[:12] in answer("http://flower:5555/workers"), PATIENCE, "Flower")
