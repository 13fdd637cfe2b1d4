"""What a process that is forked from a candidate may believe: nothing, unless it is a pool process.

Real forks: ``os.fork`` (gunicorn with ``preload``), one that Python is not told of (uWSGI),
``multiprocessing`` with each start method, and billiard's, which pools are made of.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.runtime.candidate import environment
from tests.support import ROOT

#: ``believed`` of a process that takes no part.
NOTHING = [False, None, False, None, False]
LONG = "120"  # seconds of lease, where nothing must happen by expiry while a test runs

PARENT = """
import ctypes, json, multiprocessing, os, sys, warnings
import billiard
from celery import Celery
from celery_leader import LeaderElection, LeaderError, current_term, is_leader
from celery_leader.runtime.app_runtime import runtime_of
from tests.support.records import candidates_of, record_of

warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside a thread
app = Celery("forking", broker=sys.argv[1], set_as_current=True)
app.conf.leader_lease_duration = float(sys.argv[2])
app.conf.leader_elections = ["reports"]
election = LeaderElection(app, "reports")


def believed():
    known = runtime_of(app)
    return [
        election.is_leader(),
        election.term(),
        is_leader("reports"),
        current_term("reports"),
        known.beliefs.is_candidate("reports"),
    ]


def write(act, descriptor):
    os.write(descriptor, json.dumps(act()).encode())
    os.close(descriptor)


def forked_by(fork):
    def in_child(act):
        read, descriptor = os.pipe()
        pid = fork()
        if pid == 0:
            try:
                write(act, descriptor)
            finally:
                os._exit(0)
        os.close(descriptor)
        said = os.fdopen(read).read()
        os.waitpid(pid, 0)
        return json.loads(said)

    return in_child


in_fork = forked_by(os.fork)
in_fork_untold = forked_by(ctypes.PyDLL(None).fork)


def as_process(context):
    def in_child(act):
        queue = context.SimpleQueue()
        child = context.Process(target=put, args=(act, queue))
        child.start()
        said = queue.get()
        child.join()
        return said

    return in_child


def put(act, queue):
    try:
        queue.put(act())
    except BaseException as exc:
        queue.put(repr(exc))


WAYS = {
    "os.fork": in_fork,
    "multiprocessing, fork": as_process(multiprocessing.get_context("fork")),
    "multiprocessing, forkserver": as_process(multiprocessing.get_context("forkserver")),
    "multiprocessing, spawn": as_process(multiprocessing.get_context("spawn")),
    "billiard": as_process(billiard.get_context("fork")),
}


def lead():
    election.start()
    assert election.wait_until_leader(30)
    return election.term()

