"""The Celery app: one leader-only task, and one that any worker runs."""

from __future__ import annotations

import os
import time

from celery import Celery

from celery_leader import check_leader, install, leader_only

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

app = Celery("proj", broker=REDIS_URL, backend=REDIS_URL)
app.conf.update(
    leader_lease_duration=10,
    broker_connection_retry_on_startup=True,
    beat_schedule={"nightly": {"task": "proj.build_report", "schedule": 3.0, "args": ("nightly",)}},
)
install(app)


@leader_only
@app.task(bind=True)
def build_report(self, name):
    """Build a report on the leading worker, so that no two are built at once."""
    rows = 0
    for _ in range(3):
        check_leader()  # stop, rather than write beside the next leader
        time.sleep(0.1)
        rows += 1
    return {"name": name, "rows": rows, "worker": self.request.hostname, "term": check_leader()}
