"""``LeaderElection`` as a user has it: real apps, real Redis, real processes."""

from __future__ import annotations

import datetime
import gc
import logging
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

from celery_leader import LeaderElection, LeaderError, NotLeader, StoreUnavailable
from celery_leader.runtime import clock
from celery_leader.runtime.app_runtime import AppRuntime, runtime_of
from celery_leader.runtime.node_names import node_name
from tests.runtime.candidate import (
    CandidateProcess,
    assert_never_two_believed_at_once,
)
from tests.support.fixtures import MakeApp
from tests.support.records import candidates_of, record_of
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import PATIENCE, wait_until

NAME = "reports"
SHORT = 3.0  # seconds of lease, where a test has to wait until one is over
LONG = 120.0  # where nothing must happen by expiry while a test runs

Campaigner = Callable[..., CandidateProcess]


@pytest.fixture
def start_process(tmp_path: Path, redis_url: str) -> Iterator[Campaigner]:
    """Starts candidates in processes of their own, which end with the test."""
    started: list[CandidateProcess] = []

    def start(node: str, *, lease: float = SHORT) -> CandidateProcess:
        process = CandidateProcess(tmp_path, redis_url, NAME, node, lease=lease)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


# -- who leads ---------------------------------------------------------------------------------


def test_one_of_a_hundred_candidates_with_apps_of_their_own_leads(make_app: MakeApp) -> None:
    elections = [
        LeaderElection(make_app(leader_lease_duration=LONG), NAME, node=f"node{number}").start()
        for number in range(100)
    ]
    watcher = LeaderElection(make_app(), NAME)
    watching = runtime_of(make_app())
    wait_until(
        lambda: len(candidates_of(watching, NAME)) == 100,
        timeout=2 * PATIENCE,
        what="all hundred to have asked",
    )
    wait_until(lambda: any(e.is_leader() for e in elections), what="one of them to lead")
    leaders = [election for election in elections if election.is_leader()]
    assert len(leaders) == 1
    leader = watcher.leader()
    assert leader is not None
    assert leader.holder == leaders[0].node
    assert leader.term == leaders[0].term()
    record = record_of(watching, NAME)
    assert record is not None
    assert record.transitions == 1


def test_who_leads_is_told_with_term_time_left_and_since_when(make_app: MakeApp) -> None:
    app = make_app(leader_lease_duration=LONG)
    election = LeaderElection(app, NAME, node="here")
    assert election.leader() is None
    with election:
        assert election.wait_until_leader(PATIENCE)
        leader = LeaderElection(make_app(), NAME).leader()
        assert leader is not None
        assert leader.holder == "here"
        assert leader.term == election.term() == election.check()
        assert 0 < leader.seconds_left <= LONG
        now = datetime.datetime.now(datetime.timezone.utc)
        assert abs(now - leader.since) < datetime.timedelta(minutes=1)
    assert election.leader() is None


def test_a_context_is_left_with_the_lease_given_up(make_app: MakeApp) -> None:
    first = LeaderElection(make_app(leader_lease_duration=LONG), NAME, node="first")
    second = LeaderElection(make_app(leader_lease_duration=LONG), NAME, node="second")
    with first:
        assert first.wait_until_leader(PATIENCE)
        second.start()
        _await_followers(first, 2)
        assert not second.is_leader()
    assert not first.is_leader()
    assert second.wait_until_leader(PATIENCE), "an announcement is heard long before the expiry"


def test_an_error_inside_the_context_gives_the_lease_up_too(make_app: MakeApp) -> None:
    election = LeaderElection(make_app(leader_lease_duration=LONG), NAME)
    with pytest.raises(ZeroDivisionError), election:
        assert election.wait_until_leader(PATIENCE)
        raise ZeroDivisionError
    assert election.leader() is None


