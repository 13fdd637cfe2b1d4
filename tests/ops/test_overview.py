"""What people and scripts are shown of elections, from values that are given."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
from typing import Any

import pytest

from celery_leader.core.candidate_info import CandidateInfo, read_candidate_info
from celery_leader.core.lease import Announcement, Record, State
from celery_leader.core.timing import Timing
from celery_leader.errors import StoreUnavailable
from celery_leader.ops import table
from celery_leader.ops.election_table import election_table, headline
from celery_leader.ops.leaderships import changes, history_as_json, history_table
from celery_leader.ops.overview import Overview
from celery_leader.ops.printing import say_json
from celery_leader.ops.watch import Diary, Look, Rate, looks
from celery_leader.ops.words import span
from celery_leader.store.history import PastLeadership, past_leaderships
from celery_leader.store.register import Candidate

AT = 1_790_000_000.0


def as_printed(value: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """``value``, as a script reads it again that was given it as JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    say_json(value, indent=2)
    return json.loads(capsys.readouterr().out, parse_constant=refuse)


def record(holder: str = "w1@a", **changed: Any) -> Record:
    given: dict[str, Any] = {
        "holder": holder,
        "term": 7,
        "state": State.TAKEN,
        "remaining": 20.0,
        "lease_duration": 25.0,
        "renewals": 3,
        "elected_at": AT,
        "transitions": 4,
        "successor": None,
        "app": "proj|1",
        "cursor": "1-0",
    }
    return Record(**{**given, **changed})


def info(**settings: Any) -> CandidateInfo:
    return CandidateInfo("a", 12, "worker", "proj|1", {"celery": "5.7.0"}, settings)


def overview(*candidates: Candidate, led: Record | None, **held: float) -> Overview:
    return Overview("worker", led, candidates, held, Timing.of_lease(25))


FLEET = overview(
    Candidate("w2@b", 3.0, held_for=float("inf")),
    Candidate("w3@c", 99.0, priority=5),
    Candidate("w1@a", 0.5, info=info()),
    led=record(),
)


def test_lines_name_the_leader_first_and_what_each_candidate_is() -> None:
    assert election_table(FLEET).in_lines().splitlines() == [
        "worker: w1@a  term 7  20.0 s left  since 2026-09-21 14:13:20Z",
        "    * w1@a  leader  seen 0.5 s ago               worker, pid 12 on a  celery 5.7.0",
        "    - w2@b  held    seen 3.0 s ago",
        "    ? w3@c  silent  seen 99.0 s ago  priority 5",
    ]


@pytest.mark.parametrize(
    ("led", "line"),
    [
        (None, "worker: no leader"),
        (record(remaining=-1.0), "worker: no leader  the last was w1@a, term 7"),
        (record(state=State.RELEASED), "worker: no leader  the last was w1@a, term 7"),
        (
            record(state=State.RESERVED, successor="w2@b"),
            "worker: no leader  kept for w2@b",
        ),
    ],
)
def test_where_nobody_leads_the_line_says_so(led: Record | None, line: str) -> None:
    assert headline(overview(led=led)) == line


def test_settings_that_differ_and_held_nodes_that_are_not_there_are_remarked() -> None:
    mixed = Overview(
        "worker",
        record(),
        [
            Candidate("w1@a", 1.0, info=info(leader_lease_duration=25.0, leader_priority=1)),
            Candidate("w2@b", 1.0, info=info(leader_lease_duration=9.0, leader_priority=2)),
        ],
        {"w9@z": 61.0},
    )
    assert election_table(mixed).in_lines().splitlines()[-2:] == [
        "    w9@z is held for 1 min 1 s, and no candidate at present",
        "    candidates differ in leader_lease_duration: 25.0 (w1@a); 9.0 (w2@b)",
    ]


def test_json_is_json_also_where_a_hold_has_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    told = as_printed(FLEET.as_json(), capsys)
    assert (told["leader"], told["term"], told["seconds_left"]) == ("w1@a", 7, 20.0)
    assert told["since"] == "2026-09-21T14:13:20.000+00:00"
    by_node = {each["node"]: each for each in told["candidates"]}
    assert by_node["w2@b"]["state"] == "held"
    assert by_node["w2@b"]["held"] is True
    assert by_node["w1@a"]["host"] == "a"
    held = overview(led=None, **{"w9@z": float("inf")}).as_json()
    assert as_printed(held, capsys)["held"] == [{"node": "w9@z", "seconds_left": None}]


def test_of_two_nodes_of_one_name_the_life_that_leads_is_the_leader() -> None:
    namesakes = overview(
        Candidate("w1@a", 1.0, info=info(), life="f0"),
        Candidate("w1@a", 2.0, info=info(), life="0f"),
        led=record(life="0f"),
    )
    assert [namesakes.state(each) for each in namesakes.candidates] == ["follower", "leader"]
    lines = election_table(namesakes).in_lines().splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["*", "w1@a"], ["w1@a", "follower"]]
    assert lines[3] == (
        "    w1@a is the name of 2 living nodes (worker, pid 12 on a; worker, pid 12 on a): a hold or"
        " a transfer of that name means all of them"
    )
    assert [each["life"] for each in namesakes.as_json()["candidates"]] == ["f0", "0f"]


