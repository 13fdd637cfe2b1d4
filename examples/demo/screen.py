"""What the demo shows: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .evidence import Evidence
from .judge import Report

LINES_KEPT = 20
TABLE_HEIGHT = 13  # with its title and caption
STATUS_EVERY = 5.0  # seconds between two status lines where there is no live table


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One process, as the table shows it."""

    name: str
    election: str
    state: str
    term: int | None = None
    seconds_left: float | None = None
    work: str = ""


class Screen:
    """Where the demo says what happens."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._began = time.monotonic()

    def say(self, what: str) -> None:
        """Something happened."""
        raise NotImplementedError

    def show(self, rows: Sequence[Row], evidence: Evidence) -> None:
        """This is how things stand; called many times a second."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing more happens."""

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _stamped(self, what: str) -> str:
        return f"{time.monotonic() - self._began:5.1f} s  {what}"


class LiveScreen(Screen):
    """A table that is kept up to date, and the last lines below it."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._table: Table | Text = Text(title, style="bold")
        self._live = Live(self._table, refresh_per_second=8)
        self._live.start()

    def say(self, what: str) -> None:
        self._lines.append(self._stamped(what))
        self._draw()

    def show(self, rows: Sequence[Row], evidence: Evidence) -> None:
        self._table = _table(self._title, rows, evidence)
        self._draw()

    def close(self) -> None:
        self._live.stop()

    def _draw(self) -> None:
        room = max(1, self._live.console.height - TABLE_HEIGHT)
        self._live.update(Group(self._table, *(Text(line) for line in [*self._lines][-room:])))


class PlainScreen(Screen):
    """Lines, for logs."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self._next_status = self._began + STATUS_EVERY
        print(title, flush=True)

    def say(self, what: str) -> None:
        print(self._stamped(what), flush=True)

    def show(self, rows: Sequence[Row], evidence: Evidence) -> None:
        if time.monotonic() < self._next_status:
            return
        self._next_status += STATUS_EVERY
        self.say(f"       {_status(rows, evidence)}")


def screen(title: str) -> Screen:
    """The one that suits where the output goes."""
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return LiveScreen(title)
    return PlainScreen(title)


def sum_up(report: Report, path: Path) -> None:
    """The report, and whether it is good."""
    figures = dataclasses.asdict(report)
    if sys.stdout.isatty():
        table = Table("what", "figure", title="what Redis holds of it")
        for name, figure in figures.items():
            style = "bold red" if name in report.broken else None
            table.add_row(name, str(figure), style=style)
        Console().print(table)
    else:
        width = max(map(len, figures))
        for name, figure in figures.items():
            print(f"  {name:<{width}}  {figure}")
    print(f"{_verdict(report)} See {path}.")


def _verdict(report: Report) -> str:
    if report.broken:
        return f"Not as promised: {', '.join(report.broken)}."
    return (
        "Every tick was dispatched once, every dispatch ran, and no follower ran what is for the"
        " leader only."
    )


def _table(title: str, rows: Sequence[Row], evidence: Evidence) -> Table:
    table = Table(title=title, caption=_status(rows, evidence))
    for column in ("process", "election", "state", "term", "lease", "work"):
        table.add_column(column)
    styles = {"leads": "bold green", "killed": "red", "stopped": "yellow"}
    for row in rows:
        left = "" if row.seconds_left is None else f"{row.seconds_left:.1f} s"
        term = "" if row.term is None else str(row.term)
        style = styles.get(row.state)
        table.add_row(row.name, row.election, row.state, term, left, row.work, style=style)
    return table


def _status(rows: Sequence[Row], evidence: Evidence) -> str:
    led = [f"{row.name} leads the {row.election}s" for row in rows if row.state == "leads"]
    done = f"{evidence.dispatched()} ticks dispatched, {len(evidence.done())} tasks done"
    return ", ".join([*led, done])
