"""What is no Celery app is refused by name, and what stands for one is taken for it."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.local import Proxy

from celery_leader import LeaderElection, LeaderError, install


class WebApp:
    def __repr__(self) -> str:
        return "<WebApp>"


@pytest.mark.parametrize("app", [WebApp(), "proj", None])
def test_what_is_no_celery_app_is_refused_by_name(app: Any) -> None:
    with pytest.raises(LeaderError, match=f"^install takes a Celery app, and {app!r} is none$"):
        install(app)
    with pytest.raises(LeaderError, match=f"^LeaderElection takes a Celery app, and {app!r}"):
        LeaderElection(app, "reports")


def test_celery_s_current_app_is_the_app_it_stands_for() -> None:
    app = Celery("proj", broker="memory://", set_as_current=False)
    stands_for_it = Proxy(lambda: app)
    assert install(stands_for_it) is app
    with LeaderElection(stands_for_it, "reports") as election:
        assert election.is_leader()
