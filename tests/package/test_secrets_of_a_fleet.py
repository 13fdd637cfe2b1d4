"""Nothing that a fleet says of itself has a password in it, wherever it is said."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from tests.support import command
from tests.support.fleet import LASTING, Fleet
from tests.support.redis_server import RedisServer

#: Needs escaping in a URL, and is looked for in both forms.
BROKERS, LEASES = "br0ker/S3cret@", "l3ase:S3cret#"
SECRET = re.compile(
    "|".join(re.escape(each) for word in (BROKERS, LEASES) for each in (word, quote(word, "")))
    + "|S3cret"
)
TICK = {"tick": {"task": "lead", "every": 0.2, "args": ["tick"]}}
COMMANDS = (
    ("status",),
    ("history",),
    ("doctor",),
    ("healthcheck",),
    ("resign", "--election", "worker", "--timeout", "0.1"),
    ("transfer", "nobody@fleet"),
    ("hold", "w1@fleet", "--election", "worker"),
    ("release", "w1@fleet", "--election", "worker"),
)


def guarded(password: str) -> RedisServer:
    """A Redis that asks for ``password``."""
    return RedisServer(("--requirepass", password), password=password)


def url(server: RedisServer, password: str) -> str:
    return f"redis://:{quote(password, '')}@127.0.0.1:{server.port}/0"


@pytest.fixture(params=["broker", "leader_url"])
def secretive(
    request: pytest.FixtureRequest, redis_binary_or_skip: str, redis_url: str, tmp_path: Path
) -> Iterator[tuple[Fleet, RedisServer]]:
    """A fleet with passwords in all its URLs, and the Redis that keeps its leases."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(guarded(BROKERS))
        conf = {**LASTING, "leader_operation_timeout": 2.0}
        leases, password = broker, BROKERS
        if request.param == "leader_url":
            leases, password = stack.enter_context(guarded(LEASES)), LEASES
            conf["leader_url"] = url(leases, LEASES)
        fleet = stack.enter_context(
            Fleet(tmp_path, url(broker, BROKERS), conf=conf, schedule=TICK, record=redis_url)
        )
        fleet.look_for_leases_in(url(leases, password))
        yield fleet, leases


def test_no_password_is_told_by_logs_commands_or_keys(
    secretive: tuple[Fleet, RedisServer],
) -> None:
    fleet, leases = secretive
    worker, beat = fleet.worker("w1", quiet=False), fleet.beat("b1")
    worker.says(" ready.")
    fleet.takes_part(worker)
    fleet.takes_part(beat, "beat")
    fleet.saw("ran", "tick", 2)

    everything = {f"{c} {how}": ran(fleet, *c, *how) for c in COMMANDS for how in ((), ("--json",))}
    told = fleet.app.control.inspect(timeout=10, limit=1)
    everything["inspect leader"] = repr(told._request("leader"))
    everything["stats"] = repr(told.stats()["w1@fleet"]["leader"])
    everything["keys"] = values_of(fleet.leases)
    assert "w1@fleet" in everything["('status',) ()"]
    assert "w1@fleet" in everything["keys"]

    leases.kill()  # what is said when Redis is gone
    worker.says("no answer, trying on")
    beat.says("no answer, trying on")
    for c in COMMANDS:
        everything[f"{c} without Redis"] = ran(fleet, *c)
    assert "cannot be reached" in everything["('status',) without Redis"]

    # What is said when it is refused.
    with RedisServer(("--requirepass", "changed"), password="changed", port=leases.port):
        fleet.beat("b2").says("refused the user name or password")
        elsewhere = "leader_url" in fleet.config["conf"]
        fleet.worker("w2").says("w2@fleet" if elsewhere else "Cannot connect")
        for c in COMMANDS:
            everything[f"{c} refused"] = ran(fleet, *c)
    assert "user name or password" in everything["('status',) refused"]

    everything |= {f"the log of {process.name}": process.log for process in fleet.processes}
    assert SECRET.search(fleet.config["broker"])
    found = {where: text for where, text in everything.items() if SECRET.search(text)}
    assert found == {}


def test_no_password_is_told_where_the_server_repeats_it(
    redis_binary_or_skip: str, redis_url: str, tmp_path: Path
) -> None:
    with (
        RedisServer(("--rename-command", "AUTH", "")) as server,
        Fleet(
            tmp_path,
            redis_url,
            conf={
                **LASTING,
                "leader_url": f"redis://:{quote(BROKERS, '')}@127.0.0.1:{server.port}/0",
            },
            schedule=TICK,
        ) as fleet,
    ):
        worker, beat = fleet.worker("w1"), fleet.beat("b1")
        worker.says("unknown command 'AUTH'")
        beat.says("unknown command 'AUTH'")
        told = {c: ran(fleet, *c) for c in COMMANDS}
        assert "unknown command 'AUTH'" in told["status",]
        told |= {(process.name,): process.log for process in fleet.processes}
        assert {where: text for where, text in told.items() if SECRET.search(text)} == {}


def ran(fleet: Fleet, *arguments: str) -> str:
    done = command.run(fleet.app, *arguments)
    return done.stdout + done.stderr


def values_of(client: redis.Redis) -> str:
    """Every key of the elections, with all that is in it, as it is shown."""
    read = {
        "hash": client.hgetall,
        "stream": client.xrange,
        "zset": lambda key: client.zrange(key, 0, -1),
        "list": lambda key: client.lrange(key, 0, -1),
    }
    keys = sorted(client.scan_iter("*celery-leader:*"))
    return repr({key: read[client.type(key)](key) for key in keys})
