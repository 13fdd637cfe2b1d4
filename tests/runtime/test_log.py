"""No text of strangers that a log line holds harms a terminal, or makes a line of its own."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import celery_leader
from celery_leader import LeaderElection
from celery_leader.core.events import Deposed, Followed, StepDownRequested
from celery_leader.errors import LeaderError
from celery_leader.runtime.change_log import log_change
from celery_leader.runtime.log import get_logger
from tests.support import command
from tests.support.fixtures import MakeApp, MakeStore
from tests.support.lease_requests import acquire
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

PACKAGE = Path(celery_leader.__file__).parent
HOSTILE = "w1@a\n[2026-01-01 ERROR] forged\r\x1b[2J\x85\u2028\x00\ud800"
FIELDS = ("leader_followed", "leader_reason", "leader_successor", "leader_node")


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, having made sure that each record is one harmless line."""
    ours = [each for each in caplog.records if each.name.startswith("celery_leader.")]
    for record in ours:
        for text in (record.getMessage(), *(getattr(record, name, None) for name in FIELDS)):
            assert text is None or text.isprintable(), record
    return [record.getMessage() for record in ours]


@pytest.mark.parametrize("value", [HOSTILE, LeaderError(HOSTILE), ValueError(HOSTILE)])
def test_a_value_in_a_line_cannot_leave_that_line(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    get_logger("celery_leader.test").warning("%s: %s, term %d", "e", value, 7)
    (line,) = lines_of(caplog)
    assert line.startswith("e: w1@a\ufffd[2026-01-01 ERROR] forged\ufffd\ufffd[2J")
    assert line.endswith(", term 7")


@pytest.mark.parametrize(
    "change",
    [
        Followed("e", "me", 7, HOSTILE),
        StepDownRequested("e", "me", 7, "transferred", HOSTILE),
        StepDownRequested("e", "me", 7, HOSTILE, None),
        Deposed("e", "me", 7, HOSTILE, 1.0),
    ],
)
def test_a_change_is_one_line_whatever_redis_said(
    change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log_change(change)
    assert len(lines_of(caplog)) == 1


def test_words_of_every_language_are_logged_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("celery_leader.test").warning("%s", "Rechner-ä работник 机器")
    assert lines_of(caplog) == ["Rechner-ä работник 机器"]


def test_a_logger_is_made_safe_once_however_often_it_is_asked_for() -> None:
    assert get_logger("celery_leader.test").filters == get_logger("celery_leader.test").filters
    assert len(get_logger("celery_leader.test").filters) == 1


def test_no_module_logs_with_another_logger() -> None:
    makers = [p.name for p in PACKAGE.rglob("*.py") if "getLogger(" in p.read_text()]
    assert makers == ["log.py"]


def test_no_log_line_and_no_command_is_forged_by_what_stands_in_redis(
    make_app: MakeApp,
    make_store: MakeStore,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    hostile = HOSTILE.encode(errors="surrogatepass")
    app, store = make_app(leader_lease_duration=3.0), make_store()
    here = LeaderElection(app, "reports", node="here")
    with redis_server.client() as client:
        now = time.time()
        leader = {
            **{"holder": hostile, "nonce": "n", "attempt": 1, "term": int(now * 1e6)},
            **{"expires_at": int((now + 3) * 1000), "lease": 3000, "state": "held"},
            **{"successor": hostile, "renewals": 0, "transitions": 3, "event": "0-0"},
            **{"elected_at": int(now * 1000), "app": hostile + b"|0|AAABBBCCC", "format": 1},
        }
        client.hset("celery-leader:celery:election:reports", mapping=leader)
        history, held = "celery-leader:celery:history:reports", "celery-leader:celery:held:reports"
        line = {"kind": "resigned", "node": hostile, "term": 5, "reason": hostile}
        client.xadd(history, {**line, "kind": "elected"})
        client.xadd(history, {**line, "successor": hostile})
        client.hset(held, hostile, 0)
        client.zadd("celery-leader:celery:candidates:reports", {hostile: now * 1000})

    def says(what: str) -> Callable[[], bool]:
        return lambda: any(what in line for line in lines_of(caplog))

    with here:
        wait_until(says(" leads, term "), what="to follow the hostile leader")
        assert says("of another project")()
        shown_by_every_command(app)
        wait_until(here.is_leader, what="to lead after it")
        said = json.dumps({"host": HOSTILE, "app": HOSTILE, "versions": {"celery": HOSTILE}})

        def namesake_is_known() -> bool:
            also = acquire("here", nonce="n2", election="reports", info=said, abstains=True)
            store.perform([also])
            return says("another living node is called here")()

        wait_until(namesake_is_known, what="to know its namesake")
        with redis_server.client() as client:
            client.hset("celery-leader:celery:election:reports", "asked", hostile)
            client.hset("celery-leader:celery:election:reports", "asked_for", hostile)
        wait_until(says("reports: to step down"), what="to be asked to give way")
        shown_by_every_command(app)


def shown_by_every_command(app: Any) -> None:
    for arguments in (
        ("status", "--election", "reports"),
        ("history", "--election", "reports"),
        ("doctor",),
        ("transfer", HOSTILE, "--election", "reports"),
        ("release", "nobody", "--election", "reports"),
        ("forget", "reports"),
    ):
        for more in ((), ("--json",)):
            ran = command.run(app, *arguments, *more)
            shown = ran.stdout + ran.stderr
            assert shown
            assert all(line.isprintable() for line in shown.split("\n")), ran
            assert not any(line.startswith("[2026") for line in shown.split("\n")), ran
            assert "forged" in shown or arguments[0] not in ("status", "history"), ran
