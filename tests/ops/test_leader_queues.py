"""What people are told of leader queues: lines below a table, findings, and JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from celery_leader.core.lease import Record
from celery_leader.ops.election_table import election_table
from celery_leader.ops.findings import Finding
from celery_leader.ops.overview import Overview
from celery_leader.ops.queue_findings import about_queue
from celery_leader.store.in_flight import QueueKeys
from celery_leader.store.queued import HeldMessage, Holder, Queued
from celery_leader.store.scripts import Keys
from tests.ops.test_overview import AT, as_printed, overview, record

ID = "0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"
KEYS = QueueKeys(
    "worker", "celery.leader", ("p:unacked", "p:index"), ["p:celery.leader"], Keys("celery", "p:")
)
NOW = AT + 7200


def holder(node: str = "w1@web1", *, messages: int = 2, heard_of: bool = True) -> Holder:
    return Holder(node, "life", heard_of, messages, AT)


def held(seconds: float, task: str = "proj.tasks.sweep", task_id: str = ID) -> HeldMessage:
    return HeldMessage("w1@web1", "life", NOW - seconds, task, task_id)


def queued(**what: Any) -> Queued:
    return Queued(KEYS, NOW, **what)


def seen(queue: Queued | None, led: Record | None) -> Overview:
    return dataclasses.replace(overview(led=led), queued=queue)


def findings(queue: Queued, led: Record | None = None) -> list[Finding]:
    found = list(about_queue(seen(queue, led)))
    assert all(each.what and each.advice and each.about == "worker" for each in found)
    return found


BUSY = queued(
    waiting=3, in_flight=2, unreadable=1, holders=[holder()], longest=[held(723), held(5)]
)


def test_the_lines_tell_what_waits_who_holds_what_and_the_longest() -> None:
    lines = election_table(seen(BUSY, record())).in_lines().splitlines()
    assert lines[1:] == [
        "    celery.leader: 3 waiting, 2 in flight",
        "      2 with w1@web1",
        "      longest with w1@web1: for 12 min 3 s, since 2026-09-21 16:01:17Z",
        f"        proj.tasks.sweep[{ID}]",
        "    celery.leader: 1 set aside as unreadable",
    ]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("nothing", [None, queued()])
def test_an_empty_queue_and_an_unknown_one_have_no_line(nothing: Queued | None) -> None:
    assert len(election_table(seen(nothing, record())).in_lines().splitlines()) == 1


def test_lives_that_are_lost_are_told_and_many_are_cut_short() -> None:
    many = [holder(f"w{n}@a", messages=1, heard_of=n != 1) for n in range(1, 9)]
    lines = election_table(seen(queued(in_flight=8, holders=many), None)).in_lines().splitlines()
    assert "      1 with w1@a, not heard of any more" in lines
    assert "      1 with w2@a" in lines
    assert lines[-1] == "      and more with 3 others"


def test_a_task_name_of_control_characters_harms_no_terminal() -> None:
    strange = queued(in_flight=1, longest=[held(5, task="\x1b[2J\nworker: w9 leads")])
    text = election_table(seen(strange, record())).in_lines()
    assert "\x1b" not in text
    assert "\nworker: w9" not in text


def test_a_queue_that_cannot_be_read_says_why() -> None:
    broken = queued(error="in broker_url, the key p:x is a string and must be a hash")
    line = election_table(seen(broken, record())).in_lines().splitlines()[-1]
    assert line == (
        "    celery.leader cannot be looked at: in broker_url, the key p:x is a string and must be a"
        " hash"
    )
    (finding,) = findings(broken, record())
    assert (finding.severity, "p:x" in finding.what) == ("warning", True)


def test_scripts_read_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    told = as_printed(seen(BUSY, record()).as_json(), capsys)["queue"]
    assert (told["name"], told["error"]) == ("celery.leader", None)
    assert (told["waiting"], told["in_flight"], told["unreadable"]) == (3, 2, 1)
    (node,) = told["holders"]
    assert (node["node"], node["messages"], node["heard_of"]) == ("w1@web1", 2, True)
    first = told["longest_held"][0]
    assert (first["task"], first["id"], first["node"]) == ("proj.tasks.sweep", ID, "w1@web1")
    assert (first["seconds"], first["since"]) == (723.0, "2026-09-21T16:01:17.000+00:00")
    assert as_printed(seen(None, record()).as_json(), capsys)["queue"] is None
    broken = as_printed(seen(queued(error="why"), record()).as_json(), capsys)["queue"]
    assert broken == {"name": "celery.leader", "error": "why"}


def test_nothing_is_found_where_a_leader_works() -> None:
    busy = queued(waiting=50, in_flight=2, holders=[holder()], longest=[held(3599)])
    assert findings(busy, record()) == []
    assert findings(queued()) == []
    assert list(about_queue(seen(None, None))) == []


def test_messages_that_wait_where_nobody_leads_are_critical() -> None:
    (finding,) = findings(queued(waiting=4))
    assert finding.severity == "critical"
    assert finding.what == "4 message(s) wait in celery.leader, and nobody leads"


def test_messages_of_lost_lives_are_stranded_while_nobody_leads() -> None:
    lost = queued(in_flight=3, holders=[holder(heard_of=False), holder("w2@b", messages=1)])
    (finding,) = findings(lost)
    assert finding.severity == "critical"
    assert finding.what.startswith("2 message(s) are stranded with w1@web1, ")
    assert findings(lost, record()) == []  # the leader is about to take them


def test_what_was_set_aside_is_told_with_the_commands_that_look_at_it_and_put_it_back() -> None:
    (finding,) = findings(queued(unreadable=2), record())
    where = "p:celery-leader:celery:unreadable:worker"
    assert finding.severity == "warning"
    assert f"redis-cli LRANGE {where} 0 9" in finding.advice
    assert f"redis-cli LMOVE {where} p:celery.leader RIGHT LEFT" in finding.advice


def test_lines_that_make_no_sense_are_told_with_their_key() -> None:
    (finding,) = findings(queued(in_flight=1, damaged=1), record())
    assert "1 line(s) of the hash p:celery-leader:celery:in-flight:worker" in finding.what


def test_a_message_held_for_more_than_an_hour_names_node_and_task() -> None:
    (finding,) = findings(queued(in_flight=3, longest=[held(3780), held(3601), held(9)]), record())
    assert finding.severity == "warning"
    assert finding.what == (
        f"w1@web1 has held proj.tasks.sweep[{ID}] for 1 h 3 min, since 2026-09-21 15:10:20Z, and 1"
        " more message(s) for more than an hour"
    )
    assert "celery inspect active -d w1@web1" in finding.advice
