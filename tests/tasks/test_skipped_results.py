"""What a worker makes of a result backend that is away while it skips leader-only tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet, Process
from tests.support.postgres import Postgres, postgres_binaries
from tests.support.services import must_have
from tests.support.waiting import wait_until

PREFETCHED = 4  # by one process, as Celery has it by default

STATES = {
    "django-db": "SELECT status FROM django_celery_results_taskresult WHERE task_id = ANY(%s)",
    "db": "SELECT status FROM celery_taskmeta WHERE task_id = ANY(%s)",
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of these tests, which may be restarted."""
    must_have(postgres_binaries(), "there is no PostgreSQL here")
    server = Postgres()
    try:
        yield server.start()
    finally:
        server.close()


class Results:
    """A follower whose results are in PostgreSQL, and what is stored there."""

    def __init__(self, fleet: Fleet, worker: Process, server: Postgres, states: str) -> None:
        self.fleet = fleet
        self.worker = worker
        self._server = server
        self._states = states

    def skip(self, count: int) -> list[str]:
        """Send ``count`` tasks that the worker is to skip; their ids."""
        return [self.fleet.send("skippable", f"skipped {n}").id for n in range(count)]

    def revoked(self, ids: list[str]) -> None:
        """Wait until all of ``ids`` have ended as skipped tasks do."""
        wait_until(lambda: self.states(ids) == ["REVOKED"] * len(ids), what="all to be revoked")

    def states(self, ids: list[str]) -> list[str]:
        """The states that are stored of them."""
        psycopg2 = pytest.importorskip("psycopg2")
        with (
            contextlib.closing(
                psycopg2.connect(host="127.0.0.1", port=self._server.port, user="postgres")
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(self._states, (ids,))
            return [state for (state,) in cursor.fetchall()]

    def works(self, label: str) -> None:
        """Wait until the worker has run an ordinary task."""
        self.fleet.send("plain", label)
        self.fleet.saw("ran", label)


@pytest.fixture(params=STATES)
def results(new_fleet: NewFleet, postgres: Postgres, request: Any) -> Results:
    """A follower that has skipped a task and stored that, so that it has been connected."""
    config: dict[str, Any] = {"backend": postgres.url}
    if request.param == "django-db":
        pytest.importorskip("django_celery_results")
        config = {"backend": "django-db", "result_database": postgres.django}
    fleet = new_fleet(**config)
    if request.param == "django-db":
        done = fleet.python(
            "import tests.support.fleet_app, django; django.setup()\n"
            "from django.core.management import call_command; call_command('migrate')"
        )
        assert done.returncode == 0, done.stderr
    worker = fleet.worker("w1", "--no-candidate").says(" ready.")
    results = Results(fleet, worker, postgres, STATES[request.param])
    results.revoked(results.skip(1))
    results.works("before")
    return results


def test_a_result_backend_that_was_restarted_takes_what_is_skipped_and_the_worker_goes_on(
    results: Results, postgres: Postgres
) -> None:
    postgres.stop()
    postgres.start()
    skipped = results.skip(2 * PREFETCHED)
    results.works("after the restart")
    results.revoked(skipped)


def test_a_worker_goes_on_while_its_result_backend_is_away_and_stores_what_it_skipped_afterwards(
    results: Results, postgres: Postgres
) -> None:
    postgres.stop()
    try:
        skipped = results.skip(2 * PREFETCHED)
        results.worker.says("results of skipped tasks cannot be stored")
        for round_ in range(PREFETCHED):
            results.works(f"while it is away {round_}")
        skipped += results.skip(1)
        told = results.fleet.app.control.inspect(timeout=30, limit=1).stats()
        assert told is not None
        assert told[results.worker.node]["leader_unstored_skips"] == len(skipped)
    finally:
        postgres.start()
    results.revoked(skipped)
    results.worker.says("results of skipped tasks are stored again")
    assert results.worker.log.count("results of skipped tasks cannot be stored") == 1
    assert results.fleet.redis.hlen("unacked") == 0
    assert results.worker.terminate() == 0