def test_no_number_makes_what_is_printed_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    said = read_candidate_info('{"host": "a", "settings": {"leader_priority": 1e400, "a": -1e400}}')
    assert said is not None
    assert said.settings == {}
    values = {"a": [float("inf"), float("nan"), 1.5], "b": {"c": float("-inf"), "d": None}}
    assert as_printed(values, capsys) == {"a": [None, None, 1.5], "b": {"c": None, "d": None}}


def test_a_picture_of_many_candidates_is_cut_short_and_says_so() -> None:
    many = overview(*(Candidate(f"w{i}@a", 1.0) for i in range(40)), led=None)
    lines = election_table(many, 15).in_lines().splitlines()
    assert lines[-1] == "    and 25 more candidates"
    assert len(lines) == 17


def test_a_moment_that_no_calendar_has_is_shown_all_the_same() -> None:
    assert "9999-12-31" in headline(overview(led=record(elected_at=1e18)))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (61, "1 min 1 s"),
        (7260, "2 h 1 min"),
        (3 * 86400 + 7200, "3 d 2 h"),
    ],
)
def test_a_span_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


LEADERSHIPS = [
    PastLeadership("w2@b", 9, AT + 100),
    PastLeadership("w1@a", 7, AT, AT + 99, "transferred", "w2@b"),
]


def test_history_says_who_led_from_when_to_when_and_why_no_longer() -> None:
    assert history_table("worker", LEADERSHIPS).in_lines().splitlines() == [
        "worker:",
        "    * w2@b  2026-09-21 14:15:00Z                                       "
        "leads                 term 9",
        "      w1@a  2026-09-21 14:13:20Z  to 2026-09-21 14:14:59Z  1 min 39 s  "
        "transferred, to w2@b  term 7",
    ]
    assert history_table("worker", []).in_lines() == "worker: nobody has led yet"
    assert history_as_json(LEADERSHIPS)[1]["reason"] == "transferred"


def test_changes_of_all_elections_are_in_one_order_the_latest_first() -> None:
    worker = dataclasses.replace(FLEET, leaderships=LEADERSHIPS)
    beat = Overview("beat", None, (), leaderships=[PastLeadership("beat@a", 8, AT + 50)])
    assert [line for _, line in changes([worker, beat])] == [
        "worker: w2@b elected, term 9",
        "worker: w1@a led for 1 min 39 s: transferred, to w2@b",
        "beat: beat@a elected, term 8",
        "worker: w1@a elected, term 7",
    ]


# -- watching -------------------------------------------------------------------


def look(at: float, *candidates: Candidate, leaderships: Any = (), dispatched: Any = None) -> Look:
    seen = dataclasses.replace(overview(*candidates, led=None), leaderships=leaderships)
    return Look(at, [seen], dispatched)


def unanswered(at: float) -> Look:
    return dataclasses.replace(look(at), error="down")


def followed(*answers: Look | StoreUnavailable) -> list[Look]:
    """The looks that follow from what Redis answers, one after the other."""
    waiting = iter(answers)

    def ask() -> Look:
        answer = next(waiting)
        if isinstance(answer, StoreUnavailable):
            raise answer
        return answer

    return list(itertools.islice(looks(ask, lambda: None, lambda: AT + 99), len(answers)))


def test_a_diary_tells_all_at_first_and_then_only_what_changed() -> None:
    diary = Diary()
    one, two = Candidate("w1@a", 1.0), Candidate("w2@b", 1.0)
    first = list(diary.lines(look(AT, one, leaderships=LEADERSHIPS[1:])))
    assert [line[22:] for line in first] == [
        "worker: no leader",
        "worker: w1@a takes part: follower",
    ]
    assert list(diary.lines(look(AT + 1, one, leaderships=LEADERSHIPS[1:]))) == []
    later = list(diary.lines(look(AT + 2, two, Candidate("w1@a", 99.0), leaderships=LEADERSHIPS)))
    assert [line[22:] for line in later] == [
        "worker: w2@b elected, term 9",
        "worker: w2@b takes part: follower",
        "worker: w1@a is silent",
    ]
    gone = list(diary.lines(look(AT + 3, two, leaderships=LEADERSHIPS)))
    assert [line[22:] for line in gone] == ["worker: w1@a is gone"]


def test_a_diary_tells_each_leadership_once_and_remembers_no_more_than_a_look_shows() -> None:
    diary, told, sizes = Diary(), [], []
    past = [PastLeadership(f"w{n % 2}@a", n, AT + n, AT + n + 1, "resigned") for n in range(1000)]
    for end in range(1, len(past) + 1):
        latest = past[max(0, end - 10) : end][::-1]
        told += list(diary.lines(look(AT + end, leaderships=latest)))
        sizes.append(len(pickle.dumps(vars(diary))))
    elected = [line.rpartition(" ")[2] for line in told if "elected" in line]
    assert elected == [str(n) for n in range(1, 1000)], "the first look tells of the present only"
    assert sizes[-1] < 2 * sizes[20]


