"""Leader election in one file: a plain task, a leader-only one, and a schedule for both.

README.md beside this file says how to run it.
"""

from __future__ import annotations

import os

from celery import Celery
from celery.utils.log import get_task_logger

from celery_leader import check_leader, current_term, install, leader_only

logger = get_task_logger(__name__)

app = Celery("quickstart", broker=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
app.conf.beat_schedule = {
    "greet": {"task": "quickstart.greet", "schedule": 2.0},
    "close-the-books": {"task": "quickstart.close_the_books", "schedule": 5.0},
}
app.conf.task_ignore_result = True
app.conf.leader_lease_duration = 10  # seconds a dead leader is waited for; 25 by default
install(app)


@app.task
def greet():
    logger.info("hello from any worker")


@leader_only
@app.task
def close_the_books():
    logger.info("closing the books, term %d", current_term())
    for account in ("rent", "food", "travel"):
        check_leader()  # raises NotLeader once another worker may have taken over
        logger.info("%s is settled", account)
