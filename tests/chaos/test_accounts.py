"""The judge of the chaos run of tasks sees what it is there to see, and nothing in a clean run."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from tests.chaos.accounts import Accounts, Frozen, Killed, Report, Sent, Start, Trace
from tests.chaos.faults import schedule
from tests.chaos.task_faults import KINDS
from tests.chaos.witness import Journal

SECOND = 1_000_000
NOW = 1_700_000_000 * SECOND
LED = Start("a", "one@chaos", 0, NOW - 500, NOW, "one@chaos", 7, True, NOW + SECOND)
FOLLOWS = dataclasses.replace(LED, holder="two@chaos", term=9)
CHAIN = Sent("chain", ("a", "b", "c"))


def judged(
    *starts: Start,
    sent: Sent = Sent("delay", ("a",)),  # noqa: B008
    ended: str = "a",
    states: dict[str, str] | None = None,
    traces: dict[str, Trace] | None = None,
    frozen: tuple[Frozen, ...] = (),
    killed: tuple[Killed, ...] = (),
) -> Report:
    handled = {task_id: Trace(queued=1, taken=1) for task_id in ended}
    accounts = Accounts(starts, ended, states or {}, handled | (traces or {}), frozen, killed)
    return accounts.report([sent])


def test_finds_nothing_where_all_ran_on_the_leader():
    report = judged(LED)
    assert report.violations == []
    assert (report.starts, report.on_followers) == (1, 0)
    assert (report.rows[0].sent, report.rows[0].ran, report.rows[0].twice) == (1, 1, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"holder": "two@chaos", "term": 9},
        {"holder": "", "held": False},
        {"held": False},
        {"expires_at": NOW},
    ],
    ids=["another leads", "nobody ever led", "released", "expired"],
)
def test_sees_a_start_where_its_node_did_not_lead(change):
    report = judged(dataclasses.replace(LED, **change))
    assert report.on_followers == 1
    assert "1 x started on a follower: a on one@chaos" in report.violations[0]


@pytest.mark.parametrize(
    ("frozen", "excused"),
    [
        (Frozen("one@chaos", NOW - 4 * SECOND, NOW - 400), 1),
        (Frozen("two@chaos", NOW - 4 * SECOND, NOW - 400), 0),
        (Frozen("one@chaos", NOW - 4 * SECOND, NOW - SECOND), 0),  # thawed before its check
        (Frozen("one@chaos", NOW + 1, NOW + SECOND), 0),  # stopped afterwards
    ],
)
def test_excuses_only_who_was_frozen_between_its_check_and_its_first_act(frozen, excused):
    report = judged(FOLLOWS, frozen=(frozen,))
    assert (report.excused, report.on_followers) == (excused, 1 - excused)


def test_excuses_who_was_not_run_by_the_machine_for_longer_than_the_margin():
    assert judged(dataclasses.replace(FOLLOWS, checked=NOW - SECOND)).excused == 1


def test_counts_a_body_that_ran_twice_but_not_a_retry():
    again = dataclasses.replace(LED, attempt=1)
    assert judged(LED, again).rows[0].twice == 0
    report = judged(LED, again, again)
    assert report.rows[0].twice == 1
    assert report.violations == []


def test_sees_a_task_that_was_taken_and_never_ended():
    report = judged(ended="", traces={"a": Trace(queued=2, taken=2)})
    assert report.rows[0].unfinished == 1
    assert "a: queued 2 and taken 2 times, started 0, no state" in report.violations[0]


def test_sees_a_task_that_never_was_in_a_queue():
    assert "never in a queue" in judged(ended="").violations[0]


def test_sees_a_canvas_that_was_not_finished():
    report = judged(LED, sent=CHAIN)
    assert report.rows[0].unfinished == 2
    assert "2 x unfinished: chain b" in report.violations[0]


def test_what_redis_gave_to_nobody_is_counted_apart_with_what_was_to_come_after_it():
    report = judged(LED, sent=CHAIN, traces={"b": Trace(queued=1)})
    row = report.rows[0]
    assert (row.ran, row.lost_by_celery, row.unfinished) == (1, 1, 1)
    assert report.violations == []


def test_a_loss_excuses_nothing_that_was_in_a_queue_itself():
    taken = {"b": Trace(queued=1), "c": Trace(queued=1, taken=1)}
    assert "unfinished: chain c" in judged(LED, sent=CHAIN, traces=taken).violations[0]


def test_a_chord_is_celerys_loss_only_if_a_header_task_ran_again():
    chord = Sent("chord", ("a", "b"))
    once = judged(LED, sent=chord, states={"a": "SUCCESS"})
    assert "unfinished: chord b" in once.violations[0]
    twice = judged(LED, LED, sent=chord, states={"a": "SUCCESS"})
    assert (twice.rows[0].lost_by_celery, twice.violations) == (1, [])
    taken = judged(LED, LED, sent=chord, states={"a": "SUCCESS"}, traces={"b": Trace(1, 1)})
    assert "unfinished: chord b" in taken.violations[0]


def test_a_chord_is_celerys_loss_if_a_header_task_lost_its_process_after_it_was_stored():
    chord = Sent("chord", ("a", "b"))

    def found(killed: Killed) -> Report:
        return judged(LED, sent=chord, states={"a": "SUCCESS"}, killed=(killed,))

    assert found(Killed("one@chaos", NOW + SECOND // 2)).violations == []
    for other in (
        Killed("two@chaos", NOW + SECOND // 2),
        Killed("one@chaos", NOW - SECOND // 2),
        Killed("one@chaos", NOW + 2 * SECOND),
    ):
        assert "unfinished: chord b" in found(other).violations[0]


def test_a_task_is_skipped_only_where_that_was_asked():
    skipped = judged(sent=Sent("skip", ("a",)), ended="", states={"a": "REVOKED"})
    assert (skipped.rows[0].skipped, skipped.violations) == (1, [])
    other = judged(ended="", states={"a": "REVOKED"})
    assert "skipped though not asked to: delay a" in other.violations[0]


def test_the_journal_reads_what_was_done_to_a_message():
    journal = Journal(0)
    header = rb"{\"body\": \"W10=\", \"headers\": {\"id\": \"%b\", \"root_id\": \"%b\"}}"
    first, second = (b"%08d-0000-0000-0000-000000000000" % number for number in (1, 2))
    for command, task_id in (
        (b'"LPUSH" "celery.leader" ', first),
        (b'"HSET" "unacked" "tag" ', first),
        (b'"RPUSH" "celery.leader" ', second),
        (b'"HSET" "other" "tag" ', second),
    ):
        journal._read(b'+1.5 [0 lua] %b"%b"\r\n' % (command, header % (task_id, second)))
    when = 1_500_000
    taken = Trace(1, 1, queued_at=when, for_leader=True, in_hand=True)
    assert journal.traces[first.decode()] == taken
    assert journal.traces[second.decode()] == Trace(1, 0, queued_at=when, for_leader=True)
    assert (journal.fetched, journal.timed) == ({b"tag"}, set())


def test_the_journal_tells_an_acknowledgement_from_a_message_that_goes_back():
    journal = Journal(0)
    (given_back, acknowledged) = (b"%08d-0000-0000-0000-000000000000" % n for n in (1, 2))

    def does(command: bytes, task_id: bytes) -> None:
        journal._read(b'+1.5 [0 lua] %b "{\\"id\\": \\"%b\\"}"\r\n' % (command, task_id))

    for tag, task_id in ((b'"one"', given_back), (b'"other"', acknowledged)):
        does(b'"LPUSH" "celery.leader"', task_id)
        does(b'"HSET" "unacked" %b' % tag, task_id)
    does(b'"RPUSH" "celery.leader"', given_back)
    for tag in (b'"one"', b'"other"'):
        journal._read(b'+1.5 [0 lua] "HDEL" "unacked" %b\r\n' % tag)
    assert not journal.traces[given_back.decode()].acknowledged
    assert journal.traces[acknowledged.decode()].acknowledged


def test_a_body_that_was_acknowledged_early_may_be_gone_and_nothing_else_of_that_way():
    early = Sent("early ack", ("a",))
    gone = judged(sent=early, ended="", traces={"a": Trace(1, 1, acknowledged=True)})
    assert (gone.rows[0].gone_early, gone.violations) == (1, [])
    fetched = judged(sent=early, ended="", traces={"a": Trace(1, 1, in_hand=True)})
    assert "unfinished: early ack a" in fetched.violations[0]
    late = judged(ended="", traces={"a": Trace(1, 1, acknowledged=True)})
    assert "unfinished: delay a" in late.violations[0]


def test_the_journal_sees_a_fetched_message_that_kombu_can_deliver_again():
    journal = Journal(0)
    journal._read(b'+1.5 [0 lua] "HSET" "unacked" "ours" "text"\r\n')
    journal._read(b'+1.5 [0 127.0.0.1:1] "HSET" "unacked" "theirs" "text"\r\n')
    for tag in (b"ours", b"theirs"):
        journal._read(b'+1.5 [0 127.0.0.1:1] "ZADD" "unacked_index" "1.5" "%b"\r\n' % tag)
    assert journal.fetched & journal.timed == {b"ours"}


def test_nothing_excuses_what_the_leader_queue_has_lost():
    plain = judged(ended="", traces={"a": Trace(queued=1)})
    assert (plain.rows[0].lost_by_celery, plain.violations) == (1, [])
    leader = judged(ended="", traces={"a": Trace(queued=1, for_leader=True)})
    assert leader.rows[0].lost_by_celery == 0
    assert "1 x unfinished: delay a" in leader.violations[0]


def test_each_kind_of_fault_comes_once_in_a_round():
    faults = itertools.islice(schedule(5, KINDS), len(KINDS))
    assert {fault.kind for fault in faults} == set(KINDS)