"""


def in_a_process(directory: Path, url: str, script: str) -> object:
    """What ``script`` says as JSON, run as a program of its own that can be imported again."""
    program = directory / "program.py"
    main = f"if __name__ == '__main__':\n{textwrap.indent(textwrap.dedent(script), '    ')}"
    program.write_text(PARENT + main)
    run = subprocess.run(
        [sys.executable, str(program), url, LONG],
        capture_output=True,
        text=True,
        timeout=90,
        env=environment(),
        cwd=ROOT,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_fork_of_a_leader_believes_nothing_and_a_child_of_a_worker_what_that_believes(
    redis_url: str, tmp_path: Path
) -> None:
    said = in_a_process(
        tmp_path,
        redis_url,
        """
        term = lead()
        print(json.dumps([term, {name: way(believed) for name, way in WAYS.items()}, believed()]))
        """,
    )
    assert isinstance(said, list)
    term, told, after = said
    leads = [True, term, True, term, True]
    assert after == leads
    assert told.pop("billiard") == leads
    for name, answers in told.items():
        assert answers == NOTHING, name


def test_a_fork_that_python_is_not_told_of_believes_nothing_either(
    redis_url: str, tmp_path: Path
) -> None:
    said = in_a_process(
        tmp_path,
        redis_url,
        """
        term = lead()
        # Such a fork of a process with threads may hang in C, whatever it does.
        runtime_of(app).participation._election_thread.stop(30)
        print(json.dumps([term, in_fork_untold(believed), believed()]))
        """,
    )
    assert isinstance(said, list)
    term, told, after = said
    assert after[:2] == [True, term]
    assert told == NOTHING


def test_what_a_pool_process_forks_reads_what_its_worker_believes_and_loses_it_with_it(
    redis_url: str, tmp_path: Path
) -> None:
    said = in_a_process(
        tmp_path,
        redis_url,
        """
        term = lead()
        gone, wait = os.pipe()[::-1]

        def in_a_pool_process():
            return {
                "nobody": believed(),
                "os.fork": in_fork(believed),
                "a fork that Python is not told of": in_fork_untold(believed),
            }

        def after_the_resignation():
            os.read(wait, 1)
            return believed()

        told = WAYS["billiard"](in_a_pool_process)
        context = billiard.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=put, args=(after_the_resignation, queue))
        child.start()
        assert election.resign()
        os.write(gone, b"!")
        print(json.dumps([term, told, queue.get()]))
        """,
    )
    assert isinstance(said, list)
    term, told, afterwards = said
    for name, answers in told.items():
        assert answers == [True, term, True, term, True], name
    assert afterwards[:4] == [False, None, False, None]


@pytest.mark.parametrize("way", ["os.fork", "billiard"])
def test_a_forked_child_that_campaigns_is_a_candidate_of_its_own_and_does_not_lean_on_its_parent(
    redis_url: str, tmp_path: Path, way: str
) -> None:
    said = in_a_process(
        tmp_path,
        redis_url,
        f"""
        lead()
        watching = runtime_of(app)
        renewals = record_of(watching, "reports").renewals

        def enter():
            election.start()
            won = election.wait_until_leader(1.5)
            nodes = [each.node for each in candidates_of(runtime_of(app), "reports")]
            return [won, *believed(), election.node, life(), sorted(nodes)]

        def life():
            return runtime_of(app).participation._candidates[0].election.requester.life

        told = WAYS[{way!r}](enter)
        record = record_of(watching, "reports")
        print(json.dumps({{
            "child": told,
            "parent": [election.is_leader(), election.term() == record.term, record.transitions],
            "renewed by the child": record.renewals != renewals,
            "node": election.node,
            "life": life(),
        }}))
        """,
    )
    assert isinstance(said, dict)
    *believed, node, life, nodes = said["child"]
    assert life != said["life"], "Redis takes no request of the one for the other's"
    assert believed == [False, False, None, False, None, True]
    assert nodes == sorted([said["node"], node])
    assert len(set(nodes)) == 2
    assert said["parent"] == [True, True, 1]
    assert not said["renewed by the child"]


def test_three_preloaded_servers_of_one_parent_elect_one_leader_among_themselves(
    redis_url: str, tmp_path: Path
) -> None:
    said = in_a_process(
        tmp_path,
        redis_url,
        """
        lead()
        go = [os.pipe() for _ in range(3)]
        told = []
        for number, (wait, _) in enumerate(go):
            read, descriptor = os.pipe()
            if os.fork() == 0:
                before = believed()
                election.start()
                os.read(wait, 1)
                election.wait_until_leader(1)
                write(lambda: [before, election.term()], descriptor)
                os.read(wait, 1)
                election.resign()
                os._exit(0)
            os.close(descriptor)
            told.append(os.fdopen(read))
        assert election.resign()
        for _, start in go:
            os.write(start, b"!")
        answers = [json.loads(each.readline()) for each in told]
        record = record_of(runtime_of(app), "reports")
        for _, start in go:
            os.write(start, b"!")
        for _ in go:
            os.wait()
        print(json.dumps([answers, record.term]))
        """,
    )
    assert isinstance(said, list)
    answers, term = said
    assert [before for before, _ in answers] == 3 * [NOTHING]
    assert sorted(led for _, led in answers if led is not None) == [term]


def test_a_forked_child_that_resigns_or_leaves_the_context_does_not_resign_for_its_parent(
    redis_url: str, tmp_path: Path
) -> None:
    said = in_a_process(
        tmp_path,
        redis_url,
        """
        lead()

        def leave():
            # With an election of its own it has a thread that could give up what is not its own.
            LeaderElection(app, "other").start().wait_until_leader(30)
            with election:
                pass
            return [election.resign(), election.is_leader()]

        def resign():
            return [election.resign(), election.is_leader()]

        def step_down():
            candidate = election._candidate
            LeaderElection(app, "third").start().wait_until_leader(30)
            runtime_of(app).participation.step_down(candidate)
            runtime_of(app).participation.resign(candidate).wait(30)
            return election.is_leader()

        told = [in_fork(resign), in_fork(leave), in_fork(step_down)]
        led = election.leader()
        print(json.dumps([told, election.is_leader(), led.holder == election.node]))
        """,
    )
    assert said == [[[True, False], [True, False], False], True, True]


def test_a_fork_that_waits_to_lead_what_it_has_not_started_is_told_to_start_it(
    redis_url: str, tmp_path: Path
) -> None:
    said = in_a_process(
        tmp_path,
        redis_url,
        """
        lead()

        def wait():
            try:
                return election.wait_until_leader(30)
            except LeaderError as exc:
                return str(exc)

        print(json.dumps(in_fork(wait)))
        """,
    )
    assert said == "start() the election 'reports' before waiting to lead it"


def test_a_forked_child_does_not_take_one_election_of_its_parent_for_another(
    redis_url: str, tmp_path: Path
) -> None:
    said = in_a_process(
        tmp_path,
        redis_url,
        """
        lead()
        go, wait = os.pipe()[::-1]
        context = billiard.get_context("fork")
        queue = context.SimpleQueue()

        def wait_for_the_others():
            os.read(wait, 1)
            return election.is_leader()

        child = context.Process(target=put, args=(wait_for_the_others, queue))
        child.start()
        for name in ("mail", "search", "billing"):
            assert election.resign()
            election = LeaderElection(app, name).start()
            assert election.wait_until_leader(30)
        os.write(go, b"!")
        print(json.dumps(queue.get()))
        """,
    )
    assert said is False
