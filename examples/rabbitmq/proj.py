"""An app whose messages go through RabbitMQ, and whose leases are in a Redis: ``leader_url``."""

from __future__ import annotations

import os

from celery import Celery
from celery.utils.log import get_task_logger

from celery_leader import current_term, install, leader_only

logger = get_task_logger(__name__)

app = Celery("proj", broker=os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672//"))
app.conf.update(
    # RabbitMQ cannot keep a lease. Without this the workers and beats do not start, and say so.
    leader_url=os.environ.get("REDIS_URL", "redis://localhost:6379/0"),
    leader_lease_duration=10,
    broker_connection_retry_on_startup=True,
    beat_schedule={"count": {"task": "proj.count", "schedule": 1.0}},
    task_ignore_result=True,
)
install(app)


@leader_only
@app.task(bind=True)
def count(self):
    # A beat that is killed between the claim and the confirmation of a message has its successor
    # send it again, under the same id: what must not be done twice can be told by it.
    logger.info("tick %s, term %d", self.request.headers["leader_tick"], current_term())
