"""The tasks from which tests make canvases. Each records where it ran and adds one."""

from __future__ import annotations

import functools
import json
from typing import Any

from celery import Celery, signature

from celery_leader import LeaderTask, leader_only
from tests.support.fleet_app.recorder import Recorder
from tests.support.fleet_app.tasks import own


def define_canvas_tasks(app: Celery, recorder: Recorder) -> None:
    """Give ``app`` tasks to make canvases of: each says where it ran and adds one."""
    saw = recorder.saw
    task = functools.partial(app.task, bind=True, shared=False)

    def step(self: Any, value: Any = 0, label: str = "") -> int:
        if isinstance(value, list):  # a map gives one argument
            value, label = value
        saw(self, "ran", label=label, value=value, request=_facts(self.request))
        return value + 1

    def total(self: Any, values: list[int], label: str = "") -> int:
        saw(self, "ran", label=label, value=values)
        return sum(values)

    task(name="fleet.step")(step)
    task(name="fleet.total")(total)
    leader_only(task(own(step), name="fleet.lead_step"))
    leader_only(task(own(total), name="fleet.lead_total"))
    leader_only(on_follower="skip")(task(own(step), name="fleet.skip_step"))
    leader_only(on_follower="skip")(task(own(total), name="fleet.skip_total"))
    leader_only(send_from="leader")(task(own(step), name="fleet.own_step"))
    leader_only(send_from="leader")(task(own(total), name="fleet.own_total"))
    leader_only(on_follower="skip")(
        task(own(step), name="fleet.skip_silent_step", ignore_result=True)
    )
    task(own(step), name="fleet.based_step", base=LeaderTask)
    task(own(step), name="fleet.based_skip_step", base=LeaderTask, on_follower="skip")

    class ClassStep(LeaderTask):
        name = "fleet.class_step"

        def run(self, value: Any = 0, label: str = "") -> int:
            return step(self, value, label)

    app.register_task(ClassStep())

    @task(name="fleet.plain_fails")
    def plain_fails(self: Any, label: str = "") -> None:
        raise ValueError(label)

    @task(name="fleet.lead_errback")
    @leader_only
    def lead_errback(self: Any, failed: str, label: str = "") -> None:
        saw(self, "ran", label=label, failed=failed)

    @task(name="fleet.plain_errback")
    def plain_errback(self: Any, failed: str, label: str = "") -> None:
        saw(self, "ran", label=label, failed=failed)

    @task(name="fleet.lead_autoretry", autoretry_for=(ValueError,), retry_kwargs={"countdown": 0})
    @leader_only
    def lead_autoretry(self: Any, label: str = "") -> int:
        saw(self, "ran", label=label)
        if not self.request.retries:
            raise ValueError(label)
        return int(self.request.retries)

    @task(name="fleet.replaced")
    def replaced(self: Any, by: dict[str, Any]) -> Any:
        return self.replace(signature(by, app=app))

    @task(name="fleet.lead_replaced")
    @leader_only
    def lead_replaced(self: Any, by: dict[str, Any]) -> Any:
        return self.replace(signature(by, app=app))

    @task(name="fleet.lead_calls")
    @leader_only
    def lead_calls(self: Any, label: str = "") -> list[int]:
        other = app.tasks["fleet.lead_step"]
        return [other(1, label), other.apply((2, label)).result]

    @task(name="fleet.apply")
    def apply(self: Any, canvas: dict[str, Any], label: str = "") -> Any:
        result = signature(canvas, app=app).apply_async()
        return result.as_tuple()


def _facts(request: Any) -> Any:
    """Everything a task request says, as far as JSON can."""
    facts = {k: v for k, v in vars(request).items() if not k.startswith("_")}
    return json.loads(json.dumps(facts, default=repr))
