"""``celery -A proj leader …`` where something is wrong: with Redis, the network, or the user."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery

from celery_leader import install
from tests.support import command
from tests.support.fixtures import RunPython
from tests.support.fleet import LASTING, QUICK, Fleet
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.strange_servers import http_server
from tests.support.waiting import wait_until

COMMANDS = {
    "status": ("status",),
    "watch": ("status", "--watch"),
    "history": ("history",),
    "resign": ("resign", "--election", "worker"),
    "transfer": ("transfer", "w1@fleet", "--election", "worker"),
    "hold": ("hold", "w1@fleet", "--election", "worker"),
    "release": ("release", "w1@fleet"),
    "doctor": ("doctor",),
}
every_command = pytest.mark.parametrize("name", COMMANDS)


def refused(fleet: Fleet, name: str, **config: Any) -> str:
    """The one line that a command ends with."""
    done = command.run(fleet.sender(**config), *COMMANDS[name])
    assert (done.returncode, done.stdout) == (2, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


@every_command
def test_without_a_redis_it_says_which_one_and_what_to_do(new_fleet: Any, name: str) -> None:
    line = refused(new_fleet("redis://:secret@127.0.0.1:1/0"), name)
    assert line.startswith("the Redis in broker_url cannot be reached: ")
    assert "start it, or correct broker_url" in line
    assert "secret" not in line


@every_command
def test_a_broker_in_memory_has_nothing_to_see_or_move(new_fleet: Any, name: str) -> None:
    line = refused(new_fleet(), name, broker="memory://", backend="cache+memory://")
    assert line.startswith("this app runs in one process")


def test_a_stopped_redis_is_an_error_and_not_a_wait_without_end(
    own_redis: RedisServer, new_fleet: Any
) -> None:
    fleet = new_fleet(own_redis.url)
    own_redis.pause()
    try:
        line = refused(fleet, "status")
    finally:
        own_redis.resume()
    assert line.startswith("the Redis in broker_url cannot be reached: Timeout")
    assert line.endswith("it is stopped, overloaded or cut off")


def test_a_wrong_password_is_an_error_that_names_the_setting(new_fleet: Any) -> None:
    with RedisServer(("--requirepass", "secret"), password="secret") as guarded:
        fleet = new_fleet(guarded.url)
        wrong = guarded.url.replace("secret", "guess")
        for name in ("resign", "doctor"):
            line = refused(fleet, name, broker=wrong)
            assert line.startswith("Redis refused the user name or password in broker_url")
            assert "guess" not in line


def test_what_is_not_redis_is_an_error_that_says_so(new_fleet: Any) -> None:
    with http_server() as server:
        line = refused(new_fleet(), "status", broker=server.url)
    assert line.startswith("what answers at broker_url is not Redis")


def test_a_replica_can_be_read_and_not_be_written_and_doctor_says_so(
    own_redis: RedisServer, new_fleet: Any
) -> None:
    with RedisServer() as replica:
        fleet = new_fleet(own_redis.url, conf=LASTING)
        fleet.workers("w1", pool="solo")
        with replica.client() as client:
            client.replicaof("127.0.0.1", own_redis.port)
            wait_until(
                lambda: (
                    client.info("replication")["master_link_status"] == "up"
                    and client.exists(fleet.key("election", "worker"))
                ),
                what="the replica to have the record",
            )
        of_replica = fleet.sender(broker=replica.url)
        assert "w1@fleet" in command.run(of_replica, "status").stdout
        line = refused(fleet, "hold", broker=replica.url)
        assert line.startswith("broker_url names a read-only replica; name its master")
        done = command.run(of_replica, "doctor", "--json")
        assert done.returncode == 1
        critical = {
            each["about"]
            for each in json.loads(done.stdout)["findings"]
            if each["severity"] == "critical"
        }
        assert "role" in critical


@every_command
def test_over_a_slow_connection_every_command_does_its_work(
    slow: tuple[Fleet, str], name: str
) -> None:
    fleet, url = slow
    if name == "watch":
        watching = fleet._start(
            "watch", "", ("leader", "status", "--watch", "--json"), {"broker": url}
        )
        watching.says('"error": null').close()
        return
    arguments = COMMANDS[name]
    if name == "transfer":
        successor = "w2@fleet" if fleet.record()["holder"] == "w1@fleet" else "w1@fleet"
        arguments = ("transfer", successor, "--election", "worker")
    if name == "release":
        command.run(fleet.app, *COMMANDS["hold"])
    done = command.run(fleet.sender(broker=url), *arguments, "--json")
    assert done.stderr == ""
    assert json.loads(done.stdout)
    # It is slower than a lease's own operations may be, which the doctor is to say.
    assert done.returncode == (1 if name == "doctor" else 0)
    if name == "doctor":
        assert "speed" in done.stdout
    if name == "hold":
        command.run(fleet.app, *COMMANDS["release"])


@pytest.fixture(scope="module")
def slow(redis_binary_or_skip: str, tmp_path_factory: Any) -> Any:
    """A quick fleet, and the URL of its Redis behind a connection slower than its timeouts."""
    directory = tmp_path_factory.mktemp("slow")
    with RedisServer() as server, Fleet(directory, server.url, conf=LASTING) as fleet:
        for process in fleet.workers("w1", "w2", pool="solo"):
            fleet.takes_part(process)
        with Proxy(server.port) as proxy:
            proxy.slow(QUICK["leader_operation_timeout"])
            yield fleet, proxy.url


def test_watch_goes_on_while_redis_is_away(own_redis: RedisServer, new_fleet: Any) -> None:
    fleet = new_fleet(own_redis.url)
    watching = fleet._start("watch", "", ("leader", "status", "--watch", "--interval", "0.2"), {})
    watching.says("worker: no leader")
    own_redis.kill()
    watching.says("no contact: ")
    own_redis.start()
    watching.says("in contact with Redis again")


def test_an_app_without_install_is_told_of_it(new_fleet: Any) -> None:
    fleet = new_fleet(install=False)
    done = command.run(fleet.sender(), "status")
    assert done.returncode == 1
    assert done.stderr == (
        "Hint: install(app) was not called on this app, so its workers elect nobody\n"
    )
    done = command.run(fleet.sender(), "doctor", "--fail-on", "warning")
    assert done.returncode == 1
    assert "install(app) was not called" in done.stdout


def test_an_app_that_nobody_runs_is_told_where_was_looked(new_fleet: Any) -> None:
    done = new_fleet().run("leader", "status")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Hint: nobody has taken part in namespace 'celery' of redis://")


def test_without_an_app_it_says_how_to_name_one(python: RunPython) -> None:
    done = python("-m", "celery", "leader", "status")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "Error: no app is named: put it first, as in celery -A proj leader status\n"
    )


def test_a_wrong_app_is_an_error_without_a_traceback(python: RunPython) -> None:
    done = python("-m", "celery", "-A", "nowhere_to_be_found", "leader", "status")
    assert (done.returncode, done.stdout) == (2, "")
    assert "The module nowhere_to_be_found was not found." in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_finds_different_settings_and_another_project(
    own_redis: RedisServer, new_fleet: Any
) -> None:
    fleet = new_fleet(own_redis.url, conf={**LASTING, "leader_operation_timeout": 10.0})
    first = fleet.worker("w1", "-P", "solo")
    fleet.takes_part(first)
    fleet.takes_part(fleet.worker("w2", "-P", "solo", conf={"leader_lease_duration": 200.0}))
    assert "candidates differ in leader_lease_duration: 200.0 (w2@fleet); 300.0 (w1@fleet)" in (
        command.run(fleet.app, "status").stdout
    )
    done = command.run(fleet.app, "doctor", "--json")
    assert done.returncode == 0
    assert "settings" in {each["about"] for each in json.loads(done.stdout)["findings"]}
    report = json.loads(command.run(another_project(own_redis.url), "doctor", "--json").stdout)
    (found,) = [each for each in report["findings"] if "another project" in each["what"]]
    assert (found["severity"], found["about"]) == ("critical", "worker")


def another_project(broker: str) -> Celery:
    """An app of another name and with other tasks, over the same Redis and queue."""
    shop = Celery("shop", broker=broker, set_as_current=False)

    @shop.task(name="shop.sell", shared=False)
    def sell() -> None: ...

    return install(shop)
