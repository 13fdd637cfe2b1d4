"""The app of docker-compose.yml: a plain task, a leader-only one, and a schedule for both.

README.md beside this file says how to run it, and what to look at.
"""

from __future__ import annotations

import os

from celery import Celery
from celery.utils.log import get_task_logger

from celery_leader import check_leader, current_term, install, leader_only

logger = get_task_logger(__name__)

LEASE = float(os.environ.get("LEADER_LEASE_DURATION", "10"))
METRICS_PORT = os.environ.get("LEADER_METRICS_PORT")  # for Prometheus

app = Celery("proj", broker=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
app.conf.update(
    # Seconds that a killed leader is waited for; 25 by default.
    leader_lease_duration=LEASE,
    leader_metrics_port=int(METRICS_PORT) if METRICS_PORT else None,
    # Of this machine alone by default; in a container the others are elsewhere.
    leader_metrics_address=os.environ.get("LEADER_METRICS_ADDRESS", "127.0.0.1"),
    beat_schedule={
        "greet": {"task": "proj.greet", "schedule": 2.0},
        "close-the-books": {"task": "proj.close_the_books", "schedule": 5.0},
    },
    # A body that its worker's death cut short runs again, on another worker.
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={
        # For plain tasks: longer than the longest of them. What a killed worker had in hand comes
        # back after it. Leader-only tasks come back as soon as there is another leader.
        "visibility_timeout": 60,
        # Look for that more often than every 100 seconds.
        "unacked_restore_interval": 10,
    },
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    worker_send_task_events=True,  # for Flower
)
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
