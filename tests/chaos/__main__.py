"""Chaos: real beats, each behind its own proxy, a schedule of faults, and a judge.

``python -m tests.chaos --minutes 3`` prints its seed, a table of what came of each kind of
fault, and what must not have been; then it ends with exit code 1. With ``--no-fence`` the
beats publish before they write, and the judge must see what comes of that: with
``--expect-duplicates`` it ends with exit code 0 only if it has.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.app import Schedule
from tests.chaos.beats import Beats
from tests.chaos.command import Plan, judged
from tests.chaos.drainer import Drainer
from tests.chaos.faults import KINDS, Done, Scene, schedule
from tests.chaos.judge import Judge, Report, Row, Window
from tests.chaos.moments import present, time_of_day
from tests.chaos.stalls import Stalls
from tests.support.redis_server import RedisServer, free_port

_DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
_SCHEDULERS = {True: "leader", False: "tests.chaos.app:UnfencedScheduler"}
_CALM = "no fault"


def main() -> int:
    options = parsed()
    what = (
        f"{options.beats} beats, lease {options.lease:g} s, catch-up {options.catch_up!r},"
        f" fence {'on' if options.fence else 'OFF'}"
    )
    return judged(
        options,
        title="chaos",
        what=what,
        whose="beats",
        run=_run,
        table=table,
        harm_expected=options.expect_duplicates,
        harm=lambda report: report.duplicates,
    )


def _run(options: argparse.Namespace, seed: int, logs: Path) -> tuple[Report, list[str]]:
    faults = schedule(seed, [kind for kind in KINDS if options.only in kind])
    return run(options, Plan(faults), logs)


def run(options: argparse.Namespace, plan: Plan, logs: Path) -> tuple[Report, list[str]]:
    """Put beats under the faults of ``plan``; the report, and notes beside it."""
    sizes = Schedule(burst=options.burst)
    config = {
        "lease": options.lease,
        "catch_up": options.catch_up,
        "schedule": {"steady": sizes.steady, "burst": sizes.burst},
        "imports": plan.imports,
    }
    stalls = Stalls()
    happened: list[tuple[str, Done]] = []
    unrecovered: list[str] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RedisServer(_DURABLE, port=free_port()))
        drainer = stack.enter_context(Drainer(server.port))
        beats = stack.enter_context(
            Beats(options.beats, server.port, _SCHEDULERS[options.fence], config, logs)
        )
        plan.watch(beats.all)
        scene = Scene(server, beats, drainer, options.lease)
        stack.callback(scene.close)
        begun = present()
        happened.append((_CALM, Done(0, float("inf"))))
        if not scene.recover(begun):
            raise SystemExit("chaos: the beats do not begin")
        happened.append((_CALM, Done(present(), options.lease + 1)))
        time.sleep(2)
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            fault = next(plan.faults)
            done = scene.bring_about(fault)
            happened.append((fault.kind, done))
            line = f"{time_of_day(done.begins)}  {fault.kind}"
            print(f"{line}  {done.note}".rstrip(), file=sys.stderr, flush=True)
            if not scene.recover(present()):
                unrecovered.append(f"no recovery after {fault.kind} at {time_of_day(done.begins)}")
            time.sleep(fault.rest)
        scene.close()
        if not scene.recover(present()):
            unrecovered.append("no recovery at the end")
        until = present()
        time.sleep(2 * sizes.burst_every)
        closed = present()
    deaths = beats.deaths
    windows = _windows(happened, closed, stalls, [death.at for death in deaths])
    intervals = {name: round(every * 1e6) for name, every in sizes.intervals.items()}
    judge = Judge(intervals, options.catch_up, windows)
    report = judge.report(drainer.arrivals, drainer.elections, until)
    report.violations += unrecovered
    notes = [
        f"\n{len(drainer.elections)} elections, {len(drainer.arrivals)} messages,"
        f" this machine stood still for {stalls.between(0, closed):.1f} s"
    ]
    notes += [f"{d.name} {d.what} at {time_of_day(d.at)}; see {d.log}" for d in deaths]
    notes += _log_notes(logs)
    return report, notes


def _windows(
    happened: list[tuple[str, Done]], closed: int, stalls: Stalls, deaths: list[int]
) -> list[Window]:
    ends = [done.begins for _, done in happened[1:]] + [closed]
    return [
        Window(
            kind,
            done.begins,
            done.allowed,
            stalled=stalls.between(done.begins, end),
            died=sum(done.begins <= at < end for at in deaths),
        )
        for (kind, done), end in zip(happened, ends, strict=True)
    ]


def _log_notes(logs: Path) -> list[str]:
    counts: dict[str, int] = {}
    for log in logs.glob("*.log"):
        for line in log.read_text(errors="replace").splitlines():
            for sign in ("Traceback", "a turn failed", "CRITICAL/"):
                if sign in line:
                    counts[sign] = counts.get(sign, 0) + 1
    return [f"{count} x {sign!r} in the logs in {logs}" for sign, count in counts.items()]


def table(report: Report) -> str:
    """The report as text."""
    head = "| fault | times | due | dispatched | duplicates | missed | longest gap | died |"
    lines = [head, "|---|" + "---:|" * 7]
    for row in [*report.rows, report.total]:
        lines.append(_line(row))
    return "\n".join(lines)


def _line(row: Row) -> str:
    cells = [
        row.kind,
        row.faults,
        row.due,
        row.dispatched,
        row.duplicates,
        row.missed,
        f"{row.longest_gap:.2f} s",
        row.died,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, by default those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long (default 3)")
    parser.add_argument("--seed", type=int, help="of the schedule of faults; by default drawn")
    parser.add_argument("--catch-up", choices=("all", "one"), default="all")
    parser.add_argument("--beats", type=int, default=3)
    parser.add_argument("--lease", type=float, default=3.0, help="seconds")
    parser.add_argument("--burst", type=int, default=150, help="entries due at one moment")
    parser.add_argument("--fence", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", default="", help="the faults whose name has this in it")
    parser.add_argument("--expect-duplicates", action="store_true")
    parser.add_argument("--keep-logs", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