def test_a_diary_tells_once_that_redis_does_not_answer_and_once_that_it_does() -> None:
    diary = Diary()
    list(diary.lines(look(AT)))
    assert [line[22:] for line in diary.lines(unanswered(AT + 1))] == ["no contact: down"]
    assert list(diary.lines(unanswered(AT + 2))) == []
    assert [line[22:] for line in diary.lines(look(AT + 3))] == ["in contact with Redis again"]


def test_the_rate_of_dispatches_is_counted_over_the_latest_looks() -> None:
    rate = Rate()
    assert rate.note(look(AT, dispatched=100)) is None
    assert rate.note(look(AT + 2, dispatched=110)) == 5.0
    assert rate.note(look(AT + 4, dispatched=120)) == 5.0
    # Entries were removed, and what they had sent with them: counted anew.
    assert rate.note(look(AT + 5, dispatched=3)) is None
    assert rate.note(look(AT + 6, dispatched=5)) == 2.0


def test_a_look_is_one_json_object_also_without_an_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen, nothing = followed(look(AT, leaderships=LEADERSHIPS), StoreUnavailable("down"))
    told = as_printed(seen.as_json(), capsys)
    assert told["error"] is None
    assert [each["node"] for each in told["last_changes"]["worker"]] == ["w2@b", "w1@a"]
    assert nothing.as_json() == {"at": "2026-09-21T14:14:59.000+00:00", "error": "down"}


def test_a_picture_keeps_what_was_seen_last_while_redis_does_not_answer() -> None:
    _, nothing, again = followed(
        look(AT, Candidate("w1@a", 1.0)), StoreUnavailable("down"), look(AT + 100)
    )
    titles = [each.title for each in nothing.as_tables()]
    assert titles[0] == "no contact: down"
    assert "worker: no leader" in titles
    assert not any("no contact" in each.title for each in again.as_tables())


def test_a_first_look_without_an_answer_is_an_error() -> None:
    with pytest.raises(StoreUnavailable, match="down"):
        followed(StoreUnavailable("down"))


def test_a_picture_tells_the_rate_of_dispatches() -> None:
    *_, last = followed(look(AT, dispatched=100), look(AT + 2, dispatched=110))
    assert "beat dispatches 5.0 messages a second" in last.as_tables()[0].title
    assert last.as_json()["dispatched_per_second"] == 5.0


def test_what_stands_in_redis_is_never_taken_for_markup() -> None:
    console = pytest.importorskip("rich.console")
    hostile = overview(Candidate("[red]w1@a[/]", 1.0), led=None)
    out = console.Console(width=200)
    with out.capture() as captured:
        out.print(table.drawn([election_table(hostile)], out))
    assert "[red]w1@a[/]" in captured.get()


@pytest.mark.parametrize("reason", ["stalled", "broker lost"])
def test_who_gave_up_as_not_fit_to_lead_is_named_until_it_takes_part_again(reason: str) -> None:
    gone = PastLeadership("w9@z", 6, 1.0, 2.0, reason)
    led = dataclasses.replace(FLEET, leaderships=(PastLeadership("w1@a", 7, 2.0), gone))
    remark = f"    w9@z gave its lease up because it was not fit to lead: {reason}"
    assert remark in election_table(led).in_lines().splitlines()
    assert led.as_json()["unfit"] == {"node": "w9@z", "reason": reason}
    nobody = dataclasses.replace(
        overview(led=record(holder="w9@z", state=State.RELEASED)), leaderships=(gone,)
    )
    assert election_table(nobody).in_lines().splitlines() == [
        "worker: no leader  the last was w9@z, term 7",
        remark,
    ]
    back = dataclasses.replace(led, candidates=[*led.candidates, Candidate("w9@z", 1.0)])
    assert back.unfit is None
    resigned = PastLeadership("w9@z", 6, 1.0, 2.0, "resigned")
    assert dataclasses.replace(led, leaderships=(resigned, gone)).unfit is None


def test_of_leaderships_those_are_believed_whose_terms_rise() -> None:
    def elected(node: str, term: int, at: int) -> Announcement:
        return Announcement("worker", f"{at}-0", "elected", node, term, None)

    real = [elected(f"w{i}@a", 10 * i, 1000 * i) for i in range(1, 6)]
    for place in range(1, 5):
        for term in (3, 55, 10):
            lines = [*real[:place], elected("evil", term, 1000 * place + 1), *real[place:]]
            shown = past_leaderships(lines, record(term=50, event="5000-0", remaining=-1.0), 10.0)
            assert [each.node for each in reversed(shown)] == [each.node for each in real]