def test_waiting_to_lead_ends_with_its_timeout(make_app: MakeApp) -> None:
    with LeaderElection(make_app(leader_lease_duration=LONG), NAME) as leader:
        assert leader.wait_until_leader(PATIENCE)
        with LeaderElection(make_app(leader_lease_duration=LONG), NAME) as follower:
            assert follower.wait_until_leader(timeout=0.1) is False
            assert follower.wait_until_leader(timeout=0) is False
            with pytest.raises(NotLeader, match=NAME):
                follower.check()


def test_waiting_to_lead_what_was_not_started_is_refused(make_app: MakeApp) -> None:
    election = LeaderElection(make_app(), NAME)
    with pytest.raises(LeaderError, match="start"):
        election.wait_until_leader(1)
    assert not election.is_leader()
    assert election.resign(), "resigning what was not started harms nothing"


def test_who_resigned_may_start_again(make_app: MakeApp) -> None:
    election = LeaderElection(make_app(leader_lease_duration=LONG), NAME)
    terms = []
    for _ in range(3):
        election.start()
        assert election.wait_until_leader(PATIENCE)
        terms.append(election.check())
        assert election.resign()
        assert not election.is_leader()
    assert terms == sorted(set(terms))


def test_a_transferred_lease_goes_to_the_named_successor(make_app: MakeApp) -> None:
    def candidate(node: str) -> LeaderElection:
        return LeaderElection(make_app(leader_lease_duration=LONG), NAME, node=node).start()

    first = candidate("a")
    assert first.wait_until_leader(PATIENCE)
    others = [candidate(node) for node in ("b", "c", "d")]
    _await_followers(first, 4)
    assert first.resign(successor="c")
    assert others[1].wait_until_leader(PATIENCE)
    assert not others[0].is_leader()
    assert not others[2].is_leader()


def test_two_candidates_of_one_app_are_two_candidates(make_app: MakeApp) -> None:
    app = make_app(leader_lease_duration=LONG)
    first, second = LeaderElection(app, NAME).start(), LeaderElection(app, NAME)
    assert first.node != second.node
    assert first.wait_until_leader(PATIENCE)
    with second:
        _await_followers(first, 2)
        assert first.is_leader()
        assert not second.is_leader()
        assert first.resign()
        assert second.wait_until_leader(PATIENCE)


def test_of_two_nodes_of_one_name_the_other_leads_as_soon_as_one_resigns(
    make_app: MakeApp,
) -> None:
    first = LeaderElection(make_app(leader_lease_duration=LONG), NAME, node="w@web").start()
    assert first.wait_until_leader(PATIENCE)
    second = LeaderElection(make_app(leader_lease_duration=LONG), NAME, node="w@web").start()
    assert second._candidate is not None
    life = second._candidate.election.requester.life
    wait_until(
        lambda: [each.life for each in candidates_of(first._runtime, NAME)] == [life],
        what="the second to have asked",
    )
    assert not second.is_leader()
    first.resign()
    assert second.wait_until_leader(PATIENCE), "and not only when the lease has run out"
    second.resign()


def test_a_living_namesake_is_warned_of_once_by_each_and_a_killed_one_is_not(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, start_process: Campaigner
) -> None:
    lease = 2.0
    killed = start_process("w@web", lease=lease)
    wait_until(killed.leads, what="the first to lead")
    killed.kill()
    with LeaderElection(make_app(leader_lease_duration=lease), NAME, node="w@web"):
        time.sleep(3 * lease)
        assert _warnings(caplog) == []
        with LeaderElection(make_app(leader_lease_duration=lease), NAME, node="w@web"):
            wait_until(lambda: len(_warnings(caplog)) == 2, what="both to be warned")
            time.sleep(2 * lease)
    told = _warnings(caplog)
    assert len(told) == 2
    assert all("another living node is called w@web too (process, pid " in each for each in told)
    assert all("--hostname" in each for each in told)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    # The apps of these tests are projects of their own, which is another complaint.
    return [each for each in said if "of another project" not in each]


