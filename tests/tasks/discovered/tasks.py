"""Tasks as an application has them: shared, and by their own names."""

from __future__ import annotations

from celery import shared_task

from celery_leader import LeaderTask, leader_only


@leader_only
@shared_task
def above() -> str:
    return "above"


@shared_task
@leader_only(election="reports")
def below() -> str:
    return "below"


@shared_task(base=LeaderTask, election="reports")
def based() -> str:
    return "based"


@shared_task
def ordinary() -> str:
    return "ordinary"
