"""The manifests and units are valid, the checks see what is not, and what they run does run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis

from examples.kubernetes import show as kubernetes
from examples.systemd import show as systemd
from tests.support import ROOT
from tests.support.launching import launch, without_celery_variables
from tests.support.services import must_have
from tests.support.waiting import wait_until

APP = ROOT / "examples" / "quickstart"
VERSION = kubernetes_validate.latest_version()
OBJECTS = list(kubernetes.documents())


def described(each: tuple[str, dict[str, Any]]) -> str:
    _, document = each
    return f"{document['kind']} {document['metadata']['name']}"


# -- Kubernetes ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [*kubernetes.VERSIONS, VERSION])
@pytest.mark.parametrize("each", OBJECTS, ids=described)
def test_an_object_is_what_that_version_of_kubernetes_takes(
    each: tuple[str, dict[str, Any]], version: str
) -> None:
    assert kubernetes.complaint(each[1], version) is None


def test_a_field_that_there_is_not_or_of_another_type_is_found() -> None:
    beat = next(document for _, document in OBJECTS if document["kind"] == "Deployment")
    misspelled = {**beat, "spec": {**beat["spec"], "replica": 2}}
    assert "replica" in (kubernetes.complaint(misspelled, VERSION) or "")
    of_another_type = {**beat, "spec": {**beat["spec"], "replicas": "2"}}
    assert "replicas" in (kubernetes.complaint(of_another_type, VERSION) or "")


def test_every_manifest_is_in_the_kustomization() -> None:
    there = {file.name for file in kubernetes.HERE.glob("*.yaml")} - {"kustomization.yaml"}
    assert {name for name, _ in OBJECTS} == there


def deployment(name: str) -> dict[str, Any]:
    (found,) = (
        document
        for _, document in OBJECTS
        if document["kind"] == "Deployment" and document["metadata"]["name"] == name
    )
    return found


@pytest.mark.parametrize("name", ["worker", "beat"])
def test_labels_and_selectors_agree_and_an_update_never_takes_the_last(name: str) -> None:
    spec = deployment(name)["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    budgets = [
        document["spec"]
        for _, document in OBJECTS
        if document["kind"] == "PodDisruptionBudget"
        and document["spec"]["selector"]["matchLabels"] == labels
    ]
    assert len(budgets) == 1
    assert spec["replicas"] >= 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


# -- systemd ---------------------------------------------------------------------------------


@pytest.fixture
def systemd_there() -> None:
    must_have(shutil.which("systemd-analyze"), "there is no systemd-analyze here")


@pytest.mark.usefixtures("systemd_there")
def test_systemd_has_nothing_against_the_units(tmp_path: Path) -> None:
    assert systemd.verify(systemd.laid_out(tmp_path)) == []


@pytest.mark.usefixtures("systemd_there")
@pytest.mark.parametrize(
    ("unit", "right", "wrong"),
    [
        ("celery-beat@.service", "KillMode=mixed", "KillMode=gently"),
        ("celery-worker@.service", "RestartSec=2", "RestartSecs=2"),
        ("celery-worker@.service", "/bin/celery -A", "/bin/cellery -A"),
    ],
)
def test_a_mistake_in_a_unit_is_found(tmp_path: Path, unit: str, right: str, wrong: str) -> None:
    units = systemd.laid_out(tmp_path)
    text = (units / unit).read_text()
    assert right in text
    (units / unit).write_text(text.replace(right, wrong))
    (line,) = systemd.verify(units)
    assert "celery" in line


def exec_start(unit: str, instance: str) -> list[str]:
    """The command of a unit, as systemd would run it."""
    text = (systemd.HERE / unit).read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    return shlex.split(command.replace("%%", "\0").replace("%i", instance).replace("\0", "%"))


# -- what either of them runs ----------------------------------------------------------------


class Running:
    """A command of a manifest or unit, run over the quickstart's app."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        self._process = launch(here(command), log, cwd=APP, env=environment)

    def says(self, text: str) -> None:
        def said() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            return text in self._log.read_text()

        wait_until(said, timeout=90, what=f"{self._process.args} to say {text!r}")

    def told(self, number: int) -> int:
        """Send ``number`` to the main process alone; its exit code."""
        self._process.send_signal(number)
        return self._process.wait(90)

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def here(command: list[str]) -> list[str]:
    """``command`` with this environment's Celery, and the quickstart's app for ``proj``."""
    program, *arguments = command
    assert Path(program).name == "celery"
    celery = str(Path(sys.executable).with_name("celery"))
    return [celery, *("quickstart" if each == "proj" else each for each in arguments)]


@pytest.fixture
def environment(redis_url: str) -> dict[str, str]:
    return without_celery_variables(REDIS_URL=redis_url, PYTHONDONTWRITEBYTECODE="1")


def commands_of(source: str) -> tuple[list[str], list[str]]:
    if source == "systemd":
        return exec_start("celery-worker@.service", "1"), exec_start("celery-beat@.service", "1")
    containers = [
        deployment(name)["spec"]["template"]["spec"]["containers"][0] for name in ("worker", "beat")
    ]
    return containers[0]["command"], containers[1]["command"]


@pytest.fixture
def running(
    request: pytest.FixtureRequest, environment: dict[str, str], tmp_path: Path
) -> Iterator[tuple[Running, Running]]:
    worker, beat = commands_of(request.param)
    pair = (
        Running(worker, tmp_path / "worker.log", environment),
        Running(beat, tmp_path / "beat.log", environment),
    )
    yield pair
    for each in pair:
        each.close()


def probes(name: str) -> set[tuple[str, ...]]:
    """The different commands among the three probes of a deployment."""
    container = deployment(name)["spec"]["template"]["spec"]["containers"][0]
    kinds = ("startupProbe", "readinessProbe", "livenessProbe")
    return {tuple(container[kind]["exec"]["command"]) for kind in kinds}


def ran(environment: dict[str, str], command: Iterable[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        here(list(command)),
        cwd=APP,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("running", ["kubernetes", "systemd"], indirect=True)
def test_what_is_run_leads_is_well_and_passes_the_lead_on_at_sigterm(
    running: tuple[Running, Running], environment: dict[str, str], redis_url: str
) -> None:
    worker, beat = running
    worker.says("worker: elected")
    beat.says("beat: elected")
    for command in probes("worker"):
        said = ran(environment, command)
        assert said.returncode == 0, said.stdout + said.stderr
        assert socket.gethostname() in said.stdout
    assert worker.told(signal.SIGTERM) == 0
    assert beat.told(signal.SIGTERM) == 0
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        for election in ("worker", "beat"):
            record = client.hgetall(f"celery-leader:celery:election:{election}")
            assert record["state"] == "released", json.dumps(record)
        client.flushall()  # as if it had been silent for long
    for command in probes("worker"):
        unwell = ran(environment, command)
        assert unwell.returncode == 1, unwell.stdout + unwell.stderr