# -- names that are used once ----------------------------------------------------------------


def test_one_off_elections_that_are_forgotten_leave_nothing_behind(
    own_redis: RedisServer, make_app: MakeApp
) -> None:
    app = make_app(own_redis.url, leader_lease_duration=LONG)
    for number in range(20):
        election = LeaderElection(app, f"one-off-{number}").start()
        assert election.wait_until_leader(PATIENCE)
        with pytest.raises(LeaderError, match="resign"):
            election.forget()
        election.resign()
        assert election.forget()
        assert not election.forget()
    runtime = runtime_of(app)
    assert not [name for name in runtime.elections() if name.startswith("one-off")]
    assert runtime.beliefs._pages._pages == 1
    assert runtime.beliefs._pages._free < 5 * 88, "one place is used again and again"
    with own_redis.client() as client:
        assert client.keys("*") == []


def test_an_election_of_others_is_not_forgotten(make_app: MakeApp) -> None:
    with LeaderElection(make_app(leader_lease_duration=LONG), NAME, node="a@here") as election:
        assert election.wait_until_leader(PATIENCE)
        other = LeaderElection(make_app(leader_lease_duration=LONG), NAME)
        with pytest.raises(LeaderError, match=r"a@here takes part, heard of .* s ago"):
            other.forget()
        assert election.is_leader()


