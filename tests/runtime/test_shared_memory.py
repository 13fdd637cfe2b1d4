"""A belief is shared with children, forked or not, and ends by itself."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from celery_leader.runtime import clock
from celery_leader.runtime.shared_memory import Address, LeasePages, LeaseView, views_at
from tests.support.fixtures import RunPython

LONG = 3600.0

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def in_a_forked_child(answer: Callable[[], object]) -> str:
    """What ``answer`` says in a child that does nothing else."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests' threads
        pid = os.fork()
    if pid == 0:
        try:
            os.write(write, repr(answer()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def test_a_new_belief_is_that_one_does_not_lead() -> None:
    assert LeasePages().allot().term() is None


def test_a_published_term_is_believed_until_its_deadline_and_no_longer() -> None:
    belief = LeasePages().allot()
    belief.publish(7, 100.0)
    assert belief.term(lambda: 99.999) == 7
    assert belief.term(lambda: 100.0) is None
    assert belief.term(lambda: 1e9) is None


def test_a_belief_ends_by_itself_on_the_clock_of_the_machine() -> None:
    belief = LeasePages().allot()
    belief.publish(7, clock.now() - 0.001)
    assert belief.term() is None
    belief.publish(7, clock.now() + LONG)
    assert belief.term() == 7


def test_a_withdrawn_belief_is_gone_at_once() -> None:
    belief = LeasePages().allot()
    belief.publish(7, LONG)
    belief.withdraw()
    assert belief.term(lambda: 0.0) is None


def test_a_term_in_microseconds_comes_back_exactly() -> None:
    belief = LeasePages().allot()
    term = 1_790_000_000_123_457
    belief.publish(term, LONG)
    assert belief.term(lambda: 0.0) == term


def test_beliefs_do_not_touch_each_other_however_many_there_are() -> None:
    page = LeasePages()
    beliefs = [page.allot() for _ in range(1000)]
    for number, belief in enumerate(beliefs, start=1):
        belief.publish(number, LONG)
    beliefs[500].withdraw()
    terms = [belief.term(lambda: 0.0) for belief in beliefs]
    assert terms == [None if number == 501 else number for number in range(1, 1001)]


def test_the_place_of_a_belief_is_used_again_for_the_same_election_only() -> None:
    page = LeasePages()
    beat = page.allot("beat")
    beat.publish(7, LONG)
    page.release(beat, "beat")
    assert beat.term(lambda: 0.0) is None
    worker = page.allot("worker")
    worker.publish(8, LONG)
    assert beat.term(lambda: 0.0) is None, "a child forked before still reads here"
    again = page.allot("beat")
    again.publish(9, LONG)
    assert beat.term(lambda: 0.0) == 9


def test_a_forked_child_believes_what_its_parent_believed_before_the_fork() -> None:
    belief = LeasePages().allot()
    belief.publish(7, clock.now() + LONG)
    assert in_a_forked_child(belief.term) == "7"


def test_a_forked_child_sees_what_its_parent_publishes_and_withdraws_after_the_fork() -> None:
    belief = LeasePages().allot()
    to_child, from_parent = os.pipe()
    to_parent, from_child = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            while os.read(to_child, 1) == b"?":
                os.write(from_child, b"y" if belief.term() == 7 else b"n")
        finally:
            os._exit(0)

    def child_believes() -> bytes:
        os.write(from_parent, b"?")
        return os.read(to_parent, 1)

    try:
        assert child_believes() == b"n"
        belief.publish(7, clock.now() + LONG)
        assert child_believes() == b"y"
        belief.withdraw()
        assert child_believes() == b"n"
    finally:
        os.write(from_parent, b".")
        os.waitpid(pid, 0)
        for fd in (to_child, from_parent, to_parent, from_child):
            os.close(fd)


LOOK = """
import sys
from celery_leader.runtime.shared_memory import Address, views_at
beliefs = views_at(Address(*sys.argv[1:]))
print("ready", flush=True)
for _ in sys.stdin:
    print([(name, belief.term()) for name, belief in beliefs], flush=True)
"""


class Stranger:
    """A process that inherits nothing, and what it finds at an address."""

    def __init__(self, address: Address) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOK, address.path, address.mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.communicate()

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def told(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return self.said()


def without_nameless_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("kind", ["nameless", "named"])
def test_a_process_told_the_address_sees_each_election_and_every_change(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kind == "named":
        without_nameless_memory(monkeypatch, tmp_path)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("there is no memfd_create here")
    page = LeasePages()
    address = page.share()
    assert address.path.startswith("/proc/" if kind == "nameless" else str(tmp_path))
    worker, longest = page.allot("worker"), page.allot("x" * 64)
    many = [page.allot(f"e{number}") for number in range(200)]
    worker.publish(7, clock.now() + LONG)
    many[199].publish(9, clock.now() + LONG)
    with Stranger(address) as stranger:
        first = [("worker", 7), ("x" * 64, None)]
        rest = [(f"e{number}", None) for number in range(199)]
        assert stranger.told() == repr([*first, *rest, ("e199", 9)])
        worker.withdraw()
        longest.publish(8, clock.now() + LONG)
        assert stranger.told() == repr([("worker", None), ("x" * 64, 8), *rest, ("e199", 9)])


@pytest.mark.usefixtures("real")
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there is no memfd_create here")
def test_what_was_allotted_before_it_was_shared_is_found_too() -> None:
    page = LeasePages()
    page.allot("early").publish(7, clock.now() + LONG)
    with Stranger(page.share()) as stranger:
        assert stranger.told() == repr([("early", 7)])


@pytest.mark.usefixtures("real")
def test_nothing_is_found_where_the_owner_is_gone_or_something_else_has_its_place(
    tmp_path: Path,
) -> None:
    page = LeasePages()
    address = page.share()
    page.allot("worker")
    assert [name for name, _ in views_at(address)] == ["worker"]
    assert views_at(Address(address.path, "of another life")) == []
    assert views_at(Address(str(tmp_path / "gone"), address.mark)) == []
    os.mkfifo(tmp_path / "pipe")
    assert views_at(Address(str(tmp_path / "pipe"), address.mark)) == []
    (tmp_path / "short").write_text(address.mark)
    assert views_at(Address(str(tmp_path / "short"), address.mark)) == []


def test_a_named_file_is_this_users_alone_and_removed_at_exit(
    tmp_path: Path, python: RunPython
) -> None:
    code = (
        "import os; os.__dict__.pop('memfd_create', None)\n"
        "from celery_leader.runtime.shared_memory import LeasePages\n"
        "page = LeasePages()\n"
        "path = page.share().path\n"
        "print(path, oct(os.stat(path).st_mode & 0o777))\n"
        "pid = os.fork()\n"
        "if pid == 0: raise SystemExit  # a child's exit is not its owner's\n"
        "os.waitpid(pid, 0)\n"
        "print(os.path.exists(path))\n"
    )
    said = python("-W", "ignore", "-c", code, env={**os.environ, "TMPDIR": str(tmp_path)})
    path, mode, still_there = said.stdout.split()
    assert Path(path).parent == tmp_path
    assert (mode, still_there) == (oct(stat.S_IRUSR | stat.S_IWUSR), "True")
    assert not Path(path).exists()


class Cells(list[float]):
    """Memory that remembers every state it went through."""

    def __init__(self) -> None:
        super().__init__([0.0, 0.0, 0.0])
        self.states: list[tuple[float, ...]] = []

    def __setitem__(self, index: int, value: float) -> None:  # type: ignore[override]
        super().__setitem__(index, value)
        self.states.append(tuple(self)[:2])


def test_a_new_term_is_never_written_beside_the_old_deadline() -> None:
    cells = Cells()
    belief = LeaseView(cells, 0)  # type: ignore[arg-type]
    belief.publish(1, 100.0)
    belief.publish(2, 50.0)
    assert (100.0, 2.0) not in cells.states
    assert cells.states[-1] == (50.0, 2.0)


def test_a_renewal_does_not_interrupt_the_belief() -> None:
    cells = Cells()
    belief = LeaseView(cells, 0)  # type: ignore[arg-type]
    belief.publish(1, 100.0)
    before = len(cells.states)
    belief.publish(1, 110.0)
    assert cells.states[before:] == [(110.0, 1.0)]


def test_the_places_of_forgotten_elections_are_used_again_and_readers_of_before_hear_nothing() -> (
    None
):
    page = LeasePages()
    address = page.share()
    first = page.allot("first")
    (seen,) = [belief for name, belief in views_at(address) if name == "first"]
    page.release(first, "first")
    page.forget("first")
    second = page.allot("second")
    second.publish(7, clock.now() + LONG)
    assert [name for name, _ in views_at(address)] == ["second"], "it is the same place"
    assert (first.term(), seen.term()) == (None, None)
    assert first.valid_until == seen.valid_until == 0.0
    assert second.term() == 7
    ((_, read),) = views_at(address)
    assert read.term() == 7


def test_any_number_of_one_off_elections_take_no_more_memory_than_one() -> None:
    page = LeasePages()
    address = page.share()
    for number in range(500):
        belief = page.allot(f"one-off-{number}")
        belief.publish(1, clock.now() + LONG)
        assert belief.term() == 1
        page.release(belief, f"one-off-{number}")
        page.forget(f"one-off-{number}")
    assert len(views_at(address)) == 1


def test_a_reader_interrupted_between_deadline_and_term_does_not_mix_them() -> None:
    belief = LeasePages().allot()
    belief.publish(1, 100.0)

    def interrupted_by_a_term_that_is_over() -> float:
        belief.publish(2, 10.0)
        return 50.0

    assert belief.term(interrupted_by_a_term_that_is_over) is None


def test_a_reader_beside_a_writer_never_sees_a_term_past_its_deadline() -> None:
    # Term n ends at n; so at every moment now the only right answers are above it.
    belief = LeasePages().allot()
    now = 0.0
    wrong: list[tuple[int, float]] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            moment = now
            term = belief.term(lambda moment=moment: moment)
            if term is not None and term <= moment:
                wrong.append((term, moment))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 30_000):
            belief.publish(number, float(number))
            now = number - 0.5
    finally:
        over.set()
        reader.join()
    assert wrong == []
