"""What strangers wrote into Redis harms no terminal and no script that reads the output."""

from __future__ import annotations

import json

import pytest

from celery_leader.ops.printing import safe, say, say_json

HOSTILE = "w1@a\n    critical  forged\r\x1b[2J\x85\u2028\x00"
SAFE = "w1@a\ufffd    critical  forged\ufffd\ufffd[2J\ufffd\ufffd\ufffd"


@pytest.mark.parametrize("error", [False, True])
def test_a_line_stays_one_line_and_controls_no_terminal(
    error: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    say(HOSTILE, error=error)
    out, err = capsys.readouterr()
    assert (err if error else out) == f"{SAFE}\n"


def test_values_are_safe_at_every_depth_and_their_names_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {HOSTILE: [{"node": HOSTILE, "seconds": float("nan")}, (float("inf"), 1.5, 7, None)]}
    shown = {SAFE: [{"node": SAFE, "seconds": None}, [None, 1.5, 7, None]]}
    assert safe(value) == shown
    say_json(value)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == shown


def test_words_of_every_language_are_shown_as_they_are() -> None:
    for text in ("Rechner-ä", "работник", "机器", "w1@host:7"):
        assert safe(text) == text
