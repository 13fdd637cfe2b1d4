from celery import shared_task
from celery.utils.log import get_task_logger

from celery_leader import check_leader, leader_only

from .models import Report

logger = get_task_logger(__name__)


@shared_task
def greet():
    logger.info("hello from any worker")


@leader_only
@shared_task(bind=True)
def write_report(self):
    # `due_at` is unique: should a worker be killed in here and the task come back, there is
    # still one report for each tick.
    tick = (self.request.headers or {}).get("leader_tick", self.request.id)
    term = check_leader()
    report, new = Report.objects.get_or_create(
        due_at=tick, defaults={"worker": self.request.hostname, "term": term}
    )
    logger.info("%s %s", "wrote" if new else "there was already", report)
