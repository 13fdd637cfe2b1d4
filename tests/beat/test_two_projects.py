"""Two projects in one Redis, and what each says and leaves alone; real beats and workers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support import ROOT, project
from tests.support.fleet import LASTING, Process
from tests.support.waiting import wait_until

SCHEDULE, PROJECTS = "celery-leader:celery:schedule:beat", "celery-leader:celery:projects:beat"
FOREIGN = "of another project ('app'; this one is 'app'): their tasks are others"
NewProject = Any


class ProjectProcess(Process):
    """A process of ``tests.support.project``."""

    app = "tests.support.project"


class Project:
    """One project: what its processes are told, and those that run."""

    def __init__(self, directory: Path, broker: str, name: str, **config: Any) -> None:
        self.directory = directory
        self.config = {"name": "app", "broker": broker, "conf": LASTING, **config}
        self.called = name
        self.processes: list[Process] = []

    def start(self, *command: str, node: str = "", **config: Any) -> Process:
        """Start ``celery -A project`` with ``command``."""
        log = self.directory / f"{self.called}.{len(self.processes)}.log"
        environment = {project.VARIABLE: json.dumps({**self.config, **config})}
        with _environment(environment):
            process = ProjectProcess(log.stem, node, command, {}, log)
        self.processes.append(process)
        return process

    def beat(self, **config: Any) -> Process:
        return self.start("beat", "-S", "leader", "-l", "info", **config)

    def worker(self, node: str, **config: Any) -> Process:
        quiet = ("--without-mingle", "--without-gossip", "-P", "solo", "-l", "info")
        return self.start("worker", "-n", node, *quiet, node=node, **config)

    def run(self, *command: str) -> str:
        """Run a command to its end; what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", ProjectProcess.app, *command],
            cwd=ROOT,
            env={**os.environ, project.VARIABLE: json.dumps(self.config)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture
def new_project(redis_url: str, tmp_path: Path) -> Iterator[NewProject]:
    made: list[Project] = []

    def new(name: str, **config: Any) -> Project:
        made.append(Project(tmp_path, redis_url, name, **config))
        return made[-1]

    yield new
    for each in made:
        for process in each.processes:
            process.close()


def tasks(name: str, count: int = 4, first: int = 0) -> list[str]:
    return [f"{name}.t{number}" for number in range(first, first + count)]


def entries(task: str, *names: str, every: float = 0.5) -> dict[str, Any]:
    return {name: {"task": task, "every": every} for name in names}


def states(client: redis.Redis) -> dict[str, dict[str, Any]]:
    return {name: json.loads(text) for name, text in client.hgetall(SCHEDULE).items()}


def test_a_second_project_of_the_same_name_is_told_loudly_and_a_second_version_is_not(
    new_project: NewProject,
) -> None:
    books, shop = (
        new_project("books", tasks=tasks("books")),
        new_project("shop", tasks=tasks("shop")),
    )
    books.worker("w1@books").says("elected, term")
    later = books.worker("w2@books", tasks=tasks("books", first=1))
    later.says("w1@books leads")
    part = books.worker("w3@books", tasks=tasks("books", count=1), name="books-web")
    part.says("w1@books leads")
    stranger = shop.worker("w1@shop")
    stranger.says("ERROR/MainProcess] worker: w1@books, which leads, is " + FOREIGN)
    stranger.says("give one of them another leader_namespace, and another leader_queue or")
    assert stranger.log.count(FOREIGN) == 1
    findings = json.loads(shop.run("leader", "doctor", "--json"))["findings"]
    strange = [each for each in findings if "another project" in each["what"]]
    assert [(each["severity"], each["about"]) for each in strange] == [("critical", "worker")]
    assert "another project takes part: 'app'" in books.run("leader", "status")
    for mine in (later, part):
        assert "another project" not in mine.log


def test_what_another_project_wrote_is_neither_deleted_nor_written_over(
    new_project: NewProject, redis_url: str
) -> None:
    every_day = 86400.0
    own = {
        **entries("books.t0", "cleanup", every=every_day),
        **entries("books.t1", "b1", "b2", "b3"),
    }
    books = new_project("books", tasks=tasks("books"), entries=own)
    own = {**entries("shop.t0", "cleanup"), **entries("shop.t1", "s1", "s2", "s3")}
    shop = new_project("shop", tasks=tasks("shop"), entries=own)
    short = {**LASTING, "leader_schedule_retention": 1}
    with contextlib.closing(redis.Redis.from_url(redis_url, decode_responses=True)) as client:
        first = books.beat()
        wait_until(lambda: client.llen("celery.leader"), what="a message of the first project")
        assert first.terminate() == 0
        before = states(client)
        assert before.keys() == {"cleanup", "b1", "b2", "b3"}
        (theirs,) = {state["project"] for state in before.values()}

        second = shop.beat(conf=short)
        second.says("ERROR/MainProcess] beat: cleanup is not sent, because another project ('app')")
        second.says(f"redis-cli HDEL {PROJECTS} {theirs}")
        wait_until(lambda: states(client).keys() > {"s1", "s2", "s3"}, what="its own entries")
        wait_until(lambda: states(client)["s1"]["total_run_count"] > 4, what="its ticks")
        after = states(client)
        assert {name: after[name] for name in before} == before
        assert client.hlen(PROJECTS) == 2
        assert second.terminate() == 0
        assert second.log.count("cleanup is not sent") == 1
        assert not any("shop.t0" in each for each in client.lrange("celery.leader", 0, -1))

        # The first one goes on where it was, and so does the advice.
        back = books.beat(tasks=tasks("books", first=1), entries={**books.config["entries"]})
        back.says("elected")
        wait_until(
            lambda: states(client)["b1"]["total_run_count"] > before["b1"]["total_run_count"]
        )
        assert "another project" not in back.log
        assert {state["project"] for state in states(client).values()} > {theirs}
        assert back.terminate() == 0
        client.hdel(PROJECTS, theirs)
        shop.beat().says("elected")
        wait_until(lambda: states(client)["cleanup"]["project"] != theirs, what="its adoption")


def test_a_project_whose_tasks_were_all_renamed_goes_on_with_its_entries(
    new_project: NewProject, redis_url: str
) -> None:
    books = new_project("books", tasks=tasks("books"), entries=entries("books.t0", "b1", "b2"))
    with contextlib.closing(redis.Redis.from_url(redis_url, decode_responses=True)) as client:
        first = books.beat()
        wait_until(lambda: client.llen("celery.leader"), what="a message")
        assert first.terminate() == 0
        (written,) = {state["project"] for state in states(client).values()}
        second = books.beat(tasks=tasks("moved"), entries=entries("moved.t0", "b1", "b2"))
        wait_until(
            lambda: any("moved.t0" in each for each in client.lrange("celery.leader", 0, -1)),
            what="a message of the later version",
        )
        assert "not sent" not in second.log
        assert {state["project"] for state in states(client).values()} == {written}
        assert client.hlen(PROJECTS) == 1
