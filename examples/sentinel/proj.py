"""An app whose broker is found by Redis Sentinel; so are the leases, which live in the broker."""

from __future__ import annotations

import os

from celery import Celery
from celery.utils.log import get_task_logger

from celery_leader import current_term, install, leader_only

logger = get_task_logger(__name__)

SENTINELS = os.environ.get(
    "SENTINELS", "sentinel://sentinel1:26379;sentinel://sentinel2:26379;sentinel://sentinel3:26379"
)

app = Celery("proj", broker=SENTINELS)
app.conf.update(
    broker_transport_options={
        "master_name": os.environ.get("MASTER_NAME", "mymaster"),
        # A master that hangs is given up after this many seconds, and looked for again.
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
    },
    broker_connection_retry_on_startup=True,
    # A lease is believed when one of the two replicas has it, so that a failover to that one
    # does not lose it. After the failover there is still one replica to wait for.
    leader_wait_replicas=1,
    leader_lease_duration=10,
    beat_schedule={"count": {"task": "proj.count", "schedule": 1.0}},
    task_ignore_result=True,
)
install(app)


@leader_only
@app.task(bind=True)
def count(self):
    logger.info("tick %s, term %d", self.request.headers["leader_tick"], current_term())
