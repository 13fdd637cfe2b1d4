"""The one answer to whether a leader-only body may start here, now."""

from __future__ import annotations

import pytest
from celery import Celery

from celery_leader import install, leader_only
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.tasks.admission import Admission, NotLeading


@pytest.mark.parametrize(
    ("here", "takes", "starts", "skips"),
    [
        (Admission(leads=True, steps_down=False, shuts_down=False), True, True, True),
        (Admission(leads=True, steps_down=True, shuts_down=False), False, True, False),
        (Admission(leads=True, steps_down=False, shuts_down=True), True, False, False),
        (Admission(leads=False, steps_down=False, shuts_down=False), False, False, True),
        (Admission(leads=False, steps_down=True, shuts_down=True), False, False, False),
    ],
)
def test_a_worker_takes_starts_and_skips_by_what_it_leads_and_whether_it_leaves(
    here: Admission, takes: bool, starts: bool, skips: bool
) -> None:
    assert (here.takes, here.starts, here.skips) == (takes, starts, skips)


def test_no_body_starts_once_the_shutdown_of_its_worker_has_begun() -> None:
    app = install(Celery("going", broker="redis://127.0.0.1:1", set_as_current=False))

    @app.task(shared=False)
    @leader_only
    def last() -> None: ...

    app.finalize()
    task = app.tasks[last.name]
    runtime = runtime_of(app)
    runtime.beliefs.reserve(["worker"])  # as a worker does before its pool starts
    runtime.beliefs._reserved["worker"].publish(7, float("inf"))
    runtime.beliefs._own["worker"] = (runtime.beliefs._reserved["worker"],)
    task.before_start("id", (), {})
    runtime.beliefs.announce_shutdown()
    with pytest.raises(NotLeading):
        task.before_start("id", (), {})
    app.close()