def test_an_election_keeps_its_app_alive(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = Celery("kept", broker=redis_url, set_as_current=False)
    election = LeaderElection(app, NAME).start()
    del app
    gc.collect()
    try:
        assert election.wait_until_leader(PATIENCE)
    finally:
        election.resign()
    assert not [each for each in caplog.records if each.exc_info]


def test_all_elections_of_a_process_share_one_connection(
    own_redis: RedisServer, make_app: MakeApp
) -> None:
    app = make_app(own_redis.url, leader_lease_duration=LONG)
    elections = [LeaderElection(app, f"election{number}").start() for number in range(8)]
    for election in elections:
        assert election.wait_until_leader(PATIENCE)
    other = make_app(own_redis.url, leader_lease_duration=LONG)
    followers = [
        LeaderElection(other, f"election{number}", node="other").start() for number in range(8)
    ]
    for number in range(8):
        _await_followers(elections[number], 2)
    with own_redis.client() as client:

        def connections() -> int:
            return len([c for c in client.client_list() if c["id"] != str(client.client_id())])

        # One that was just given up to be made anew may still be listed.
        wait_until(lambda: connections() == 2, what="one connection for each of two processes")
    assert not any(follower.is_leader() for follower in followers)


# -- processes that die and stop ------------------------------------------------------------------


def test_the_lease_of_a_killed_process_passes_on_and_no_two_ever_led(
    start_process: Campaigner,
) -> None:
    first = start_process("first")
    wait_until(first.leads, what="the first to lead")
    second = start_process("second")
    second.await_word()
    first.signal(signal.SIGKILL)
    wait_until(second.leads, what="the second to lead")
    assert_never_two_believed_at_once(first.sayings(), second.sayings())


def test_a_process_that_ends_gives_its_lease_up(
    start_process: Campaigner, make_app: MakeApp
) -> None:
    first = start_process("first", lease=LONG)
    wait_until(first.leads, what="the first to lead")
    assert first.end() == 0
    watching = runtime_of(make_app())
    record = record_of(watching, NAME)
    assert record is not None
    assert not record.led


def test_a_stopped_leader_thawed_after_its_lease_says_not_leader_and_no_two_ever_led(
    start_process: Campaigner, make_app: MakeApp
) -> None:
    watching = runtime_of(make_app())
    first = start_process("first")
    wait_until(first.leads, what="the first to lead")
    second = start_process("second")
    second.await_word()
    wait_until(lambda: len(candidates_of(watching, NAME)) == 2, what="the second to have asked")
    old_term = _term_of(watching)
    first.signal(signal.SIGSTOP)
    try:
        wait_until(second.leads, what="the second to lead")
    finally:
        first.signal(signal.SIGCONT)
    said_before = len(first.sayings())
    wait_until(lambda: len(first.sayings()) > said_before + 50, what="words of the thawed one")
    # Its very first question may have been under way when it was stopped.
    thawed = first.sayings()[said_before + 1 :]
    assert all(saying.term is None or saying.term > old_term for saying in thawed)
    assert_never_two_believed_at_once(first.sayings(), second.sayings())


def test_leadership_that_goes_round_many_stopped_processes_never_overlaps(
    start_process: Campaigner,
) -> None:
    processes = [start_process(node) for node in ("a", "b", "c")]
    for process in processes:
        process.await_word()
    for _ in range(2):
        leader = wait_until(
            lambda: next((process for process in processes if process.leads()), None),
            what="somebody to lead",
        )
        others = [process for process in processes if process is not leader]
        leader.signal(signal.SIGSTOP)
        try:
            wait_until(lambda: any(each.leads() for each in others), what="another to lead")
        finally:
            leader.signal(signal.SIGCONT)
        leader.await_word()
        wait_until(lambda: not leader.leads(), what="the thawed one to notice")
    assert_never_two_believed_at_once(*(process.sayings() for process in processes))


# -- brokers ----------------------------------------------------------------------------------------


def test_an_in_memory_broker_always_leads(make_app: MakeApp) -> None:
    with LeaderElection(make_app("memory://"), NAME) as election:
        assert election.wait_until_leader(0)
        assert election.check() >= 1
        leader = election.leader()
        assert leader is not None
        assert leader.term == election.term()
        assert leader.seconds_left > 1e9
    assert not election.is_leader()


def test_eager_mode_always_leads(make_app: MakeApp) -> None:
    app = make_app("redis://127.0.0.1:1/0", task_always_eager=True)
    with LeaderElection(app, NAME) as election:
        assert election.is_leader()


def test_a_broker_that_cannot_keep_leases_is_refused_saying_what_to_set(
    make_app: MakeApp,
) -> None:
    election = LeaderElection(make_app("amqp://guest:guest@127.0.0.1//"), NAME)
    with pytest.raises(LeaderError, match=r"broker_url .*amqp.* leader_url") as refusal:
        election.start()
    assert "guest:guest" not in str(refusal.value)
    with pytest.raises(LeaderError, match="leader_url"):
        election.leader()


def test_a_leader_url_beside_another_broker_keeps_the_leases(
    make_app: MakeApp, redis_url: str
) -> None:
    app = make_app("amqp://guest:guest@127.0.0.1//", leader_url=redis_url)
    with LeaderElection(app, NAME) as election:
        assert election.wait_until_leader(PATIENCE)


def test_a_leader_url_that_is_not_a_redis_is_refused(make_app: MakeApp) -> None:
    app = make_app(leader_url="amqp://guest:guest@127.0.0.1//")
    with pytest.raises(LeaderError, match=r"leader_url .*must name a Redis") as refusal:
        LeaderElection(app, NAME).start()
    assert "guest:guest" not in str(refusal.value)


def test_a_broker_url_nobody_knows_is_refused_naming_the_setting(make_app: MakeApp) -> None:
    app = make_app("carrier-pigeon://coop")
    with pytest.raises(LeaderError, match="broker_url"):
        LeaderElection(app, NAME).start()


def test_a_lease_that_cannot_be_kept_is_refused_naming_the_settings(make_app: MakeApp) -> None:
    app = make_app(leader_lease_duration=10, leader_renew_interval=9)
    with pytest.raises(LeaderError, match=r"leader_lease_duration \(10 s\)"):
        LeaderElection(app, NAME).start()


@pytest.mark.parametrize("name", ["", "two words", "a:b"])
def test_an_election_name_that_cannot_be_a_key_is_refused(make_app: MakeApp, name: str) -> None:
    with pytest.raises(LeaderError, match="not allowed"):
        LeaderElection(make_app(), name)


def test_a_candidate_that_is_refused_leaves_its_name_to_others(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(election: str) -> None:
        raise LeaderError("there is no place in shared memory")

    runtime = runtime_of(make_app())
    node = node_name("reports")
    with monkeypatch.context() as patched:
        patched.setattr(runtime.beliefs, "view_for", refuse)
        with pytest.raises(LeaderError, match="no place"):
            runtime.participation.enter("reports", node)
    with pytest.raises(LeaderError, match="not allowed"):
        runtime.participation.enter("two words", node)
    assert "two words" not in runtime.elections()
    assert runtime.node_names.unused("reports") == node


def test_an_election_nobody_knows_is_refused_and_the_known_ones_are_named(
    make_app: MakeApp,
) -> None:
    runtime = runtime_of(make_app(leader_elections=["mail"]))
    with pytest.raises(LeaderError, match=r"'mial'.*beat, mail, worker"):
        runtime.beliefs.term("mial")
    assert runtime.beliefs.term("mail") is None


# -- a Redis that comes and goes -----------------------------------------------------------------------


def test_a_redis_that_is_down_at_the_start_is_asked_until_it_comes_up(
    redis_binary_or_skip: str, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="celery_leader")
    port = free_port()
    with LeaderElection(make_app(f"redis://127.0.0.1:{port}/0"), NAME) as election:
        with pytest.raises(StoreUnavailable, match="broker_url"):
            election.leader()
        wait_until(lambda: "no answer, trying on" in caplog.text, what="the first failed attempt")
        assert not election.is_leader()
        with RedisServer(port=port):
            assert election.wait_until_leader(PATIENCE)
            wait_until(lambda: "answers again" in caplog.text, what="the good news in the log")
            assert election.resign()
    assert caplog.text.count("no answer, trying on") == 1, "attempts are not logged at WARNING"


def test_a_leader_of_a_redis_that_goes_away_stops_before_its_lease_is_over(
    own_redis: RedisServer, make_app: MakeApp
) -> None:
    election = LeaderElection(make_app(own_redis.url, leader_lease_duration=SHORT), NAME).start()
    assert election.wait_until_leader(PATIENCE)
    own_redis.pause()
    paused_at = asked_at = clock.now()
    try:
        while election.is_leader():
            assert asked_at < paused_at + SHORT, "it believes longer than its last renewal allows"
            asked_at = clock.now()
    finally:
        own_redis.resume()
    assert election.wait_until_leader(PATIENCE), "and leads again when Redis does"


def test_a_leader_of_a_redis_that_lost_its_data_leads_on_with_a_higher_term(
    own_redis: RedisServer, make_app: MakeApp
) -> None:
    election = LeaderElection(make_app(own_redis.url, leader_lease_duration=SHORT), NAME).start()
    assert election.wait_until_leader(PATIENCE)
    before = election.check()
    with own_redis.client() as client:
        client.flushall()
    wait_until(lambda: (election.term() or 0) > before, what="a higher term")
    leader = election.leader()
    assert leader is not None
    assert leader.term > before


# -- small parts ------------------------------------------------------------------------------------------


def _await_followers(election: LeaderElection, count: int) -> None:
    """Wait until ``count`` candidates have asked, so that who does not lead follows."""
    runtime = election._runtime
    wait_until(
        lambda: len(candidates_of(runtime, election.name)) == count,
        what=f"{count} candidates of {election.name}",
    )


def _term_of(runtime: AppRuntime) -> int:
    record = record_of(runtime, NAME)
    assert record is not None
    return record.term


def test_an_app_has_one_leadership() -> None:
    app = Celery("one", broker="memory://", set_as_current=False)
    assert runtime_of(app) is runtime_of(app)
