"""Chaos for leader-only tasks: real workers under faults, and an account of every task id.

``python -m tests.chaos.tasks --minutes 2`` prints its seed, each fault with its time, a table
of what became of the tasks sent in each way, and what must not have been; then it ends with
exit code 1. With ``--no-guard`` the same tasks are marked for nobody and go to any worker:
with ``--expect-follower-starts`` it ends with exit code 0 only if the judge has seen them.
With ``--plain`` the workers are Celery's alone, without this package: what is lost then,
Celery loses.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import redis
from celery import Celery

from tests.chaos import task_app
from tests.chaos.accounts import Accounts, Report, Row
from tests.chaos.command import Plan, judged
from tests.chaos.faults import schedule
from tests.chaos.moments import present, time_of_day
from tests.chaos.sender import Sender
from tests.chaos.supervised import Death
from tests.chaos.task_faults import KINDS, Electing, Plain, Scene
from tests.chaos.witness import Journal, Witness, wait_for_rest
from tests.chaos.workers import Worker, Workers
from tests.support.redis_server import RedisServer, free_port

_AN_HOUR = 60.0  # seconds of the run in which an hour of kombu's visibility timeout passes
_HELD_BY_NOBODY = 2 * task_app.LONG_BODY  # seconds; longer than any body takes
_STARTS_WITHIN = 20.0  # seconds a worker may take; part of what is waited for at the end


def main() -> int:
    options = parsed()
    what = f"{options.workers} workers, lease {options.lease:g} s, tasks {options.how}"
    return judged(
        options,
        title="chaos of tasks",
        what=what,
        whose="workers",
        run=_run,
        table=table,
        harm_expected=options.expect_follower_starts,
        harm=lambda report: report.on_followers,
    )


def _run(options: argparse.Namespace, seed: int, logs: Path) -> tuple[Report, list[str]]:
    faults = schedule(seed, [kind for kind in KINDS if options.only in kind])
    return run(options, seed, Plan(faults), logs)


def run(options: argparse.Namespace, seed: int, plan: Plan, logs: Path) -> tuple[Report, list[str]]:
    """Put workers under the faults of ``plan``; the report, and notes beside it."""
    unrecovered: list[str] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RedisServer(port=free_port()))
        journal = stack.enter_context(Journal(server.port))
        witness = stack.enter_context(Witness(server.port))
        config = {
            "redis": server.url,
            "lease": options.lease,
            "how": options.how,
            "imports": plan.imports,
        }
        workers = stack.enter_context(Workers(options.workers, server.port, config, logs))
        plan.watch(workers.all)
        client = redis.Redis(host="127.0.0.1", port=server.port, decode_responses=True)
        stack.enter_context(client)
        kind = Electing(client, workers)
        if options.how == task_app.PLAIN:
            kind = Plain(client, workers, seed)
        scene = Scene(workers, options.lease, kind)
        stack.callback(scene.close)
        if not scene.recover():
            raise SystemExit("chaos of tasks: no worker leads")
        queues = [worker.queue for worker in workers.all]
        app, stranger = _senders(server.url, config, stack)
        sender = stack.enter_context(
            Sender(app, stranger, queues, seed, lambda: len(witness.ended))
        )
        _let_go_wrong(options.minutes, plan, scene, unrecovered, witness)
        sender.stop()

        ids = {task_id for unit in sender.sent for task_id in unit.ids}

        def open_() -> int:
            rest = ids - witness.ended
            return len(rest) - list(witness.states(rest).values()).count("REVOKED")

        patience = (
            task_app.VISIBILITY
            + task_app.LONG_BODY
            + task_app.FAR
            + 2 * task_app.RESTORE_EVERY
            + options.lease
            + max(_STARTS_WITHIN, Worker.ends_within)
        )
        everywhere = [*queues, "celery", task_app.LEADER_QUEUE]
        stuck = wait_for_rest(witness, everywhere, open_, patience, _HELD_BY_NOBODY)
        states = witness.states(ids)
        deaths = workers.deaths
    for watcher in (journal, witness, sender):
        if watcher.error is not None:
            raise watcher.error
    accounts = Accounts(
        witness.starts, witness.ended, states, journal.traces, scene.frozen, scene.killed
    )
    report = accounts.of_ids(sender.sent)
    if options.how != task_app.PLAIN:
        accounts.judge_starts(report)
    if timed := journal.fetched & journal.timed:
        report.violations.append(f"{len(timed)} x fetched, and in kombu's visibility timeout")
    report.violations += unrecovered
    if stuck:
        report.violations.append(stuck)
    report.violations += [_of(death) for death in deaths if not death.told]
    notes = [
        f"\n{report.starts} bodies started, {report.on_followers} on a follower;"
        f" {report.excused} more were paused between their check and their first act"
    ]
    if options.how == task_app.GUARDED:
        if not journal.fetched:
            report.violations.append("nothing was fetched from the leader queue")
        notes.append(
            f"{len(journal.fetched)} messages fetched from the leader queue; excused is only what"
            " a plain queue lost"
        )
    notes += [f"lost {loss}" for loss in report.lost]
    return report, notes + [_of(death) for death in deaths if death.told]


def _let_go_wrong(
    minutes: float, plan: Plan, scene: Scene, unrecovered: list[str], witness: Witness
) -> None:
    end = time.monotonic() + 60 * minutes
    time.sleep(2)
    while time.monotonic() < end:
        fault = next(plan.faults)
        at = time_of_day(present())
        print(f"{at}  {fault.kind}", file=sys.stderr, flush=True)
        scene.bring_about(fault)
        if not scene.recover():
            unrecovered.append(f"no recovery after {fault.kind} at {at}")
        witness.have_an_hour_pass(_AN_HOUR)
        time.sleep(fault.rest)
    scene.close()
    if not scene.recover():
        unrecovered.append("no recovery at the end")


def _senders(
    url: str, config: dict[str, object], stack: contextlib.ExitStack
) -> tuple[Celery, Celery]:
    app = task_app.build({**config, "broker": url, "imports": ()})
    app.set_current()
    stranger = Celery("stranger", broker=url, set_as_current=False)
    for each in (app, stranger):
        stack.callback(each.close)
    return app, stranger


def _of(death: Death) -> str:
    return f"{death.name} {death.what} at {time_of_day(death.at)}; see {death.log}"


def table(report: Report) -> str:
    """The report as text."""
    head = "| sent by | sent | ran | ran twice | skipped | gone with an early ack | lost by Celery | unfinished |"
    total = Row("all")
    lines = [head, "|---|" + "---:|" * 7]
    for row in report.rows:
        for name in Row.__slots__[1:]:
            setattr(total, name, getattr(total, name) + getattr(row, name))
    for row in [*report.rows, total]:
        cells = (getattr(row, name) for name in Row.__slots__)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, by default those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.tasks", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long (default 2)")
    parser.add_argument("--seed", type=int, help="of the schedule of faults; by default drawn")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--lease", type=float, default=3.0, help="seconds")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--no-guard", dest="how", action="store_const", const=task_app.UNMARKED)
    how.add_argument("--plain", dest="how", action="store_const", const=task_app.PLAIN)
    parser.set_defaults(how=task_app.GUARDED)
    parser.add_argument("--only", default="", help="the faults whose name has this in it")
    parser.add_argument("--expect-follower-starts", action="store_true")
    parser.add_argument("--keep-logs", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
