"""The one answer to whether a leader-only body may start here, now."""

from __future__ import annotations

import pytest
from celery import Celery

from celery_leader import install, leader_only
from celery_leader.runtime.leadership import leadership_of
from celery_leader.tasks.admission import Admission, NotLeading


@pytest.mark.parametrize(
    ("here", "takes", "starts", "skips"),
    [
        (Admission(leads=True, gives_way=False, shuts_down=False), True, True, True),
        (Admission(leads=True, gives_way=True, shuts_down=False), False, True, False),
        (Admission(leads=True, gives_way=False, shuts_down=True), True, False, False),
        (Admission(leads=False, gives_way=False, shuts_down=False), False, False, True),
        (Admission(leads=False, gives_way=True, shuts_down=True), False, False, False),
    ],
)
def test_a_worker_takes_starts_and_skips_by_what_it_leads_and_whether_it_leaves(
    here: Admission, takes: bool, starts: bool, skips: bool
) -> None:
    assert (here.takes, here.starts, here.skips) == (takes, starts, skips)


def test_no_body_starts_once_the_shutdown_of_its_worker_has_begun() -> None:
    app = install(Celery("going", broker="redis://127.0.0.1:1", set_as_current=False))

    @app.task
    @leader_only
    def last() -> None: ...

    app.finalize()
    task = app.tasks[last.name]
    leadership = leadership_of(app)
    leadership.beliefs.reserve(["worker"])  # as a worker does before its pool starts
    leadership.beliefs._reserved["worker"].publish(7, float("inf"))
    leadership.beliefs._own["worker"] = (leadership.beliefs._reserved["worker"],)
    task.before_start("id", (), {})
    leadership.beliefs.announce_shutdown()
    with pytest.raises(NotLeading):
        task.before_start("id", (), {})
    app.close()
