"""``celery_leader.testing``: a test says who leads, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery

from celery_leader import (
    LeaderElection,
    LeaderError,
    NotLeader,
    TaskSkipped,
    check_leader,
    current_term,
    install,
    is_leader,
    leader_only,
    leading,
)
from celery_leader.testing import following, leading_as

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture(params=["redis", "eager", "memory"])
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    """An app as users' tests have them: none of them has a Redis."""
    broker = NOWHERE if request.param == "redis" else "memory://"
    app = Celery("users", broker=broker, set_as_current=False)
    app.conf.task_always_eager = request.param == "eager"
    install(app)
    yield app
    app.close()


def test_the_leader_leads_with_the_term_it_was_given(app: Celery) -> None:
    with leading_as(app, term=7):
        assert is_leader()
        assert current_term() == check_leader() == 7
        with leading() as term:
            assert term == 7


def test_a_follower_does_not_lead(app: Celery) -> None:
    with following(app):
        assert not is_leader()
        assert current_term() is None
        with pytest.raises(NotLeader):
            check_leader()
        with pytest.raises(NotLeader), leading():
            raise AssertionError("the block was run")


def test_the_lead_can_be_lost_and_won_in_the_middle_of_a_body(app: Celery) -> None:
    written: list[tuple[int, int | None]] = []

    @leader_only
    @app.task(shared=False)
    def report(rows: int) -> None:
        for row in range(rows):
            check_leader()
            written.append((row, current_term()))
            if row == 1:
                lead.lose()

    with leading_as(app, term=7) as lead:
        with pytest.raises(NotLeader):
            report(4)
        assert written == [(0, 7), (1, 7)]
        lead.win(9)
        report(1)
        assert written[-1] == (0, 9)


@pytest.mark.parametrize("eager", [False, True])
def test_a_leader_only_body_speaks_of_the_term_it_began_with(app: Celery, eager: bool) -> None:
    app.conf.task_always_eager = eager
    told: list[object] = []

    @leader_only
    @app.task(shared=False)
    def report() -> None:
        told.append((check_leader(), current_term(), is_leader()))
        lead.win(9)
        told.append((current_term(), is_leader(), current_term("reports")))
        with pytest.raises(NotLeader, match="term 7, which this body began with"), leading():
            raise AssertionError("the block was run")
        totals.apply()
        totals()
        check_leader()

    @leader_only
    @app.task(shared=False)
    def totals() -> None:
        told.append((current_term(), is_leader()))

    with following(app, "reports") as reports, leading_as(app, term=7) as lead:
        reports.win(3)
        result = report.delay() if eager else report.apply()
        with pytest.raises(NotLeader, match="won it again with term 9"):
            result.get()
        assert told == [(7, 7, True), (None, False, 3), (None, False), (None, False)]
        # The next body, and code outside of one, speak of the present.
        assert check_leader() == 9
        totals.apply()
        assert told[-1] == (9, True)


def test_other_elections_and_what_was_before_are_not_touched(app: Celery) -> None:
    with following(app), leading_as(app, "reports", term=3):
        assert (is_leader(), is_leader("reports")) == (False, True)
        with leading_as(app, term=4):
            assert current_term() == 4
        assert not is_leader()
    with following(app), pytest.raises(LeaderError, match="no election 'reports'"):
        is_leader("reports")


def test_an_election_of_ones_own_is_decided_too_without_a_wait(app: Celery) -> None:
    with leading_as(app, "reports", term=3) as lead, LeaderElection(app, "reports") as election:
        assert election.wait_until_leader(timeout=60)
        assert election.check() == 3
        leader = election.leader()
        assert leader is not None
        assert leader.term == 3
        lead.lose()
        assert election.term() is None
        assert election.leader() is None
        assert not election.wait_until_leader()


def test_a_leader_only_task_is_skipped_on_a_follower_also_where_all_is_eager(app: Celery) -> None:
    app.conf.task_always_eager = True
    ran = []

    @leader_only
    @app.task(shared=False)
    def report() -> str:
        ran.append(True)
        return "written"

    with following(app):
        result = report.delay()
        assert (result.state, ran) == ("REVOKED", [])
        with pytest.raises(TaskSkipped, match="does not lead 'worker'"):
            result.get()
        assert report.apply().get() == report() == "written"  # these just run it
    with leading_as(app):
        assert report.delay().get() == "written"
    with following(app, "reports"):  # of another election
        assert report.delay().get() == "written"
    assert report.delay().get() == "written"  # outside of such a test nobody else could run it


@pytest.mark.parametrize("app", ["redis", "memory"], indirect=True)  # an eager app sends nothing
def test_what_only_the_leader_sends_is_held_back_on_a_follower(app: Celery) -> None:
    @leader_only(send_from="leader")
    @app.task(ignore_result=True, shared=False)
    def report() -> None: ...

    with following(app):
        result = report.delay()
    assert result.state == "REVOKED"
    with pytest.raises(TaskSkipped):
        result.get()
