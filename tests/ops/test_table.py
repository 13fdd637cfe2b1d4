"""What people see at terminals of different widths."""

from __future__ import annotations

import pytest

from celery_leader.ops import table
from celery_leader.ops.table import Table

NODES = Table(
    "worker: w1@web1.example.com  term 1795516234812955",
    columns=("node", "last contact", "why it ended", "term"),
    rows=(
        ("* w1@web1.example.com", "seen 0.9 s ago", "", "term 1795516234812955"),
        ("  w2@web1.example.com", "seen 1.5 s ago", "lost contact", "term 1795516234800000"),
    ),
)


def seen_at(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What a terminal of so many columns shows of the nodes."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(table, "at_a_terminal", lambda: True)
    table.show([NODES], color=False)
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [200, *range(100, 38, -1)])
def test_a_terminal_breaks_no_node_name_and_no_term(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = seen_at(columns, monkeypatch, capsys)
    for word in ("w1@web1.example.com", "w2@web1.example.com", "1795516234800000", "contact"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= columns


def test_a_terminal_too_narrow_for_the_table_gets_the_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "why it ended" in seen_at(100, monkeypatch, capsys), "the table has a head"
    assert "why it" not in seen_at(40, monkeypatch, capsys)


def test_nothing_in_a_table_makes_a_line_of_its_own_or_harms_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = "w1\n    critical  forged\r\x1b[2J\x85\u2028"
    hostile = Table(forged, columns=("node",), rows=[(forged,)], remarks=[forged])
    for at_a_terminal in (False, True):
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(table, "at_a_terminal", lambda at=at_a_terminal: at)
        table.show([hostile], color=False)
        shown = capsys.readouterr().out
        lines = [line.strip(" -\N{BOX DRAWINGS LIGHT HORIZONTAL}") for line in shown.splitlines()]
        assert all(line.startswith("w1") for line in lines if line and line != "node"), shown
        assert "\x1b[2J" not in shown
