"""The judge of the benchmarks counts what surely happened, whatever a slow machine hides."""

from __future__ import annotations

from benchmarks.peers.judge import Findings, Message, judge

SECOND = 1_000_000
ENTRIES = {"e": 1.0}


def at(*seconds: float, within: float = 0.004) -> list[Message]:
    """Messages of one entry, each seen within so long after it came."""
    return [
        Message("e", 1, round(moment * SECOND), round((moment + within) * SECOND))
        for moment in seconds
    ]


def judged(messages: list[Message], begins: float = 0, ends: float = 100) -> Findings:
    return judge(messages, ENTRIES, round(begins * SECOND), round(ends * SECOND))


def test_an_entry_sent_once_an_interval_gives_no_finding():
    found = judged(at(1, 2.01, 3.02, 4.05))
    assert (found.sent, found.duplicates, found.missed) == (4, 0, 0)


def test_a_second_message_within_one_interval_is_a_duplicate():
    assert judged(at(1, 2, 2.3, 3, 4)).duplicates == 1


def test_two_senders_in_turns_give_a_duplicate_each_interval():
    assert judged(at(1, 1.5, 2, 2.5, 3, 3.5)).duplicates == 3


def test_due_times_without_a_message_are_missed_and_one_that_is_late_is_not():
    assert judged(at(1, 2.9)).missed == 0
    assert judged(at(1, 5.5)).missed == 3
    assert judged(at(1, 5.5)).longest_gap == 4.496


def test_what_was_seen_late_by_a_slow_reader_is_no_finding():
    """Both were read at second 4 at the latest; when they came nobody knows."""
    slow = [Message("e", 1, SECOND, 4 * SECOND), Message("e", 1, 3 * SECOND, 4 * SECOND)]
    assert judged(slow) == Findings(sent=2)


def test_only_what_came_within_the_stretch_counts():
    found = judged(at(1, 1.2, 2.3, 2.5, 3.3), begins=2, ends=3)
    assert (found.sent, found.duplicates) == (2, 1)
